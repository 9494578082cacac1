"""A client that goes away stops the decoder: a cancelled stream, a dropped connection, an HTTP client's page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from tests.serving import calls, metrics
from tests.serving.running import ROOT, RunningServer
from tests.serving.test_modes import page

pytestmark = pytest.mark.serving
LONG = {"mode": "tiny", "max_tokens": 8000, "no_repeat_ngram": [0, 0], "prompt": calls.FREE_OCR}


def running(server: RunningServer) -> float:
    return metrics.total(metrics.read(server), "ocr_decoder_running")


def finished(server: RunningServer, reason: str) -> float:
    return metrics.total(metrics.read(server), "ocr_finished_total", f'reason="{reason}"')


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A page whose text takes the decoder a while: full of words."""
    return full_page()


def full_page() -> bytes:
    import io

    from PIL import Image, ImageDraw

    image = Image.new("RGB", (1280, 1280), "white")
    draw = ImageDraw.Draw(image)
    for row in range(38):
        draw.text(
            (32, 16 + 32 * row),
            f"line {row} says that {row * 7919 % 1000} birds " * 2,
            fill="black",
            font_size=26,
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_cancelled_stream_stops_the_decoder(endless_server: RunningServer, endless: bytes) -> None:
    before = finished(endless_server, "cancelled")
    first = []
    with grpc.InferenceServerClient(endless_server.grpc_url) as client:
        client.start_stream(lambda result, error: first.append((result, error)))
        client.async_stream_infer(
            "deepseek_ocr_stream",
            calls.inputs(grpc, endless, **LONG | {"mode": "large"}),
            request_id="cancel-me",
        )
        metrics.wait_for(lambda: bool(first), 60)
        metrics.wait_for(lambda: running(endless_server) == 1, 2)
        client.stop_stream(cancel_requests=True)
    metrics.wait_for(lambda: finished(endless_server, "cancelled") == before + 1, 2)
    metrics.wait_for(lambda: running(endless_server) == 0, 1)


def test_a_dropped_connection_stops_the_decoder(
    endless_server: RunningServer, endless: bytes, tmp_path: Path
) -> None:
    before = finished(endless_server, "cancelled")
    (tmp_path / "page.png").write_bytes(endless)
    script = textwrap.dedent(
        """
        import sys, time
        import tritonclient.grpc as grpc
        from tests.serving import calls
        url, path = sys.argv[1:]
        client = grpc.InferenceServerClient(url)
        client.start_stream(lambda result, error: print("answer", flush=True))
        client.async_stream_infer(
            "deepseek_ocr_stream",
            calls.inputs(grpc, open(path, "rb").read(), mode="large", max_tokens=8000, no_repeat_ngram=[0, 0],
                         prompt=calls.FREE_OCR),
        )
        time.sleep(120)
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, endless_server.grpc_url, str(tmp_path / "page.png")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"answer"
    child.send_signal(signal.SIGKILL)
    child.wait()
    metrics.wait_for(lambda: finished(endless_server, "cancelled") == before + 1, 2)
    metrics.wait_for(lambda: running(endless_server) == 0, 1)


def test_a_cancel_before_the_decoder_is_kept(endless_server: RunningServer, endless: bytes) -> None:
    answers = []
    with grpc.InferenceServerClient(endless_server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.append((result, error)))
        client.async_stream_infer("deepseek_ocr_stream", calls.inputs(grpc, endless, **LONG))
        client.stop_stream(cancel_requests=True)
    metrics.wait_for(lambda: running(endless_server) == 0, 5)
    assert calls.unary(endless_server, page(512, 512, "next"), mode="tiny", max_tokens=4).reason


def test_the_unary_endpoint_is_bounded_by_its_time_limit(
    endless_server: RunningServer, endless: bytes
) -> None:
    start = time.monotonic()
    try:
        answer = calls.unary(endless_server, endless, "", **LONG | {"mode": "large", "time_limit": 1.5})
    except InferenceServerException as error:  # a slow machine had not come to the decoder by then
        assert "The time limit of 1.5 s passed" in error.message()
    else:
        assert answer.reason in ("timeout", "stop", "repetition")
        assert answer.outputs["TIMINGS"][6] < 3
    assert time.monotonic() - start < 30
