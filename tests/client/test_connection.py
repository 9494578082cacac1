"""Addresses, statuses and backoff."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from deepseek_ocr_client.connection import Attempts, Endpoint, Tls
from deepseek_ocr_client.errors import (
    AccessDenied,
    ClientError,
    ExitCode,
    InvalidRequest,
    RequestCancelled,
    ServerFailed,
    ServerUnavailable,
    TimeLimitExceeded,
    triton_error,
)
from deepseek_ocr_client.prometheus import fetch
from deepseek_ocr_client.request import OcrOptions
from deepseek_ocr_client.settings import ClientSettings

SERVER = Endpoint.of("example:8001")


@pytest.mark.parametrize(
    ("url", "address", "http", "encrypted"),
    [
        ("example", "example:8001", False, False),
        ("example:9", "example:9", False, False),
        ("grpc://example", "example:8001", False, False),
        ("grpcs://example:443", "example:443", False, True),
        ("http://example", "example:8000", True, False),
        ("https://example/", "example:443", True, True),
        ("grpc://[::1]:8001", "[::1]:8001", False, False),
    ],
)
def test_addresses(url: str, address: str, http: bool, encrypted: bool) -> None:
    endpoint = Endpoint.of(url)
    assert (endpoint.address, endpoint.http, endpoint.tls is not None) == (address, http, encrypted)


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "a b", "x:99999", "x:0", "http://u:p@x", "http://x/v2", "x:y"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        Endpoint.of(url)


def test_tls_files_must_be_there_and_encrypt(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("x")
    assert Endpoint.of("example", Tls(ca)).tls == Tls(ca)
    with pytest.raises(InvalidRequest, match="isn't encrypted"):
        Endpoint.of("http://example", Tls(ca))
    with pytest.raises(InvalidRequest, match="no TLS file"):
        Tls(tmp_path / "none.pem")
    with pytest.raises(InvalidRequest, match="its key"):
        Tls(ca, ca)


@pytest.mark.parametrize("headers", [{"a b": "x"}, {"a": "x\r\nEvil: 1"}, {"": "x"}])
def test_headers_cannot_smuggle(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="header"):
        Endpoint.of("example", headers=headers)


@pytest.mark.parametrize(
    ("message", "status", "kind", "code"),
    [
        ("bad image", "StatusCode.INVALID_ARGUMENT", InvalidRequest, ExitCode.INPUT),
        ("bad image", "400", InvalidRequest, ExitCode.INPUT),
        ("busy", "StatusCode.UNAVAILABLE", ServerUnavailable, ExitCode.UNAVAILABLE),
        ("busy", "503", ServerUnavailable, ExitCode.UNAVAILABLE),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", TimeLimitExceeded, ExitCode.TIMEOUT),
        ("no key", "StatusCode.UNAUTHENTICATED", AccessDenied, ExitCode.ACCESS),
        ("no key", "StatusCode.PERMISSION_DENIED", AccessDenied, ExitCode.ACCESS),
        ("no key", "401", AccessDenied, ExitCode.ACCESS),
        (None, "403", AccessDenied, ExitCode.ACCESS),
        ("gone", "StatusCode.CANCELLED", RequestCancelled, ExitCode.INTERRUPTED),
        ("oh", "StatusCode.INTERNAL", ServerFailed, ExitCode.SERVER),
        ("oh", "500", ServerFailed, ExitCode.SERVER),
        ("INVALID_ARGUMENT: bad image", None, InvalidRequest, ExitCode.INPUT),
        ("UNAVAILABLE: busy", None, ServerUnavailable, ExitCode.UNAVAILABLE),
        ("in ensemble 'a', in ensemble 'b', INVALID_ARGUMENT: no", "400", InvalidRequest, ExitCode.INPUT),
        ("in ensemble 'a', UNAVAILABLE: busy", None, ServerUnavailable, ExitCode.UNAVAILABLE),
        ("INTERNAL: oh", None, ServerFailed, ExitCode.SERVER),
        ("a stream's error without a status", None, ServerFailed, ExitCode.SERVER),
        ("Request for unknown model: 'x' is not found", None, ServerUnavailable, ExitCode.UNAVAILABLE),
        ("several\nlines", "StatusCode.INTERNAL", ServerFailed, ExitCode.SERVER),
        (None, "StatusCode.UNKNOWN", ServerFailed, ExitCode.SERVER),
    ],
)
def test_statuses_become_errors(
    message: str | None, status: str | None, kind: type[ClientError], code: ExitCode
) -> None:
    error = triton_error(InferenceServerException(message, status), SERVER)
    assert type(error) is kind
    assert error.exit_code == code
    assert "\n" not in str(error)
    assert "INVALID_ARGUMENT" not in str(error)
    assert "ensemble" not in str(error)


@pytest.mark.parametrize(
    "message", ["failed to connect to all addresses", "Connection refused", "Socket closed"]
)
def test_a_server_that_is_not_there_is_told_from_a_busy_one(message: str) -> None:
    gone = triton_error(InferenceServerException(message, "StatusCode.UNAVAILABLE"), SERVER)
    assert isinstance(gone, ServerUnavailable)
    assert not gone.answered
    assert "grpc://example:8001" in str(gone)
    busy = triton_error(InferenceServerException("UNAVAILABLE: The server is busy."), SERVER)
    assert isinstance(busy, ServerUnavailable)
    assert busy.answered


def waits(
    settings: ClientSettings, error: ServerUnavailable, seconds: float = 1000, patient: bool = False
) -> list[float]:
    """The first 100 waits between attempts, or as many as there are within `seconds`."""
    attempts = Attempts(OcrOptions(time_limit=seconds), settings, patient=patient)
    found: list[float] = []
    with suppress(ServerUnavailable):
        while len(found) < 100:
            found.append(attempts.delay(error))
    return found


@pytest.mark.parametrize(
    ("limit", "patient", "asked", "waited"),
    [
        (20, False, (19, 20), (22, 23)),  # what is left of the whole, and the grace of three seconds
        (20, True, (20, 20), (23, 23)),  # each attempt anew
        (None, False, None, (99, 100)),  # no limit told to the server, the client's own wait
    ],
)
def test_what_an_attempt_may_take(
    limit: float | None, patient: bool, asked: tuple[float, float] | None, waited: tuple[float, float]
) -> None:
    settings = ClientSettings(timeout=0, deadline_grace=3, max_wait=100)
    options, deadline = Attempts(OcrOptions(time_limit=limit), settings, patient=patient).begin()
    assert waited[0] < deadline <= waited[1] or deadline == waited[0] == waited[1]
    if asked is None:
        assert options.time_limit is None
    else:
        assert options.time_limit is not None
        assert asked[0] <= options.time_limit <= asked[1]


def test_backoff_doubles_with_jitter_and_ends() -> None:
    settings = ClientSettings(retries=5, backoff=1, backoff_max=4)
    found = waits(settings, ServerUnavailable("x"))
    assert len(found) == 5
    for wait, longest in zip(found, [1, 2, 4, 4, 4], strict=True):
        assert longest / 2 <= wait <= longest


def test_backoff_ends_with_the_deadline() -> None:
    assert waits(ClientSettings(), ServerUnavailable("x"), seconds=0.01) == []


def test_patience_is_for_servers_that_answer() -> None:
    settings = ClientSettings(retries=2, backoff=1, backoff_max=4, retry_seconds=0.01)
    busy, gone = ServerUnavailable("x", answered=True), ServerUnavailable("x")
    assert len(waits(settings, busy, patient=True)) == 100
    assert len(waits(settings, gone, patient=True)) == 0
    assert len(waits(ClientSettings(retries=0), gone, patient=True)) == 100
    assert len(waits(settings, busy)) == 2


def test_settings_come_from_the_environment() -> None:
    settings = ClientSettings.from_env({"DEEPSEEK_OCR_URL": "a:1", "DEEPSEEK_OCR_RETRIES": "9", "OTHER": "x"})
    assert (settings.url, settings.retries) == ("a:1", 9)
    for wrong in ({"DEEPSEEK_OCR_DPI": "many"}, {"DEEPSEEK_OCR_DPI": "0"}, {"DEEPSEEK_OCR_RETRIES": "-1"}):
        with pytest.raises(InvalidRequest):
            ClientSettings.from_env(wrong)


def test_metrics_of_what_speaks_no_http_are_one_sentence() -> None:
    """As the port of gRPC answers, which is often mistaken for that of the metrics."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\xff\xff\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServerUnavailable, match="No metrics at "):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/metrics", 5)
        thread.join()
