"""`OcrClient`: one page, a stream, or a whole document from the server, synchronously."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import Any, Protocol, Self

from deepseek_ocr_client.connection import Backoff, Target, Tls
from deepseek_ocr_client.documents import Page, PageResult, open_document
from deepseek_ocr_client.errors import ClientError, InvalidRequest, RequestCancelled, ServerUnavailable
from deepseek_ocr_client.images import ImageInput, encode_image
from deepseek_ocr_client.markdown import MarkdownStream, labels_are_text
from deepseek_ocr_client.ordered import in_order
from deepseek_ocr_client.request import Answer, OcrOptions, ResultBuilder, new_request_id
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.settings import ClientSettings


class Answers(Protocol):
    """The answers of a streamed request."""

    def __iter__(self) -> Iterator[Answer]: ...

    def __next__(self) -> Answer: ...

    def cancel(self) -> None:
        """Stop the request on the server."""


class Transport(Protocol):
    """What gRPC and HTTP have in common."""

    target: Target

    def infer(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> Answer:
        """One request, one answer."""

    def stream(self, image: bytes, options: OcrOptions, request_id: str, timeout: float) -> Answers:
        """One request, its answers as they come."""

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name."""

    def cancel(self) -> None:
        """Cancel every stream under way."""

    def close(self) -> None:
        """Close the connections."""


class OcrStream:
    """An iterator over pieces of the model's text; `result` is there once it has ended.

    Leaving it early (`break` inside `with`, `cancel()`, or dropping it) stops the request on the server.
    """

    def __init__(
        self,
        start: Callable[[], Answers],
        builder: ResultBuilder,
        backoff: Backoff,
        sleep: Callable[[float], None],
    ) -> None:
        self._start = start
        self._sleep = sleep
        self._builder = builder
        self._backoff = backoff
        self._answers: Answers | None = None
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

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._ended:
            answer = self._first() if self._answers is None else next(self._answers, None)
            if answer is None:
                self._ended = True
                self._result = self._builder.build()
                break
            piece = self._builder.add(answer)
            if piece:
                return piece
        raise StopIteration

    def _first(self) -> Answer | None:
        """The first answer; nothing was given out yet, so a busy server may be asked again."""
        while True:
            try:
                self._answers = self._start()
                return next(self._answers, None)
            except ServerUnavailable as error:
                self._answers = None
                self._sleep(self._backoff.delay(error))

    def markdown(self) -> Iterator[str]:
        """The same stream as Markdown: tags removed, figures linked as `figure-1.jpg`, ..."""
        stream = MarkdownStream(text_labels=labels_are_text(self._builder.options.prompt))
        for piece in self:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class OcrClient:
    """A client of one server. Safe to use from several threads; close it, or use it in a `with` block.

    `url`: `host:port`, `grpc://`, `grpcs://` (gRPC, streams) or `http://`, `https://` (whole answers only).
    `tls`: certificate files. `headers`: sent with every request, for gateways that ask for a key.
    `shared_memory`: hand images over in shared memory, where client and server share a host and the server
    allows it. `settings`: limits and defaults; `ClientSettings.from_env()` unless given.

    All methods raise subclasses of `ClientError`: `InvalidRequest`, `AccessDenied`, `ServerUnavailable`,
    `ServerFailed`, `TimeLimitExceeded`, `RequestCancelled`.
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
        self.target = Target.of(url or self.settings.url, tls, headers)
        self.transport = open_transport(self.target, self.settings, shared_memory)
        self._cancelled = threading.Event()

    def ocr(
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
        """Read one page.

        `image`: a path, bytes, a PIL image or a uint8 array. `mode`: tiny, small, base, large or gundam.
        `retention`: share of the visual tokens to keep, 1 = all, None = the dynamic rule. `max_tokens`:
        output tokens at most. `no_repeat_ngram`: (n, window) in tokens. `time_limit`: seconds.

        Over gRPC the request is streamed, because only a stream can be cancelled.
        """
        options = OcrOptions(mode, prompt, retention, max_tokens, no_repeat_ngram, time_limit)
        return self.read(encode_image(image, self.settings), options, request_id)

    def stream(
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
    ) -> OcrStream:
        """Read one page and get its text as it's written; options as in `ocr`. gRPC only."""
        options = OcrOptions(mode, prompt, retention, max_tokens, no_repeat_ngram, time_limit)
        return self.open_stream(encode_image(image, self.settings), options, request_id)

    def ocr_document(
        self,
        path: str | PathLike[str],
        *,
        pages: Iterable[int] | None = None,
        password: str | None = None,
        options: OcrOptions | None = None,
        concurrency: int | None = None,
    ) -> Iterator[PageResult]:
        """Read a PDF or an image file page by page, in order, lazily.

        `pages`: page numbers from 1; None = all. At most `concurrency` pages (the settings' by default) are
        rendered and under way at a time. A page that fails comes as a `PageResult` with its `error`; what
        concerns the whole document (no such file, wrong password) is raised.
        """
        document = open_document(path, self.settings, password)
        chosen = document.choose(pages)
        limit = concurrency or self.settings.concurrency

        def work(page: Page) -> PageResult:
            return self.read_page(page, options or OcrOptions())

        def run() -> Iterator[PageResult]:
            with document:
                yield from in_order(document.pages(chosen), work, limit)

        return run()

    def read_page(self, page: Page, options: OcrOptions) -> PageResult:
        """Read a rendered page; a failure is returned, not raised."""
        if page.error is not None:
            return PageResult(page, error=page.error)
        try:
            return PageResult(page, result=self.read(page.image, options))
        except ClientError as error:
            return PageResult(page, error=error)

    def read(
        self,
        image: bytes,
        options: OcrOptions,
        request_id: str | None = None,
        *,
        patient: bool = False,
    ) -> OcrResult:
        """Read an encoded image with options that are made already.

        `patient`: keep asking a server that's full (up to `max_wait` seconds), as long jobs want it.
        """
        clock = Clock(options, self.settings, patient=patient)
        backoff = Backoff(self.settings, clock.end, patient=patient)
        while True:
            builder = ResultBuilder(request_id or new_request_id(), options)
            try:
                limited, deadline = clock.left()
                for answer in self._answers(image, limited, builder.request_id, deadline):
                    builder.add(answer)
                return builder.build()
            except ServerUnavailable as error:
                self._sleep(backoff.delay(error))

    def _answers(
        self, image: bytes, options: OcrOptions, request_id: str, deadline: float
    ) -> Iterator[Answer]:
        """All answers of one attempt; leaving early cancels it."""
        self._check_open()
        if self.target.http:
            yield self.transport.infer(image, options, request_id, deadline)
            return
        answers = self.transport.stream(image, options, request_id, deadline)
        try:
            yield from answers
        finally:
            answers.cancel()

    def open_stream(self, image: bytes, options: OcrOptions, request_id: str | None = None) -> OcrStream:
        """Stream an encoded image with options that are made already."""
        clock = Clock(options, self.settings)
        builder = ResultBuilder(request_id or new_request_id(), options)

        def start() -> Answers:
            self._check_open()
            limited, deadline = clock.left()
            return self.transport.stream(image, limited, builder.request_id, deadline)

        return OcrStream(start, builder, Backoff(self.settings, clock.end), self._sleep)

    def check(self) -> None:
        """Raise `ServerUnavailable` at once where no server answers, instead of trying again for a while."""
        self.transport.call("is_server_live")

    def cancel(self) -> None:
        """Cancel every request under way, from any thread; the client can't be used afterwards."""
        self._cancelled.set()
        self.transport.cancel()

    def _check_open(self) -> None:
        if self._cancelled.is_set():
            raise RequestCancelled("The request was cancelled.")

    def _sleep(self, seconds: float) -> None:
        self._cancelled.wait(seconds)
        self._check_open()

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Clock:
    """The time limit of a request: over all its attempts, or with `patient` for each attempt anew."""

    def __init__(self, options: OcrOptions, settings: ClientSettings, *, patient: bool = False) -> None:
        self._options = options
        self._grace = settings.deadline_grace
        self._limit = options.time_limit or settings.timeout
        self._patient = patient
        self.end = time.monotonic() + (settings.max_wait if patient else self._limit or settings.max_wait)

    def left(self) -> tuple[OcrOptions, float]:
        """The options of an attempt that begins now, and the client's own deadline for it, in seconds."""
        seconds = max(self.end - time.monotonic(), 0.001)
        if not self._limit:
            return self._options, seconds
        if self._patient:
            seconds = self._limit
        return replace(self._options, time_limit=seconds), seconds + self._grace


def open_transport(target: Target, settings: ClientSettings, shared_memory: bool = False) -> Transport:
    """The transport for a target; imported late, because each brings a heavy stack with it."""
    if target.http:
        if shared_memory:
            raise InvalidRequest("Shared memory needs gRPC.", "Use a grpc:// address.")
        from deepseek_ocr_client.http_transport import HttpTransport

        return HttpTransport(target, settings)
    from deepseek_ocr_client.grpc_transport import GrpcTransport

    return GrpcTransport(target, settings, shared_memory=shared_memory)
