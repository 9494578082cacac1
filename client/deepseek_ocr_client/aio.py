"""`AsyncOcrClient`: the same client for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from os import PathLike
from typing import Any, Protocol, Self

from deepseek_ocr_client.connection import Backoff, Target, Tls
from deepseek_ocr_client.documents import Page, PageResult, open_document
from deepseek_ocr_client.errors import ClientError, InvalidRequest, ServerUnavailable
from deepseek_ocr_client.images import ImageInput, encode_image
from deepseek_ocr_client.markdown import MarkdownStream, labels_are_text
from deepseek_ocr_client.ocr import Clock
from deepseek_ocr_client.request import Answer, OcrOptions, ResultBuilder, new_request_id
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.settings import ClientSettings


class AsyncAnswers(Protocol):
    """The answers of a streamed request."""

    async def __anext__(self) -> Answer: ...

    def cancel(self) -> None:
        """Stop the request on the server."""


class AsyncTransport(Protocol):
    """What gRPC and HTTP have in common."""

    async def infer(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> Answer:
        """One request, one answer."""

    def stream(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> AsyncAnswers:
        """One request, its answers as they come."""

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name."""

    async def close(self) -> None:
        """Close the connections."""


class AsyncOcrStream:
    """An async iterator over pieces of the model's text; `result` is there once it has ended.

    Leaving it early inside `async with`, cancelling its task or `cancel()` stops the request on the server.
    """

    def __init__(self, start: Callable[[], AsyncAnswers], builder: ResultBuilder, backoff: Backoff) -> None:
        self._start = start
        self._builder = builder
        self._backoff = backoff
        self._answers: AsyncAnswers | None = None
        self._result: OcrResult | None = None
        self._ended = False

    @property
    def request_id(self) -> str:
        """The request's id, as the server logs it."""
        return self._builder.request_id

    @property
    def result(self) -> OcrResult:
        """The whole answer; `InvalidRequest` before the stream has ended."""
        if self._result is None:
            raise InvalidRequest("The stream hasn't ended yet: read it to its end first.")
        return self._result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            while not self._ended:
                answer = await self._next()
                if answer is None:
                    self._ended = True
                    self._result = self._builder.build()
                    break
                piece = self._builder.add(answer)
                if piece:
                    return piece
        except BaseException:
            self.cancel()
            raise
        raise StopAsyncIteration

    async def _next(self) -> Answer | None:
        """The next answer, or None at the end; only the first is tried again, when nothing was given out."""
        if self._answers is not None:
            return await _step(self._answers)
        while True:
            try:
                answers = self._start()
                first = await _step(answers)
            except ServerUnavailable as error:
                await asyncio.sleep(self._backoff.delay(error))
            else:
                self._answers = answers
                return first

    async def markdown(self) -> AsyncIterator[str]:
        """The same stream as Markdown: tags removed, figures linked as `figure-1.jpg`, ..."""
        stream = MarkdownStream(text_labels=labels_are_text(self._builder.options.prompt))
        async for piece in self:
            ready = stream.feed(piece)
            if ready:
                yield ready
        rest = stream.close()
        if rest:
            yield rest

    def cancel(self) -> None:
        """Stop the request on the server."""
        self._ended = True
        if self._answers is not None:
            self._answers.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


async def _step(answers: AsyncAnswers) -> Answer | None:
    try:
        return await answers.__anext__()
    except StopAsyncIteration:
        return None
    except BaseException:
        answers.cancel()
        raise


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
        settings: ClientSettings | None = None,
    ) -> None:
        self.settings = settings or ClientSettings.from_env()
        self.target = Target.of(url or self.settings.url, tls, headers)
        self._transport: AsyncTransport | None = None

    @property
    def transport(self) -> AsyncTransport:
        """The connection; made on first use, inside the running loop."""
        if self._transport is None:
            self._transport = _open_transport(self.target, self.settings)
        return self._transport

    async def ocr(
        self,
        image: ImageInput,
        *,
        mode: str | None = None,
        prompt: str | None = None,
        retention: float | None = None,
        max_tokens: int | None = None,
        no_repeat_ngram: tuple[int, int] | None = None,
        time_limit: float | None = None,
        request_id: str | None = None,
    ) -> OcrResult:
        """Read one page; arguments as in `OcrClient.ocr`."""
        options = OcrOptions(mode, prompt, retention, max_tokens, no_repeat_ngram, time_limit)
        data = await asyncio.to_thread(encode_image, image, self.settings)
        return await self.read(data, options, request_id)

    async def stream(
        self,
        image: ImageInput,
        *,
        mode: str | None = None,
        prompt: str | None = None,
        retention: float | None = None,
        max_tokens: int | None = None,
        no_repeat_ngram: tuple[int, int] | None = None,
        time_limit: float | None = None,
        request_id: str | None = None,
    ) -> AsyncOcrStream:
        """Read one page and get its text as it's written; arguments as in `OcrClient.stream`. gRPC only."""
        options = OcrOptions(mode, prompt, retention, max_tokens, no_repeat_ngram, time_limit)
        return self.open_stream(
            await asyncio.to_thread(encode_image, image, self.settings), options, request_id
        )

    async def ocr_document(
        self,
        path: str | PathLike[str],
        *,
        pages: Iterable[int] | None = None,
        password: str | None = None,
        options: OcrOptions | None = None,
        concurrency: int | None = None,
    ) -> AsyncIterator[PageResult]:
        """Read a PDF or an image file page by page, in order, lazily; as `OcrClient.ocr_document`."""
        limit = concurrency or self.settings.concurrency
        document = await asyncio.to_thread(open_document, path, self.settings, password)
        pending: deque[asyncio.Task[PageResult]] = deque()
        with document:
            try:
                for number in document.choose(pages):
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
            return PageResult(page, result=await self.read(page.image, options))
        except ClientError as error:
            return PageResult(page, error=error)

    async def read(self, image: bytes, options: OcrOptions, request_id: str | None = None) -> OcrResult:
        """Read an encoded image with options that are made already."""
        clock = Clock(options, self.settings)
        backoff = Backoff(self.settings, clock.end)
        while True:
            builder = ResultBuilder(request_id or new_request_id(), options)
            try:
                await self._collect(builder, image, clock)
                return builder.build()
            except ServerUnavailable as error:
                await asyncio.sleep(backoff.delay(error))

    async def _collect(self, builder: ResultBuilder, image: bytes, clock: Clock) -> None:
        options, deadline = clock.left()
        if self.target.http:
            builder.add(await self.transport.infer(image, options, builder.request_id, deadline))
            return
        answers = self.transport.stream(image, options, builder.request_id, deadline)
        try:
            while (answer := await _step(answers)) is not None:
                builder.add(answer)
        finally:
            answers.cancel()

    def open_stream(self, image: bytes, options: OcrOptions, request_id: str | None = None) -> AsyncOcrStream:
        """Stream an encoded image with options that are made already."""
        clock = Clock(options, self.settings)
        builder = ResultBuilder(request_id or new_request_id(), options)

        def start() -> AsyncAnswers:
            limited, deadline = clock.left()
            return self.transport.stream(image, limited, builder.request_id, deadline)

        return AsyncOcrStream(start, builder, Backoff(self.settings, clock.end))

    async def check(self) -> None:
        """Raise `ServerUnavailable` at once where no server answers."""
        await self.transport.call("is_server_live")

    async def close(self) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _open_transport(target: Target, settings: ClientSettings) -> AsyncTransport:
    from deepseek_ocr_client.aio_transport import AsyncGrpcTransport, AsyncHttpTransport

    return (AsyncHttpTransport if target.http else AsyncGrpcTransport)(target, settings)
