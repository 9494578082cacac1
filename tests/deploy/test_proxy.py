"""The proxy in front of the server: TLS, keys, only the calls that read pages, and no way around it."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml
from tritonclient.utils import InferenceServerException

from deepseek_ocr_client import AccessDenied, OcrClient, OcrOptions
from deepseek_ocr_client.batch import Batch, Report
from deepseek_ocr_client.connection import Tls
from deepseek_ocr_client.errors import ClientError
from deepseek_ocr_client.inputs import find_sources
from deepseek_ocr_client.layouts import DocumentLayout
from deepseek_ocr_client.score import character_error_rate
from tests.client.pdf_files import text_pages
from tests.deploy.engine import ROOT, Engine
from tests.deploy.images import provide_nginx
from tests.deploy.stack import PROXY_FILES, Stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
PAGE = ROOT / "examples" / "page.png"
TRUTH = (ROOT / "examples" / "page.txt").read_text()
README = ROOT / "deploy" / "README.md"


@dataclass(frozen=True)
class Proxy:
    """The proxy's address, its certificate and a key that it knows."""

    stack: Stack
    certificate: Path
    key: str

    @property
    def address(self) -> str:
        return f"localhost:{self.stack.proxy_port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def http(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Status and text of one HTTPS request."""
        request = urllib.request.Request(f"https://{self.address}{path}", data=body, headers=headers)
        context = ssl.create_default_context(cafile=str(self.certificate))
        try:
            with urllib.request.urlopen(request, context=context, timeout=60) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def grpc(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.address, ssl=True, root_certificates=str(self.certificate))


@pytest.fixture(scope="module")
def proxy(images: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy and the server behind it, with secrets made by the README's own commands."""
    image = yaml.safe_load((ROOT / "deploy/compose.proxy.yml").read_text())["services"]["proxy"]["image"]
    provide_nginx(images, image)
    folder = tmp_path_factory.mktemp("secrets")
    (commands,) = re.findall(
        r"```sh\n(mkdir -p deploy/proxy/secrets\n.*?)```", README.read_text(), flags=re.DOTALL
    )
    script = commands.replace("deploy/proxy/secrets", str(folder))
    subprocess.run(["bash", "-euc", script], cwd=ROOT, check=True, capture_output=True)
    # A key from outside is added as any other would be, and the owner alone may read the files.
    key = secrets.token_hex(16)
    with (folder / "api_keys").open("a") as file:
        file.write(f'"Bearer {key}" tests;\n')
    owner = f"{os.getuid()}:{os.getgid()}" if os.getuid() else "1000:1000"
    for path in [folder, *folder.iterdir()]:
        assert path == folder or path.stat().st_mode & 0o077 == 0
        if not os.getuid():
            os.chown(path, 1000, 1000)
    stack = Stack(images, PROXY_FILES, PROXY_SECRETS=str(folder), PROXY_USER=owner)
    try:
        stack.compose("up", "-d", timeout=300)
        stack.wait_healthy()
        yield Proxy(stack, folder / "tls.crt", key)
    finally:
        stack.down()


def generate_body() -> bytes:
    return json.dumps({"IMAGE": base64.b64encode(PAGE.read_bytes()).decode(), "MODE": "tiny"}).encode()


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_our_client_reads_a_page_with_a_key(proxy: Proxy, scheme: str) -> None:
    with OcrClient(
        f"{scheme}://{proxy.address}", tls=Tls(ca=proxy.certificate), headers=proxy.headers
    ) as client:
        assert character_error_rate(client.ocr(PAGE, mode="tiny").markdown, TRUTH) < 0.1


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_our_client_says_that_the_key_is_wrong(proxy: Proxy, scheme: str, headers: dict[str, str]) -> None:
    with (
        OcrClient(f"{scheme}://{proxy.address}", tls=Tls(ca=proxy.certificate), headers=headers) as client,
        pytest.raises(AccessDenied, match="key is missing or unknown") as caught,
    ):
        client.ocr(PAGE, mode="tiny")
    assert "--header" in caught.value.advice


def test_a_run_with_a_wrong_key_stops_at_once_and_goes_on_with_the_right_one(
    proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pages(3))
    out = tmp_path / "out"

    def run(headers: dict[str, str]) -> Report:
        url = f"grpcs://{proxy.address}"
        with OcrClient(url, tls=Tls(ca=proxy.certificate), headers=headers) as client:
            layout = DocumentLayout(out, client.settings)
            batch = Batch(client, out, layout, options=OcrOptions(mode="tiny", max_tokens=4))
            return batch.run(find_sources([str(tmp_path / "a.pdf")]))

    refused = run({"authorization": "Bearer wrong"})
    assert isinstance(refused.stopped, AccessDenied)
    assert (refused.pages, refused.failures) == (0, [])
    done = run(proxy.headers)
    assert (done.pages, done.failures, done.stopped) == (3, [], None)


def test_plain_http_reads_a_page_with_a_key(proxy: Proxy) -> None:
    status, text = proxy.http("/v2/models/deepseek_ocr/generate", generate_body(), **proxy.headers)
    assert status == 200
    assert "Hello, reader!" in json.loads(text)["TEXT"]  # raw: with the tags that our client takes out


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer wrong", "Basic dGVzdHM6eA==", "KEY"])
def test_without_a_known_key_there_is_401(proxy: Proxy, header: str) -> None:
    header = header.replace("KEY", proxy.key)
    status, text = proxy.http("/v2/models/deepseek_ocr/generate", generate_body(), authorization=header)
    assert status == 401
    assert "key is missing or unknown" in json.loads(text)["error"]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_without_a_known_key_grpc_is_unauthenticated(proxy: Proxy, headers: dict[str, str]) -> None:
    with proxy.grpc() as client, pytest.raises(InferenceServerException, match="key is missing") as caught:
        client.is_server_ready(headers=headers)
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    url = f"grpcs://{proxy.address}"
    with (
        OcrClient(url, tls=Tls(ca=proxy.certificate), headers=headers) as ours,
        pytest.raises(ClientError, match="key is missing"),
    ):
        ours.ocr(PAGE, mode="tiny")


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/v2/models/decoder/infer",
        "/v2/models/deepseek_ocr/config",
        "/v2/models/stats",
        "/v2/repository/index",
        "/v2/systemsharedmemory/status",
        "/v2/trace/setting",
        "/v2/logging",
        "/v2/models/deepseek_ocr/../decoder/infer",
    ],
)
def test_what_reads_no_page_is_not_let_through(proxy: Proxy, path: str) -> None:
    status, text = proxy.http(path, None, **proxy.headers)
    assert (status, "lets only the calls through" in text) == (404, True)


def test_grpc_calls_that_read_no_page_are_not_let_through(proxy: Proxy) -> None:
    with proxy.grpc() as client:
        assert client.is_model_ready("deepseek_ocr", headers=proxy.headers)
        for call in (
            client.get_model_repository_index,
            client.get_log_settings,
            client.get_inference_statistics,
        ):
            with pytest.raises(InferenceServerException) as caught:
                call(headers=proxy.headers)
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_the_header_that_crashed_the_server_is_stripped(proxy: Proxy) -> None:
    image = triton.InferInput("IMAGE", [1], "BYTES")
    image.set_data_from_numpy(np.array([b"no image"], dtype=np.object_))
    answers: list[object] = []
    with proxy.grpc() as client:
        client.start_stream(
            callback=lambda result, error: answers.append(error or result),
            headers=proxy.headers | {"triton_grpc_error": "true"},
        )
        for _ in range(3):
            client.async_stream_infer("deepseek_ocr_stream", [image])
        client.stop_stream()
    # Triton ends a stream with a status of its own where it sees the header; without, each request is answered.
    assert len([each for each in answers if "INVALID_ARGUMENT" in str(each)]) == 3, answers
    assert proxy.stack.inspect()["RestartCount"] == 0
    assert proxy.http("/v2/health/ready", None, **proxy.headers)[0] == 200


def test_a_large_body_is_refused_before_it_is_read(proxy: Proxy) -> None:
    status, text = proxy.http("/v2/models/deepseek_ocr/generate", b"x" * (33 * 2**20), **proxy.headers)
    assert (status, json.loads(text)["error"]) == (413, "A request may have 32 MiB.")


def test_only_the_proxy_is_published(proxy: Proxy) -> None:
    published = proxy.stack.inspect()["NetworkSettings"]["Ports"]
    assert not [port for port, hosts in published.items() if hosts]
    ports = proxy.stack.inspect("proxy")["NetworkSettings"]["Ports"]
    assert [each["HostIp"] for each in ports["8443/tcp"]] == ["127.0.0.1"]


def test_old_tls_is_refused(proxy: Proxy) -> None:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        pytest.raises(ssl.SSLError),
        socket.create_connection(("127.0.0.1", proxy.stack.proxy_port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost"),
    ):
        pass


def test_the_log_names_callers_and_holds_no_key(proxy: Proxy) -> None:
    assert proxy.http("/v2/health/ready", None, **proxy.headers)[0] == 200
    log = proxy.stack.logs("proxy")
    assert '"tests" GET /v2/health/ready 200' in log
    assert proxy.key not in log


def test_the_proxy_runs_without_rights(proxy: Proxy) -> None:
    facts = proxy.stack.inspect("proxy")
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert facts["HostConfig"]["CapDrop"] == ["ALL"]
    text = proxy.stack.execute("cat", "/proc/1/status", service="proxy").stdout
    assert "Uid:\t0" not in text
    assert "CapEff:\t0000000000000000" in text
