"""The batch engine: many documents, bounded memory, bounded concurrency, nothing lost and nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from deepseek_ocr_client.documents import open_document
from deepseek_ocr_client.errors import (
    AccessDenied,
    ClientError,
    InvalidRequest,
    RequestCancelled,
    ServerUnavailable,
    TimeLimitExceeded,
    unexpected,
)
from deepseek_ocr_client.inputs import Source
from deepseek_ocr_client.journal import Journal
from deepseek_ocr_client.layouts import OmniDocBenchLayout, OutputLayout, prediction_name
from deepseek_ocr_client.ocr import OcrClient
from deepseek_ocr_client.pages import Page
from deepseek_ocr_client.request import OcrOptions
from deepseek_ocr_client.result import OcrResult

LOOK_AHEAD = 2  # pages rendered while all others are on their way


@dataclass(frozen=True, slots=True)
class Failure:
    """A page that couldn't be read, or a whole document (page 0), and why."""

    path: Path
    page: int
    error: ClientError

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        advice = {"advice": self.error.advice} if self.error.advice else {}
        return {
            "document": str(self.path),
            "page": self.page or None,
            "error": str(self.error),
            **advice,
        }

    def __str__(self) -> str:
        said = f"{self.error} {self.error.advice}".rstrip()
        if str(self.path) in str(self.error):
            return said
        return f"{self.path}{f', page {self.page}' if self.page else ''}: {said}"


class Progress(Protocol):
    """Who wants to know how far it is; called from several threads, one at a time."""

    def pages(self, total: int, finished: int) -> None:
        """At the start: pages in all, and how many of them an earlier run finished."""

    def page(self, failed: bool) -> None:
        """A page is done."""


@dataclass(slots=True)
class Report:
    """What a run did."""

    pages: int = 0  # read in this run
    resumed: int = 0  # finished by an earlier run
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stopped: ClientError | None = None  # why the run ended before its end
    model: str = ""  # the checkpoint that read this run's pages, where the server says


@dataclass(slots=True)
class _Work:
    """A document under way."""

    source: Source
    digest: str
    page_count: int
    open_pages: int
    failed: dict[int, ClientError] = field(default_factory=dict)


class Batch:
    """Reads documents into a folder.

    One thread renders pages, at most `concurrency` + 2 of them ahead of the server's answers; `concurrency`
    threads wait for answers. Each finished page is a line of the journal; a document's Markdown is written
    when its last page is there.
    """

    def __init__(
        self,
        client: OcrClient,
        folder: Path,
        layout: OutputLayout,
        *,
        options: OcrOptions | None = None,
        password: str | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.client = client
        self.settings = client.settings
        self.options = options or OcrOptions()
        self.layout = layout
        self.report = Report()
        self._folder = folder
        self._password = password
        self._overwrite = overwrite
        self._progress = progress
        self._mutex = threading.Lock()
        self._slots = threading.Semaphore(self.settings.concurrency + LOOK_AHEAD)
        self._out_of_reach = 0  # pages in a row that no server answered
        self._journal: Journal

    def run(self, sources: Sequence[Source]) -> Report:
        """Read what isn't read yet; pages that failed, and what `stopped` the run early, are in the report.

        Raises `InvalidRequest` where the folder can't be used. Interrupting it (KeyboardInterrupt) cancels the
        requests under way and leaves the folder resumable.
        """
        recorded = {**asdict(self.options), "dpi": self.settings.dpi, "layout": self.layout.kind}
        with Journal(self._folder, recorded, overwrite=self._overwrite) as journal:
            self._journal = journal
            planned = self._plan(sources)
            with ThreadPoolExecutor(self.settings.concurrency, "batch") as threads:
                try:
                    for work, pages in planned:
                        self._document(work, pages, threads)
                        if self.report.stopped:
                            break
                    threads.shutdown(wait=True)
                except BaseException:
                    self.report.stopped = RequestCancelled("The run was interrupted.")
                    self.client.cancel()
                    raise
        return self.report

    def _plan(self, sources: Sequence[Source]) -> list[tuple[_Work, list[int]]]:
        """What's left of each document. Documents that can't be opened are failures of their own."""
        digests: dict[str, str] = {}
        for source in sources:
            try:
                digests[source.name] = source.digest()
            except ClientError as error:
                self.report.failures.append(Failure(source.path, 0, error))
        self._journal.drop_stale(digests)
        planned: list[tuple[_Work, list[int]]] = []
        total = 0
        for source in sources:
            if source.name not in digests:
                continue
            digest = digests[source.name]
            done = self._journal.done(source.name, digest)
            try:
                count = self._page_count(source)
            except ClientError as error:
                self.report.failures.append(Failure(source.path, 0, error))
                continue
            total += count
            self.report.resumed += len(done)
            missing = [number for number in range(1, count + 1) if number not in done]
            planned.append((_Work(source, digest, count, len(missing)), missing))
        if self._progress is not None:
            self._progress.pages(total, self.report.resumed)
        return planned

    def _page_count(self, source: Source) -> int:
        if source.name in self._journal.documents:
            return self._journal.documents[source.name].page_count
        with open_document(source.path, self.settings, self._password) as document:
            return document.page_count

    def _document(self, work: _Work, pages: list[int], threads: ThreadPoolExecutor) -> None:
        """Render a document's missing pages as there's room, and hand them to the threads."""
        if not pages:
            if not self.layout.is_written(work.source.name, work.source.path, work.page_count):
                self._finish(work)
            return
        self.layout.discard(work.source.name, work.source.path, work.page_count)
        try:
            document = open_document(work.source.path, self.settings, self._password)
        except ClientError as error:
            self.report.failures.append(Failure(work.source.path, 0, error))
            return
        with document:
            for number in pages:
                self._slots.acquire()
                if self.report.stopped:
                    self._slots.release()
                    return
                page = document.page(number)
                threads.submit(self._guarded, work, page)

    def _guarded(self, work: _Work, page: Page) -> None:
        try:
            self._page(work, page)
        except ClientError as error:  # the folder can't be written: no page after this one can be either
            self.report.stopped = self.report.stopped or error
        finally:
            self._slots.release()

    def _page(self, work: _Work, page: Page) -> None:
        if self.report.stopped:
            return
        try:
            if page.error is not None:
                raise page.error
            result = self.client.read(page.image, page.options(self.options), patient=True)
            if result.finish_reason in ("timeout", "cancelled"):
                raise TimeLimitExceeded(f"{result.warning().capitalize()} before the page was finished.")
        except ClientError as error:
            self._failed(work, page, error)
        except Exception as error:
            self._failed(work, page, unexpected(error))
        else:
            self._succeeded(work, page, result)
        with self._mutex:
            work.open_pages -= 1
            last = work.open_pages == 0
        if last and not self.report.stopped:
            self._finish(work)

    def _succeeded(self, work: _Work, page: Page, result: OcrResult) -> None:
        try:
            markdown, lost = self.layout.save_page(work.source.name, page, result)
        except ClientError:
            raise
        except Exception as error:
            self._failed(work, page, unexpected(error))
            return
        notes = [note for note in (page.note, lost) if note]
        record = {"document": str(work.source.path), **result.to_dict(), "markdown": markdown}
        if notes:
            record["note"] = " ".join(notes)
        self._journal.add(work.source.name, work.digest, work.page_count, page.number, record)
        where = f"{work.source.path}, page {page.number}"
        with self._mutex:
            self._out_of_reach = 0
            self.report.pages += 1
            self.report.model = result.model
            if result.warning():
                self.report.warnings.append(f"{where}: {result.warning()}.")
            self.report.warnings += notes
            if self._progress is not None:
                self._progress.page(failed=False)

    def _failed(self, work: _Work, page: Page, error: ClientError) -> None:
        with self._mutex:
            if self.report.stopped:  # cancelled with the run: not the page's fault
                return
            work.failed[page.number] = error
            if isinstance(error, AccessDenied):  # no other page would get through
                self.report.stopped = error
                return
            if isinstance(error, ServerUnavailable) and not error.answered:
                self._out_of_reach += 1
                if self._out_of_reach >= min(self.settings.concurrency, 3):
                    self.report.stopped = ServerUnavailable(
                        f"{str(error).rstrip('.')}, so the run was stopped.",
                        "Finished pages are kept: the same command goes on from here.",
                    )
                    return
            self.report.failures.append(Failure(work.source.path, page.number, error))
            if self._progress is not None:
                self._progress.page(failed=True)

    def _finish(self, work: _Work) -> None:
        """Write the document from its pages' lines, one page in memory at a time."""

        def text(number: int) -> str | None:
            if number in work.failed:
                return None
            line: str = self._journal.read(work.source.name, number)["markdown"]
            return line

        if work.source.name in self._journal.documents:  # else no page of it could be read
            numbers = range(1, work.page_count + 1)
            self.layout.finish(work.source.name, work.source.path, numbers, text, work.failed)


def guard_names(layout: OutputLayout, sources: Sequence[Source]) -> None:
    """Refuse documents whose results would overwrite each other in a flat layout."""
    if layout.kind != OmniDocBenchLayout.kind:
        return  # names are unique there already
    seen: dict[str, Path] = {}
    for source in sources:
        first = seen.setdefault(prediction_name(source.path.name), source.path)
        if first is not source.path:
            raise InvalidRequest(
                f"{first} and {source.path} would have one prediction between them.",
                "Give each image a name of its own.",
            )
