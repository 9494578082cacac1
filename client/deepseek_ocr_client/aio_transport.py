"""gRPC and HTTP to Triton for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import aiohttp
import grpc
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException

from deepseek_ocr_client.connection import Target, triton_error
from deepseek_ocr_client.errors import InvalidRequest, TimeLimitExceeded
from deepseek_ocr_client.grpc_transport import has_outputs, keepalive
from deepseek_ocr_client.http_transport import http_error, tls_context
from deepseek_ocr_client.request import Answer, OcrOptions, build_inputs
from deepseek_ocr_client.settings import STREAM_MODEL, UNARY_MODEL, ClientSettings


class AsyncAnswerStream:
    """Answers of one streamed request."""

    def __init__(self, responses: Any, target: Target) -> None:
        self._responses = responses
        self._target = target

    async def __anext__(self) -> Answer:
        while True:
            try:
                answer, error = await self._responses.__anext__()
            except grpc.RpcError as failure:
                raise triton_error(failure, self._target) from None
            if error is not None:
                raise triton_error(error, self._target)
            if has_outputs(answer):
                return answer  # type: ignore[no-any-return]

    def cancel(self) -> None:
        """Stop the request on the server; does nothing after its end."""
        self._responses.cancel()


class AsyncGrpcTransport:
    """One channel for everything: HTTP/2 carries all streams."""

    def __init__(self, target: Target, settings: ClientSettings) -> None:
        self.target = target
        self._settings = settings
        ca, certificate, key = target.tls.paths if target.tls else (None, None, None)
        self._client = triton_grpc.InferenceServerClient(
            target.address,
            ssl=target.tls is not None,
            root_certificates=ca,
            certificate_chain=certificate,
            private_key=key,
            keepalive_options=keepalive(settings),
        )

    async def infer(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> Answer:
        """One request, one answer, from the unary model."""
        try:
            return await self._client.infer(  # type: ignore[no-any-return]
                UNARY_MODEL,
                build_inputs(image, options, triton_grpc.InferInput),
                request_id=request_id,
                headers=dict(self.target.headers),
                client_timeout=timeout,
            )
        except InferenceServerException as error:
            raise triton_error(error, self.target) from None

    def stream(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> AsyncAnswerStream:
        """One request, its answers as they come, from the streaming model."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            # Ending here half-closes the stream, so Triton closes it after the last answer.
            yield {
                "model_name": STREAM_MODEL,
                "inputs": build_inputs(image, options, triton_grpc.InferInput),
                "request_id": request_id,
            }

        responses = self._client.stream_infer(
            requests(), stream_timeout=timeout, headers=dict(self.target.headers)
        )
        return AsyncAnswerStream(responses, self.target)

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name."""
        try:
            return await getattr(self._client, method)(
                *arguments,
                headers=dict(self.target.headers),
                client_timeout=self._settings.connect_timeout,
                **options,
            )
        except InferenceServerException as error:
            raise triton_error(error, self.target) from None

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()


class AsyncHttpTransport:
    """HTTP for whole answers; no streams, no cancellation."""

    def __init__(self, target: Target, settings: ClientSettings) -> None:
        self.target = target
        self._settings = settings
        context = tls_context(target)
        self._client = triton_http.InferenceServerClient(
            target.address,
            conn_limit=max(settings.concurrency, 1),
            conn_timeout=settings.max_wait + settings.deadline_grace,  # each call has its own, shorter limit
            ssl=context is not None,
            ssl_context=context,
        )

    async def infer(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> Answer:
        """One request, one answer, from the unary model."""
        inputs = build_inputs(image, options, triton_http.InferInput)
        return await self._within(  # type: ignore[no-any-return]
            timeout,
            self._client.infer(UNARY_MODEL, inputs, request_id=request_id, headers=dict(self.target.headers)),
        )

    def stream(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> NoReturn:
        """Not over HTTP."""
        raise InvalidRequest(
            "Streaming needs gRPC.", "Use a grpc:// address, or ask for the whole answer with ocr()."
        )

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name."""
        return await self._within(
            self._settings.connect_timeout,
            getattr(self._client, method)(*arguments, headers=dict(self.target.headers), **options),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _within(self, timeout: float, call: Any) -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await call
        except TimeoutError:
            raise TimeLimitExceeded(
                f"{self.target} didn't answer within {timeout:.0f} s.", "Give it more time with time_limit."
            ) from None
        except (InferenceServerException, OSError, aiohttp.ClientError) as error:
            raise http_error(error, self.target) from None
