"""TLS and shared memory: options that need a server, or a proxy, of their own."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_ocr_client import (
    AsyncOcrClient,
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
