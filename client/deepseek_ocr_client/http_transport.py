"""HTTP to Triton, for whole answers where gRPC doesn't get through; no streams, no cancellation."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from deepseek_ocr_client.connection import Target, to_client_error, triton_error
from deepseek_ocr_client.errors import ClientError, InvalidRequest, TimeLimitExceeded
from deepseek_ocr_client.request import Answer, OcrOptions, build_inputs
from deepseek_ocr_client.settings import UNARY_MODEL, ClientSettings


def tls_context(target: Target) -> ssl.SSLContext | None:
    """A context that checks the server's certificate, with the target's files; None without TLS."""
    if target.tls is None:
        return None
    ca, certificate, key = target.tls.paths
    context = ssl.create_default_context(cafile=ca)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def http_error(error: Exception, target: Target) -> ClientError:
    """The client's error for whatever the HTTP stack raised."""
    if isinstance(error, ClientError):
        return error
    if isinstance(error, InferenceServerException):
        return triton_error(error, target)
    if isinstance(error, TimeoutError):
        return TimeLimitExceeded(
            f"{target} didn't answer within the time limit.", "Give it more time with --timeout."
        )
    if isinstance(error, ssl.SSLError):
        return to_client_error(f"TLS handshake failed: {error}", "UNAVAILABLE", target)
    return to_client_error("failed to connect", "x.UNAVAILABLE", target)


class HttpTransport:
    """Synchronous HTTP; a connection a thread, because tritonclient's HTTP client can't be shared."""

    def __init__(self, target: Target, settings: ClientSettings) -> None:
        self.target = target
        self._settings = settings
        self._local = threading.local()
        self._open: list[Any] = []
        self._lock = threading.Lock()

    def infer(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> Answer:
        """One request, one answer, from the unary model."""
        inputs = build_inputs(image, options, InferInput)
        with self._connection(timeout) as client:
            return client.infer(  # type: ignore[no-any-return]
                UNARY_MODEL, inputs, request_id=request_id, headers=dict(self.target.headers)
            )

    def stream(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> NoReturn:
        """Not over HTTP."""
        raise InvalidRequest(
            "Streaming needs gRPC.", "Use a grpc:// address, or ask for the whole answer with ocr()."
        )

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name."""
        with self._connection(self._settings.connect_timeout) as client:
            return getattr(client, method)(*arguments, headers=dict(self.target.headers), **options)

    def cancel(self) -> None:
        """Not over HTTP: requests under way go on until their time limit."""

    def close(self) -> None:
        """Close every thread's connections."""
        with self._lock:
            clients, self._open = self._open, []
        for client in clients:
            client.close()

    @contextmanager
    def _connection(self, timeout: float) -> Iterator[Any]:
        clients = self._local.__dict__.setdefault("clients", {})
        client = clients.get(timeout)  # the HTTP client takes its time-out when it's made
        if client is None:
            client = clients[timeout] = self._connect(timeout)
            with self._lock:
                self._open.append(client)
        try:
            yield client
        except (InferenceServerException, OSError) as error:
            raise http_error(error, self.target) from None

    def _connect(self, timeout: float) -> Any:
        context = tls_context(self.target)
        factory: Callable[[], ssl.SSLContext] | None = None if context is None else lambda: context
        return InferenceServerClient(
            self.target.address,
            ssl=context is not None,
            ssl_context_factory=factory,
            connection_timeout=self._settings.connect_timeout,
            network_timeout=timeout,
        )
