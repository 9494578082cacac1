"""`OcrClient` against a real server."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepseek_ocr_client import (
    ClientSettings,
    InvalidRequest,
    MarkdownStream,
    OcrClient,
    OcrOptions,
    RequestCancelled,
    ServerUnavailable,
)
from deepseek_ocr_client.images import ImageInput
from deepseek_ocr_client.request import RequestOptions
from tests.client.conftest import LONG, SHORT
from tests.client.forwarder import Forwarder
from tests.client.pdf_files import text_pages
from tests.serving import metrics
from tests.serving.running import RunningServer

pytestmark = pytest.mark.serving


def test_everything_that_the_server_says_comes_back(client: OcrClient, page: Path) -> None:
    options: RequestOptions = {"mode": "base", "max_tokens": 12, "retention": 0.5}
    result = client.ocr(page, **options)
    assert (result.layout.width, result.layout.height, result.layout.side) == (600, 800, 1024)
    assert result.visual_tokens == result.layout.sequence_length == 273
    assert 0 < result.kept_tokens == len(result.kept) < 273
    assert (np.diff(result.kept) > 0).all()
    assert 0 < result.output_tokens <= 12
    assert result.finish_reason in ("stop", "length")
    assert result.timings is not None
    assert 0 < result.timings.first_token <= result.timings.total
    assert result.request_id
    assert result.markdown.strip() == client.ocr(page, **options).markdown.strip()


def test_retention_1_keeps_every_token(client: OcrClient, page: Path) -> None:
    result = client.ocr(page, **SHORT, retention=1)
    assert result.kept.tolist() == list(range(73))


def test_paths_bytes_pictures_and_arrays_are_the_same_page(client: OcrClient, page: Path) -> None:
    picture = Image.open(page)
    images: list[ImageInput] = [page, str(page), page.read_bytes(), picture, np.asarray(picture)]
    assert len({client.ocr(image, **SHORT).text for image in images}) == 1


def test_a_stream_gives_the_same_text_in_pieces(client: OcrClient, page: Path) -> None:
    whole = client.ocr(page, mode="tiny", max_tokens=60)
    with client.stream(page, mode="tiny", max_tokens=60) as stream:
        with pytest.raises(InvalidRequest, match="hasn't ended"):
            _ = stream.result
        pieces = list(stream)
    assert "".join(pieces)[: len(whole.text)] == whole.text == stream.result.text
    assert stream.result.kept.tolist() == whole.kept.tolist()
    assert stream.result.layout == whole.layout
    with client.stream(page, mode="tiny", max_tokens=60) as stream:
        streamed = "".join(stream.markdown())
    check = MarkdownStream()
    assert streamed == check.feed("".join(pieces)) + check.close()


def test_http_gives_the_same_and_refuses_to_stream(
    ocr_server: RunningServer, client: OcrClient, page: Path
) -> None:
    with OcrClient(f"http://{ocr_server.http_url}") as other:
        result = other.ocr(page, **SHORT, request_id="my-own-id")
        expected = client.ocr(page, **SHORT)
        assert (result.text, result.layout) == (expected.text, expected.layout)
        assert result.kept.tolist() == expected.kept.tolist()
        assert result.request_id == "my-own-id"
        with pytest.raises(InvalidRequest, match="gRPC"):
            next(other.stream(page))


def test_http_from_several_threads(ocr_server: RunningServer, page: Path) -> None:
    with OcrClient(f"http://{ocr_server.http_url}") as client, ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda _: client.ocr(page, **SHORT).text, range(4)))) == 1


def test_a_bad_request_is_one_sentence(url: str, page: Path) -> None:
    with OcrClient(url, settings=ClientSettings(retries=0)) as client:
        cases: list[tuple[bytes | Path, RequestOptions, str]] = [
            (b"not an image", {}, "not an image"),
            (page, {"mode": "giant"}, "MODE must be one of"),
            (page, {"max_tokens": 10**9}, "MAX_TOKENS must be"),
            (page, {"prompt": "no image here"}, "<image>"),
        ]
        for image, more, words in cases:
            options: RequestOptions = {"mode": "tiny", **more}
            with pytest.raises(InvalidRequest, match=words) as raised:
                client.ocr(image, **options)
            assert "ensemble" not in str(raised.value)
            assert "\n" not in str(raised.value)
        assert client.ocr(page, **SHORT).text  # the connection goes on


def cancelled(server: RunningServer) -> float:
    return metrics.total(metrics.read(server), "ocr_finished_total", 'reason="cancelled"')


@pytest.mark.parametrize("how", ["cancel", "break", "forget", "thread", "client"])
def test_a_cancel_reaches_the_server(endless_server: RunningServer, long_page: Path, how: str) -> None:
    before = cancelled(endless_server)
    with OcrClient(endless_server.grpc_url) as client:
        stream = client.stream(long_page, **LONG)
        next(stream)
        if how == "cancel":
            stream.cancel()
            assert list(stream) == []
        elif how == "break":
            with stream:
                for _ in stream:
                    break
        elif how == "forget":
            del stream
            gc.collect()
        else:
            stop = stream.cancel if how == "thread" else client.cancel
            timer = threading.Timer(0.3, stop)
            timer.start()
            with pytest.raises(RequestCancelled):
                for _ in stream:
                    pass
            timer.join()
        metrics.wait_for(lambda: cancelled(endless_server) == before + 1, 30)


def test_a_time_limit_ends_a_page(endless_server: RunningServer, page: Path, long_page: Path) -> None:
    with OcrClient(endless_server.grpc_url) as client:
        client.ocr(page, **SHORT)
        result = client.ocr(long_page, **LONG, time_limit=1.0)
    assert result.finish_reason == "timeout"
    assert "time limit" in result.warning()


def test_documents_come_in_order_and_lazily(client: OcrClient, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(text_pages(5))
    options = OcrOptions(mode="tiny", max_tokens=4)
    results = list(client.ocr_document(path, options=options, concurrency=3))
    assert [result.number for result in results] == [1, 2, 3, 4, 5]
    assert all(result.result is not None for result in results)
    some = client.ocr_document(path, pages=[4, 2], options=options)
    assert [result.number for result in some] == [4, 2]
    with pytest.raises(InvalidRequest, match="no page 9"):
        client.ocr_document(path, pages=[9])
    lazy = client.ocr_document(path, options=options, concurrency=1)
    assert next(lazy).number == 1
    lazy.close()


@pytest.mark.parametrize(
    "nowhere", ["grpc://127.0.0.1:1", "http://127.0.0.1:1", "grpc://no.such.host.invalid:1"]
)
def test_nobody_there_is_said_in_a_sentence(page: Path, nowhere: str) -> None:
    with OcrClient(nowhere, settings=ClientSettings(retries=1, backoff=0.01)) as client:
        with pytest.raises(ServerUnavailable, match="No server answers at") as raised:
            client.ocr(page)
        assert not raised.value.answered
        with pytest.raises(ServerUnavailable, match="No server answers at"):
            client.check()


def test_a_server_that_comes_up_late_is_waited_for(url: str, page: Path) -> None:
    settings = ClientSettings(retries=20, backoff=0.2, backoff_max=0.5)
    scheme, _, target = url.partition("://")
    with Forwarder(target) as gate, OcrClient(f"{scheme}://{gate.address}", settings=settings) as client:
        timer = threading.Timer(1.0, gate.start)
        timer.start()
        assert client.ocr(page, **SHORT).text is not None
        timer.join()


def test_a_connection_that_breaks_in_the_middle_is_tried_again_whole(
    ocr_server: RunningServer, long_page: Path
) -> None:
    settings = ClientSettings(retries=20, backoff=0.1, backoff_max=0.3)
    with Forwarder(ocr_server.grpc_url) as gate, OcrClient(gate.address, settings=settings) as client:
        gate.start()
        expected = client.ocr(long_page, **LONG).text
        cuts = threading.Timer(0.2, gate.cut)
        cuts.start()
        assert client.ocr(long_page, **LONG).text == expected
        cuts.join()


def test_a_stream_that_breaks_after_its_first_piece_is_an_error(
    ocr_server: RunningServer, long_page: Path
) -> None:
    with Forwarder(ocr_server.grpc_url) as gate, OcrClient(gate.start().address) as client:
        stream = client.stream(long_page, **LONG)
        next(stream)
        gate.cut()
        with pytest.raises(ServerUnavailable):
            for _ in stream:
                pass


def test_connections_are_reused(url: str, page: Path) -> None:
    scheme, _, target = url.partition("://")
    with Forwarder(target) as gate, OcrClient(f"{scheme}://{gate.start().address}") as client:
        for _ in range(3):
            client.ocr(page, **SHORT)
        assert gate.connections == 1


def test_headers_are_sent(ocr_server: RunningServer, page: Path) -> None:
    with Forwarder(ocr_server.http_url) as gate:
        headers = {"Authorization": "Bearer key-1"}
        with OcrClient(f"http://{gate.start().address}", headers=headers) as client:
            client.ocr(page, **SHORT)
        assert b"authorization: bearer key-1" in bytes(gate.received).lower()
