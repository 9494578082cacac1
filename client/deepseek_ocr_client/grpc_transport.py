"""gRPC to Triton: unary calls and streams over reused connections, cancellation, shared memory."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tritonclient.grpc import InferenceServerClient, InferInput, KeepAliveOptions
from tritonclient.utils import InferenceServerException

from deepseek_ocr_client.connection import Target, triton_error
from deepseek_ocr_client.errors import (
    ClientError,
    InvalidRequest,
    RequestCancelled,
    ServerFailed,
    ServerUnavailable,
)
from deepseek_ocr_client.request import Answer, OcrOptions, build_inputs
from deepseek_ocr_client.settings import STREAM_MODEL, UNARY_MODEL, ClientSettings
from deepseek_ocr_client.shared_memory import shared_image

# A cancelled request holds its shared memory until its model has seen the cancel.
UNREGISTER_SECONDS = 10.0
UNREGISTER_PAUSE = 0.05


def keepalive(settings: ClientSettings) -> KeepAliveOptions:
    """Pings while a request runs, so that a host that went away is noticed."""
    return KeepAliveOptions(keepalive_time_ms=int(settings.keepalive_time * 1000))


def is_final(answer: Any) -> bool:
    """Whether Triton says that no answer follows this one."""
    parameters = answer.get_response().parameters
    return "triton_final_response" in parameters and bool(parameters["triton_final_response"].bool_param)


def has_outputs(answer: Any) -> bool:
    """Whether it's more than a final flag."""
    return len(answer.get_response().outputs) > 0


class AnswerStream:
    """Answers of one streamed request; `cancel` reaches the server and ends the iteration."""

    def __init__(
        self, client: Any, target: Target, give_back: Callable[[], None], received: queue.SimpleQueue[Any]
    ) -> None:
        self._client = client
        self._target = target
        self._give_back = give_back
        self._received = received
        self._lock = threading.Lock()
        self._open = True
        self._done = False

    def __iter__(self) -> Iterator[Answer]:
        return self

    def __next__(self) -> Answer:
        while not self._done:
            item = self._received.get()
            if item is None:  # cancelled from another thread
                raise RequestCancelled("The request was cancelled.")
            answer, error = item
            if error is not None:
                self.close()
                raise triton_error(error, self._target)
            if is_final(answer):
                self._done = True
                self.close(cancel=False)
            if has_outputs(answer):
                return answer  # type: ignore[no-any-return]
        raise StopIteration

    def cancel(self) -> None:
        """Stop the request on the server; may be called from any thread, and twice."""
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self, cancel: bool = True) -> None:
        """End the stream and give the connection back."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._done = True
        self._received.put(None)
        self._client.stop_stream(cancel_requests=cancel)
        self._give_back()


class GrpcTransport:
    """Synchronous gRPC; safe to use from several threads, each stream has a client object of its own."""

    def __init__(self, target: Target, settings: ClientSettings, *, shared_memory: bool = False) -> None:
        self.target = target
        self._settings = settings
        self._shared_memory = shared_memory
        self._headers = {**target.headers}
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._closed = False
        self._streams: weakref.WeakSet[AnswerStream] = weakref.WeakSet()

    def infer(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> Answer:
        """One request, one answer, from the unary model."""
        with self._connection() as client, self._image(client, image, options) as inputs:
            return client.infer(  # type: ignore[no-any-return]
                UNARY_MODEL,
                inputs,
                request_id=request_id,
                headers=self._headers,
                client_timeout=timeout,
            )

    def stream(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> AnswerStream:
        """One request, its answers as they come, from the streaming model."""
        cleanup = ExitStack()
        client = self._take()
        cleanup.callback(self._give, client)
        received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            inputs = cleanup.enter_context(self._image(client, image, options))
            client.start_stream(
                lambda result, error: received.put((result, error)),
                stream_timeout=timeout,
                headers=self._headers,
            )
            client.async_stream_infer(
                STREAM_MODEL, inputs, request_id=request_id, enable_empty_final_response=True
            )
        except BaseException as error:
            client.stop_stream(cancel_requests=True)
            cleanup.close()
            if not isinstance(error, InferenceServerException):
                raise
            # A stream that broke before the request was on it says why in its own answer.
            reason = error if received.empty() else received.get()[1] or error
            raise triton_error(reason, self.target) from None
        answers = AnswerStream(client, self.target, cleanup.close, received)
        with self._lock:
            self._streams.add(answers)
        return answers

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name (`is_server_ready`, `get_server_metadata`, ...)."""
        with self._connection() as client:
            return getattr(client, method)(
                *arguments,
                headers=self._headers,
                client_timeout=self._settings.connect_timeout,
                **options,
            )

    def cancel(self) -> None:
        """Cancel every stream under way."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()

    def close(self) -> None:
        """Close idle connections; those in use close when their request ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def _take(self) -> Any:
        with self._lock:
            if self._closed:
                raise ServerFailed("This client is closed.")
            if self._idle:
                return self._idle.pop()
        ca, certificate, key = self.target.tls.paths if self.target.tls else (None, None, None)
        return InferenceServerClient(
            self.target.address,
            ssl=self.target.tls is not None,
            root_certificates=ca,
            certificate_chain=certificate,
            private_key=key,
            keepalive_options=keepalive(self._settings),
        )

    def _give(self, client: Any) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(client)
                return
        client.close()

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        client = self._take()
        try:
            yield client
        except InferenceServerException as error:
            raise triton_error(error, self.target) from None
        finally:
            self._give(client)

    def _unregister(self, client: Any, name: str) -> None:
        """Have the server let go of a region, as soon as no request uses it."""
        until = time.monotonic() + UNREGISTER_SECONDS
        while time.monotonic() < until:
            try:
                client.unregister_system_shared_memory(name, headers=self._headers)
                return
            except InferenceServerException as error:
                found = triton_error(error, self.target)
                if isinstance(found, ServerUnavailable) and not found.answered:
                    return  # a server that's gone holds no region
                time.sleep(UNREGISTER_PAUSE)

    @contextmanager
    def _image(self, client: Any, image: bytes, options: OcrOptions) -> Iterator[list[Any]]:
        if not self._shared_memory:
            yield build_inputs(image, options, InferInput)
            return
        with shared_image(image, options, InferInput) as region:
            try:
                client.register_system_shared_memory(
                    region.name, region.key, region.size, headers=self._headers
                )
            except InferenceServerException as error:
                raise _refused_region(error, self.target) from None
            try:
                yield region.inputs
            finally:
                self._unregister(client, region.name)


def _refused_region(error: Any, target: Target) -> ClientError:
    """The error for a server that doesn't take shared memory."""
    found = triton_error(error, target)
    if isinstance(found, ServerUnavailable) and not found.answered:
        return found
    return InvalidRequest(
        f"The server at {target} takes no shared memory from this client: {found}",
        "Do without it, or allow it on the server; both must run on one host.",
    )
