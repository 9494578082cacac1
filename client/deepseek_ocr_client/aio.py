"""`AsyncOcrClient`: one page, a stream or a whole document from the server; the core of `OcrClient` too."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Final

from deepseek_ocr_client.connection import Attempts, Endpoint, Tls
from deepseek_ocr_client.documents import open_document
from deepseek_ocr_client.errors import (
    ClientError,
    InvalidRequest,
    RequestCancelled,
    ServerFailed,
    ServerUnavailable,
)
from deepseek_ocr_client.images import ImageInput, encode_image
from deepseek_ocr_client.markdown import MarkdownStream, labels_are_text
from deepseek_ocr_client.pages import Document, Page, PageResult
from deepseek_ocr_client.request import OcrOptions, RequestOptions, ResultBuilder, new_request_id
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.settings import ClientSettings

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # noqa: UP035 - typing has them from Python 3.11

    from deepseek_ocr_client.transport import GrpcTransport, HttpTransport

Reading = Callable[[Callable[[str], None]], Coroutine[Any, Any, OcrResult]]
"""Reads a page, gives its text to the function piece by piece, and returns the whole."""


class StreamState:
    """What a stream knows, synchronous or not: pieces of text come out of a queue, and then how it ended.

    `request_id` is the request's as the server logs it.
    """

    def __init__(self, request_id: str, prompt: str | None) -> None:
        self.request_id: Final = request_id
        self._prompt = prompt
        self._result: OcrResult | None = None
        self._ended = False

    @property
    def result(self) -> OcrResult:
        """The whole answer; `InvalidRequest` before the stream has ended."""
        if self._result is None:
            raise InvalidRequest("The stream hasn't ended yet: read it to its end first.")
        return self._result

    def _take(self, item: str | Future[OcrResult] | asyncio.Task[OcrResult]) -> str | None:
        """A piece, or None at the end, where the error of a request that failed is raised."""
        if isinstance(item, str):
            return item
        self._ended = True
        if item.cancelled():
            raise RequestCancelled("The request was cancelled.")
        self._result = item.result()
        return None

    def _markdown(self) -> MarkdownStream:
        return MarkdownStream(text_labels=labels_are_text(self._prompt))


class AsyncOcrStream(StreamState):
    """An async iterator over pieces of the model's text; `result` is there once it has ended.

    Leaving it early inside `async with`, cancelling its task or `cancel()` stops the request on the server.
    """

    def __init__(self, reading: Reading, request_id: str, prompt: str | None) -> None:
        super().__init__(request_id, prompt)
        self._reading = reading
        self._task: asyncio.Task[OcrResult] | None = None
        self._items: asyncio.Queue[str | asyncio.Task[OcrResult]] = asyncio.Queue()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._ended:
            raise StopAsyncIteration
        if self._task is None:
            self._task = asyncio.create_task(self._reading(self._items.put_nowait))
            self._task.add_done_callback(self._items.put_nowait)
        try:
            piece = self._take(await self._items.get())
        except BaseException:
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def markdown(self) -> AsyncIterator[str]:
        """The same stream as Markdown: tags removed, figures linked as `figure-1.jpg`, ..."""
        stream = self._markdown()
        async for piece in self:
            if ready := stream.feed(piece):
                yield ready
        if rest := stream.close():
            yield rest

    def cancel(self) -> None:
        """Stop the request on the server."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()

    def __del__(self) -> None:
        if self._task is not None and not self._task.done() and not self._task.get_loop().is_closed():
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])


class AsyncOcrClient:
    """`OcrClient` for asyncio: the same arguments, the same errors. Use it in an `async with` block.

    Cancelling a task cancels its request on the server (over gRPC).
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        shared_memory: bool = False,
        settings: ClientSettings | None = None,
    ) -> None:
        self.settings = settings or ClientSettings.from_env()
        self.endpoint = Endpoint.of(url or self.settings.url, tls, headers)
        if shared_memory and self.endpoint.http:
            raise InvalidRequest("Shared memory needs gRPC.", "Use a grpc:// address.")
        self.http_connections = self.settings.concurrency  # at most; 0 is no limit
        self._shared_memory = shared_memory
        self._transport: GrpcTransport | HttpTransport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def _connect(self) -> GrpcTransport | HttpTransport:
        """The transport of the running loop; made on first use, as each brings a heavy library with it."""
        if self._closed:
            raise ServerFailed("This client is closed.")
        loop = asyncio.get_running_loop()
        if self._transport is None or self._loop is not loop:
            from deepseek_ocr_client.transport import GrpcTransport, HttpTransport

            self._loop = loop
            self._transport = (
                HttpTransport(self.endpoint, self.settings, self.http_connections)
                if self.endpoint.http
                else GrpcTransport(self.endpoint, self.settings, self._shared_memory)
            )
        return self._transport

    async def ocr(
        self, image: ImageInput, *, request_id: str | None = None, **options: Unpack[RequestOptions]
    ) -> OcrResult:
        """Read one page; arguments as in `OcrClient.ocr`."""
        checked = OcrOptions(**options)
        encoded = await asyncio.to_thread(encode_image, image, self.settings)
        return await self.read(encoded, checked, request_id)

    async def stream(
        self, image: ImageInput, *, request_id: str | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncOcrStream:
        """Read one page and get its text as it's written; arguments as in `OcrClient.stream`. gRPC only."""
        checked = OcrOptions(**options)
        encoded = await asyncio.to_thread(encode_image, image, self.settings)
        return self.open_stream(encoded, checked, request_id)

    async def ocr_document(
        self,
        path: str | PathLike[str],
        *,
        pages: Iterable[int] | None = None,
        password: str | None = None,
        options: OcrOptions | None = None,
        concurrency: int | None = None,
    ) -> AsyncGenerator[PageResult, None]:
        """Read a PDF or an image file page by page, in order, lazily; as `OcrClient.ocr_document`."""
        with await asyncio.to_thread(open_document, path, self.settings, password) as document:
            numbers = document.choose(pages)
            async with aclosing(self.read_document(document, numbers, options, concurrency)) as results:
                async for result in results:
                    yield result

    async def read_document(
        self,
        document: Document,
        numbers: Iterable[int],
        options: OcrOptions | None = None,
        concurrency: int | None = None,
    ) -> AsyncGenerator[PageResult, None]:
        """Read the pages `numbers` of an open document, in that order, at most `concurrency` of them ahead."""
        limit = concurrency or self.settings.concurrency
        pending: deque[asyncio.Task[PageResult]] = deque()
        try:
            for number in numbers:
                page = await asyncio.to_thread(document.page, number)
                pending.append(asyncio.create_task(self.read_page(page, options or OcrOptions())))
                if len(pending) >= limit:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def read_page(self, page: Page, options: OcrOptions) -> PageResult:
        """Read a rendered page; a failure is returned, not raised."""
        if page.error is not None:
            return PageResult(page, error=page.error)
        try:
            return PageResult(page, result=await self.read(page.image, page.options(options)))
        except ClientError as error:
            return PageResult(page, error=error)

    async def read(
        self, image: bytes, options: OcrOptions, request_id: str | None = None, *, patient: bool = False
    ) -> OcrResult:
        """Read an encoded image with options that are made already.

        `patient`: keep asking a server that's full (up to `max_wait` seconds), as long jobs want it.
        """
        return await self._read(image, options, request_id, Attempts(options, self.settings, patient=patient))

    def open_stream(self, image: bytes, options: OcrOptions, request_id: str | None = None) -> AsyncOcrStream:
        """As `stream`, of an encoded image and options that are made already."""
        request_id = request_id or new_request_id()
        return AsyncOcrStream(self.reading(image, options, request_id), request_id, options.prompt)

    def reading(self, image: bytes, options: OcrOptions, request_id: str) -> Reading:
        """What a stream runs; its time limit begins now."""
        return partial(self._read, image, options, request_id, Attempts(options, self.settings))

    async def _read(
        self,
        image: bytes,
        options: OcrOptions,
        request_id: str | None,
        attempts: Attempts,
        give: Callable[[str], None] | None = None,
    ) -> OcrResult:
        """Ask until the server has an answer; with `give`, which gets the text, only until there's some of it."""
        if give is not None and self.endpoint.http:
            raise InvalidRequest(
                "Streaming needs gRPC.", "Use a grpc:// address, or ask for the whole answer with ocr()."
            )
        while True:
            builder = ResultBuilder(request_id or new_request_id(), options)
            limited, seconds = attempts.begin()
            request = self._connect().answers(image, limited, builder.request_id, seconds)
            try:
                async with aclosing(request) as answers:
                    async for answer in answers:
                        piece = builder.add(answer)
                        if give is not None and piece:
                            give(piece)
                return builder.build()
            except ServerUnavailable as error:
                if give is not None and builder.begun:
                    raise
                await asyncio.sleep(attempts.delay(error))

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name (`is_server_ready`, `get_server_metadata`, ...)."""
        return await self._connect().call(method, *arguments, **options)

    async def check(self) -> None:
        """Raise `ServerUnavailable` at once where no server answers, instead of trying again for a while."""
        await self.call("is_server_live")

    async def disconnect(self) -> None:
        """Close the connections; the next request opens new ones."""
        transport, self._transport = self._transport, None
        if transport is not None and self._loop is asyncio.get_running_loop():
            await transport.close()

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        await self.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
