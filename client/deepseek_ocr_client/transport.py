"""gRPC and HTTP to Triton: one request and its answers, over connections that are kept; shared memory.

Both classes have the same methods. An object belongs to the event loop that it was made in.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from deepseek_ocr_client.connection import Endpoint, Tls
from deepseek_ocr_client.contract import IMAGE
from deepseek_ocr_client.errors import (
    ClientError,
    InvalidRequest,
    ServerUnavailable,
    TimeLimitExceeded,
    no_server,
    triton_error,
)
from deepseek_ocr_client.request import Answer, OcrOptions, build_inputs
from deepseek_ocr_client.settings import STREAM_MODEL, UNARY_MODEL, ClientSettings

# A cancelled request holds its shared memory until its model has seen the cancel.
UNREGISTER_SECONDS = 10.0
UNREGISTER_PAUSE = 0.05


class GrpcTransport:
    """Streams of the streaming model, because only a stream can be cancelled; one channel carries them all."""

    def __init__(self, endpoint: Endpoint, settings: ClientSettings, shared_memory: bool) -> None:
        import grpc
        from tritonclient.grpc import InferInput, KeepAliveOptions
        from tritonclient.grpc.aio import InferenceServerClient

        self._endpoint = endpoint
        self._settings = settings
        self._shared_memory = shared_memory
        self._headers = dict(endpoint.headers)
        self._tensor = InferInput
        self._rpc_error = grpc.RpcError
        self._ready = grpc.ChannelConnectivity.READY
        self._internal = grpc.StatusCode.INTERNAL
        tls = endpoint.tls or Tls()
        self._client = InferenceServerClient(
            endpoint.address,
            ssl=endpoint.tls is not None,
            root_certificates=tls.ca,
            certificate_chain=tls.certificate,
            private_key=tls.key,
            # Pings while a request runs, however long it is silent, so that a host that went away is noticed.
            keepalive_options=KeepAliveOptions(
                keepalive_time_ms=int(settings.keepalive_time * 1000), http2_max_pings_without_data=0
            ),
        )

    async def answers(
        self, image: bytes, options: OcrOptions, request_id: str, timeout: float
    ) -> AsyncGenerator[Answer, None]:
        """One request to the streaming model, its answers as they come; closing the iterator stops it.

        `timeout`: seconds for all of them. What goes wrong is raised as a `ClientError`.
        """
        async with self._inputs(image, options) as inputs:

            async def requests() -> AsyncIterator[dict[str, Any]]:
                # Ending here half-closes the stream, so Triton closes it after the last answer.
                yield {"model_name": STREAM_MODEL, "inputs": inputs, "request_id": request_id}

            responses = self._client.stream_infer(requests(), stream_timeout=timeout, headers=self._headers)
            try:
                async for answer, error in responses:
                    if error is not None:
                        raise self._error(error)
                    if answer.get_response().outputs:
                        yield answer
            except self._rpc_error as error:
                if error.code() is self._internal:
                    # Triton's comes inside the stream. This is gRPC's own: the call ended while the image was
                    # written, and why is lost. A small call is refused for the same reason, if there is one.
                    await self.call("is_server_ready")
                    raise no_server(self._endpoint) from None
                raise self._error(error) from None
            finally:
                responses.cancel()  # does nothing after the stream's end

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name (`is_server_ready`, `get_server_metadata`, ...)."""
        options = {"client_timeout": self._settings.connect_timeout, **options}
        try:
            return await getattr(self._client, method)(*arguments, headers=self._headers, **options)
        except InferenceServerException as error:
            raise self._error(error) from None

    async def close(self) -> None:
        """Close the channel; what is on it is cancelled."""
        await self._client.close()

    def _error(self, error: Any) -> ClientError:
        # tritonclient keeps the channel to itself, and nothing else tells a server's UNAVAILABLE from gRPC's own.
        state = self._client._channel.get_state()
        return triton_error(error, self._endpoint, connected=state is self._ready)

    @asynccontextmanager
    async def _inputs(self, image: bytes, options: OcrOptions) -> AsyncIterator[list[Any]]:
        """The input tensors, with the image in a region of shared memory of its own where that was asked for."""
        if not self._shared_memory:
            yield build_inputs(image, options, self._tensor)
            return
        from tritonclient.utils import shared_memory

        serialized = serialize_byte_tensor(np.array([image], object))  # four bytes of length, then the image
        size = len(serialized.item())
        name = f"deepseek-ocr-{uuid.uuid4().hex}"  # unguessable, so that nobody else finds the page
        region = shared_memory.create_shared_memory_region(name, "/" + name, size, create_only=True)
        try:
            shared_memory.set_shared_memory_region(region, [serialized])
            entry = self._tensor(IMAGE.name, list(IMAGE.shape), IMAGE.dtype)
            entry.set_shared_memory(name, size)
            inputs = [entry, *build_inputs(b"", options, self._tensor)[1:]]
            await self._register(name, size)
            try:
                yield inputs
            finally:
                await self._unregister(name)
        finally:
            shared_memory.destroy_shared_memory_region(region)

    async def _register(self, name: str, size: int) -> None:
        try:
            await self.call("register_system_shared_memory", name, "/" + name, size)
        except ClientError as error:
            if isinstance(error, ServerUnavailable) and not error.answered:
                raise
            raise InvalidRequest(
                f"The server at {self._endpoint} takes no shared memory from this client: {error}",
                "Do without it, or allow it on the server; both must run on one host.",
                status=error.status,
            ) from None

    async def _unregister(self, name: str) -> None:
        """Have the server let go of a region, as soon as no request uses it."""
        until = time.monotonic() + UNREGISTER_SECONDS
        while time.monotonic() < until:
            try:
                await self.call("unregister_system_shared_memory", name)
                return
            except ClientError as error:
                if isinstance(error, ServerUnavailable) and not error.answered:
                    return  # a server that's gone holds no region
                await asyncio.sleep(UNREGISTER_PAUSE)


class HttpTransport:
    """Whole answers of the unary model, for where gRPC doesn't get through; the server finishes each of them."""

    def __init__(self, endpoint: Endpoint, settings: ClientSettings, connections: int) -> None:
        """`connections`: how many at most; 0 is no limit."""
        import aiohttp
        from tritonclient.http import InferInput
        from tritonclient.http.aio import InferenceServerClient

        self._endpoint = endpoint
        self._settings = settings
        self._headers = dict(endpoint.headers)
        self._tensor = InferInput
        self._connection_errors = (aiohttp.ClientError, OSError)
        context = tls_context(endpoint)
        self._client = InferenceServerClient(
            endpoint.address, conn_limit=connections, ssl=context is not None, ssl_context=context
        )
        # Each call has its own time limit; tritonclient has no option for that, nor for the time to connect.
        self._client._stub._timeout = aiohttp.ClientTimeout(sock_connect=settings.connect_timeout)

    async def answers(
        self, image: bytes, options: OcrOptions, request_id: str, timeout: float
    ) -> AsyncGenerator[Answer, None]:
        """One request to the unary model, and its one answer."""
        inputs = build_inputs(image, options, self._tensor)
        yield await self._within(
            timeout, self._client.infer(UNARY_MODEL, inputs, request_id=request_id, headers=self._headers)
        )

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name."""
        return await self._within(
            self._settings.connect_timeout,
            getattr(self._client, method)(*arguments, headers=self._headers, **options),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _within(self, timeout: float, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await asyncio.wait_for(call, timeout)
        except InferenceServerException as error:
            raise triton_error(error, self._endpoint, connected=True) from None
        except asyncio.TimeoutError:  # noqa: UP041 - a class of its own before Python 3.11
            raise TimeLimitExceeded(
                f"{self._endpoint} didn't answer within {timeout:.0f} s.",
                "Give it more time with --timeout, or time_limit= in Python.",
            ) from None
        except self._connection_errors:
            raise no_server(self._endpoint) from None


def tls_context(endpoint: Endpoint) -> ssl.SSLContext | None:
    """A context that checks the server's certificate, with the endpoint's files; None without TLS."""
    if endpoint.tls is None:
        return None
    context = ssl.create_default_context(cafile=endpoint.tls.ca)
    if endpoint.tls.certificate is not None:
        context.load_cert_chain(endpoint.tls.certificate, endpoint.tls.key)
    return context
