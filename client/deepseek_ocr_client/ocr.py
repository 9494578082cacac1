"""`OcrClient`: one page, a stream, or a whole document from the server, synchronously."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from os import PathLike
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from deepseek_ocr_client.aio import AsyncOcrClient, Reading, StreamState
from deepseek_ocr_client.connection import Tls
from deepseek_ocr_client.documents import open_document
from deepseek_ocr_client.errors import RequestCancelled, ServerFailed
from deepseek_ocr_client.images import ImageInput, encode_image
from deepseek_ocr_client.loop_thread import Call, LoopThread, loop_thread
from deepseek_ocr_client.pages import Document, Page, PageResult
from deepseek_ocr_client.request import OcrOptions, RequestOptions, new_request_id
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.settings import ClientSettings

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # noqa: UP035 - typing has them from Python 3.11

Result = TypeVar("Result")
END_SECONDS = 15.0  # at most, for a cancelled request to clean up; longer than shared memory is waited for


class OcrStream(StreamState):
    """An iterator over pieces of the model's text; `result` is there once it has ended.

    Leaving it early (`break` inside `with`, `cancel()`, or dropping it) stops the request on the server.
    """

    _call: Call[OcrResult] | None = None

    def __init__(self, client: OcrClient, reading: Reading, request_id: str, prompt: str | None) -> None:
        super().__init__(request_id, prompt)
        self._client = client
        self._reading = reading
        self._items: SimpleQueue[str | Future[OcrResult]] = SimpleQueue()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        if self._call is None:
            self._call = self._client._start(self._reading, self._items.put)
            self._call.future.add_done_callback(self._items.put)
        piece = self._take(self._items.get())
        if piece is None:
            raise StopIteration
        return piece

    def markdown(self) -> Iterator[str]:
        """The same stream as Markdown: tags removed, figures linked as `figure-1.jpg`, ..."""
        stream = self._markdown()
        for piece in self:
            if ready := stream.feed(piece):
                yield ready
        if rest := stream.close():
            yield rest

    def cancel(self) -> None:
        """Stop the request on the server; may be called from any thread, and twice."""
        self._ended = True
        if self._call is not None:
            self._call.cancel()
            wait([self._call.future], END_SECONDS)

    def __del__(self) -> None:
        if self._call is not None:
            self._call.cancel()

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

    `AsyncOcrClient` does the work, in a thread of its own; so this one may be used anywhere, inside a running
    event loop, and in a process that was forked between requests.
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
        self._core = AsyncOcrClient(
            url, tls=tls, headers=headers, shared_memory=shared_memory, settings=settings
        )
        self._core.http_connections = 0  # threads bound it
        self.settings = self._core.settings
        self.endpoint = self._core.endpoint
        self._thread: LoopThread | None = None
        self._calls: weakref.WeakSet[Call[Any]] = weakref.WeakSet()
        self._mutex = threading.Lock()
        self._refusal: Callable[[], Exception] | None = None  # why nothing more is started

    def ocr(
        self, image: ImageInput, *, request_id: str | None = None, **options: Unpack[RequestOptions]
    ) -> OcrResult:
        """Read one page.

        `image`: a path, bytes, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB.
        `options`: `mode`, `prompt`, `retention`, `max_tokens`, `no_repeat_ngram` and `time_limit`, as
        `OcrOptions` explains them. `request_id`: as the server logs it, made up unless given.

        Over gRPC the request is streamed, because only a stream can be cancelled.
        """
        checked = OcrOptions(**options)
        return self.read(encode_image(image, self.settings), checked, request_id)

    def stream(
        self, image: ImageInput, *, request_id: str | None = None, **options: Unpack[RequestOptions]
    ) -> OcrStream:
        """Read one page and get its text as it's written; options as in `ocr`. gRPC only."""
        checked = OcrOptions(**options)
        return self.open_stream(encode_image(image, self.settings), checked, request_id)

    def ocr_document(
        self,
        path: str | PathLike[str],
        *,
        pages: Iterable[int] | None = None,
        password: str | None = None,
        options: OcrOptions | None = None,
        concurrency: int | None = None,
    ) -> Generator[PageResult, None, None]:
        """Read a PDF or an image file page by page, in order, lazily.

        `pages`: page numbers from 1; None = all. At most `concurrency` pages (the settings' by default) are
        rendered and under way at a time. A page that fails comes as a `PageResult` with its `error`; what
        concerns the whole document (no such file, wrong password) is raised.
        """
        document = open_document(path, self.settings, password)
        try:
            numbers = document.choose(pages)
        except BaseException:
            document.close()
            raise
        return self._read_document(document, numbers, options, concurrency)

    def _read_document(
        self, document: Document, numbers: Iterable[int], options: OcrOptions | None, concurrency: int | None
    ) -> Generator[PageResult, None, None]:
        with document:
            results = self._core.read_document(document, numbers, options, concurrency)

            async def following() -> PageResult | None:
                return await anext(results, None)

            try:
                while (result := self._start(following).result()) is not None:
                    yield result
            finally:
                with suppress(ServerFailed):  # the loop ended with the interpreter
                    loop_thread().submit(results.aclose()).result()

    def read_page(self, page: Page, options: OcrOptions) -> PageResult:
        """Read a rendered page; a failure is returned, not raised."""
        return self._start(self._core.read_page, page, options).result()

    def read(
        self, image: bytes, options: OcrOptions, request_id: str | None = None, *, patient: bool = False
    ) -> OcrResult:
        """Read an encoded image with options that are made already.

        `patient`: keep asking a server that's full (up to `max_wait` seconds), as long jobs want it.
        """
        return self._start(self._core.read, image, options, request_id, patient=patient).result()

    def open_stream(self, image: bytes, options: OcrOptions, request_id: str | None = None) -> OcrStream:
        """As `stream`, of an encoded image and options that are made already."""
        request_id = request_id or new_request_id()
        return OcrStream(self, self._core.reading(image, options, request_id), request_id, options.prompt)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A small call of tritonclient's by its name (`is_server_ready`, `get_server_metadata`, ...)."""
        return self._start(self._core.call, method, *arguments, **options).result()

    def check(self) -> None:
        """Raise `ServerUnavailable` at once where no server answers, instead of trying again for a while."""
        self._start(self._core.check).result()

    def cancel(self) -> None:
        """Cancel every request under way, from any thread; the client can't be used afterwards."""
        self._refusal = lambda: RequestCancelled("The request was cancelled.")
        for call in self._under_way():
            call.cancel()

    def close(self) -> None:
        """Close the connections, those in use when their request ends."""
        self._refusal = self._refusal or (lambda: ServerFailed("This client is closed."))
        thread, self._thread = self._thread, None
        if thread is None or thread is not loop_thread():
            return
        under_way = [call.future for call in self._under_way()]
        if under_way:
            thread.submit(self._close_after(under_way))
        else:
            thread.submit(self._core.close()).result()

    async def _close_after(self, futures: list[Future[Any]]) -> None:
        # Their errors are fetched here: nobody may be left to ask for them.
        await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        await self._core.close()

    def _start(
        self, function: Callable[..., Coroutine[Any, Any, Result]], *arguments: Any, **options: Any
    ) -> Call[Result]:
        """Start a coroutine function of the core's in the loop's thread."""
        if self._refusal is not None:
            raise self._refusal()
        thread = loop_thread()
        if thread is not self._thread:  # the first time, or the first time in a forked process
            self._thread = thread
            thread.clients.add(self._core)
            weakref.finalize(self, thread.close_soon, self._core).atexit = False
        call = thread.submit(function(*arguments, **options))
        with self._mutex:
            self._calls.add(call)
        return call

    def _under_way(self) -> list[Call[Any]]:
        with self._mutex:
            return [call for call in self._calls if not call.future.done()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
