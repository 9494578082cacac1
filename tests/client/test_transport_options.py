"""TLS and shared memory: options that need a server, or a proxy, of their own."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr_client import (
    AsyncOcrClient,
    ClientError,
    ClientSettings,
    InvalidRequest,
    OcrClient,
    ServerUnavailable,
    Tls,
)
from tests.client.conftest import SHORT
from tests.client.forwarder import Forwarder
from tests.serving.running import RunningServer

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    line = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    line += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(line, check=True, capture_output=True)
    return certificate, key


def tls_proxy(target: str, certificate: tuple[Path, Path], *protocols: str) -> Forwarder:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(list(protocols))
    return Forwarder(target, context).start()


def test_tls(ocr_server: RunningServer, certificate: tuple[Path, Path], page: Path) -> None:
    quick = ClientSettings(retries=0, connect_timeout=5)
    for scheme, target, protocol in (
        ("grpcs", ocr_server.grpc_url, "h2"),
        ("https", ocr_server.http_url, "http/1.1"),
    ):
        with tls_proxy(target, certificate, protocol) as proxy:
            url = f"{scheme}://localhost:{proxy.address.rpartition(':')[2]}"
            with OcrClient(url, tls=Tls(certificate[0])) as client:
                text = client.ocr(page, **SHORT).text
            assert b"Convert" not in bytes(proxy.received)

            async def read(url: str = url) -> str:
                async with AsyncOcrClient(url, tls=Tls(certificate[0])) as client:
                    return (await client.ocr(page, **SHORT)).text

            assert asyncio.run(read()) == text
            with OcrClient(url, settings=quick) as stranger, pytest.raises(ServerUnavailable):
                stranger.check()  # nobody vouches for this certificate


@pytest.fixture(scope="module")
def sharing_server(
    ocr_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server that lets its clients register shared memory."""
    log = tmp_path_factory.mktemp("sharing") / "server.log"
    server = RunningServer(ocr_server.engines, log, OCR_SHARED_MEMORY="true")
    server.start()
    yield server
    server.stop()


def regions() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("deepseek-ocr-*")}


def test_shared_memory(sharing_server: RunningServer, ocr_server: RunningServer, page: Path) -> None:
    with (
        OcrClient(ocr_server.grpc_url) as plain,
        OcrClient(sharing_server.grpc_url, shared_memory=True) as client,
    ):
        assert client.ocr(page, **SHORT).text == plain.ocr(page, **SHORT).text
        with pytest.raises(InvalidRequest):
            client.ocr(page, mode="giant")
        with client.stream(page, mode="tiny", max_tokens=500) as stream:
            next(stream)
        assert client.call("get_system_shared_memory_status", as_json=True) == {}
    assert not regions()


def test_a_server_that_shares_no_memory_says_so(ocr_server: RunningServer, page: Path) -> None:
    with OcrClient(ocr_server.grpc_url, shared_memory=True) as client:
        with pytest.raises(InvalidRequest, match="takes no shared memory"):
            client.ocr(page)
        with pytest.raises(InvalidRequest, match="takes no shared memory"):
            client.ocr(page)
    assert not regions()
    with pytest.raises(InvalidRequest, match="gRPC"):
        OcrClient(f"http://{ocr_server.http_url}", shared_memory=True)


def test_a_stream_may_be_silent_for_many_pings(random_engines: Path, tmp_path: Path, page: Path) -> None:
    # A second for what is 30 s (the server's shortest time between pings) and 310 s (the client's) otherwise.
    limits = {"OCR_GRPC_PING_SECONDS": "1", "RTPRUNE_MAX_RUNNING": "1", "RTPRUNE_REPETITION_GUARD": "false"}
    server = RunningServer(random_engines, tmp_path / "server.log", **limits)
    server.start()
    settings = ClientSettings(
        keepalive_time=1.5, retries=0
    )  # gRPC shares a connection among equals: not with `busy`
    options: dict[str, Any] = {"mode": "tiny", "no_repeat_ngram": (0, 0)}
    try:
        with (
            OcrClient(server.grpc_url) as busy,
            OcrClient(server.grpc_url, settings=settings) as client,
        ):
            running = busy.stream(page, max_tokens=7000, **options)
            next(running)
            with ThreadPoolExecutor(1) as thread:
                waiting = thread.submit(client.ocr, page, max_tokens=4, **options)
                with pytest.raises(TimeoutError):
                    waiting.result(timeout=9)  # six pings without a word from the server
                running.cancel()
                assert waiting.result(timeout=60).finish_reason == "length"
    finally:
        server.stop()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_requests_leave_no_sockets(ocr_server: RunningServer, page: Path, scheme: str) -> None:
    url = ocr_server.grpc_url if scheme == "grpc" else f"http://{ocr_server.http_url}"
    with OcrClient(url, settings=ClientSettings(retries=0)) as client:

        def every_kind() -> None:
            client.check()
            client.ocr(page, **SHORT)
            with pytest.raises(InvalidRequest):
                client.ocr(b"no image", **SHORT)
            with pytest.raises(ClientError):
                client.ocr(page, mode="large", time_limit=0.001)

        every_kind()
        before = descriptors()
        for _ in range(25):
            every_kind()
        assert descriptors() <= before + 3
