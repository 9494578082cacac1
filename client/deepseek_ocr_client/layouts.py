"""Output folders: one Markdown a document with its figures, or OmniDocBench's one file a page."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from deepseek_ocr_client.errors import ClientError
from deepseek_ocr_client.markdown import to_markdown
from deepseek_ocr_client.output import atomic_write, safe_name, save_page, write_lines
from deepseek_ocr_client.pages import Page
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.settings import ClientSettings

PREDICTIONS = "predictions"

# Equation numbers after a display formula, `\quad (3)`: the ground truth has none. Bounded, so that hostile
# text costs no more than its length.
_EQUATION_NUMBER = re.compile(r"\\quad\s{0,20}\([^()\n]{0,40}\)(?=[^\[\]\n]{0,40}\\\])")
_CENTER = re.compile(r"</?center>")

PageText = Callable[[int], str | None]


def page_break(number: int) -> str:
    """What stands before page `number` of a document's Markdown: a rule, and a comment that can be found."""
    return f"\n\n---\n\n<!-- page {number} -->\n\n"


class OutputLayout(ABC):
    """How a batch's pages become files. `name` is a document's path below the folder, without a suffix."""

    kind: ClassVar[str]

    @abstractmethod
    def save_page(self, name: str, page: Page, result: OcrResult) -> tuple[str, str]:
        """Write what belongs to a page alone; returns its Markdown, and what went wrong, if anything."""

    @abstractmethod
    def finish(
        self, name: str, path: Path, pages: Sequence[int], text: PageText, failed: Mapping[int, ClientError]
    ) -> None:
        """Write what belongs to the whole document: `text(page)` of `pages`, None for one that failed."""

    @abstractmethod
    def files(self, name: str, path: Path, page_count: int) -> Iterator[Path]:
        """What `finish` writes of a document whose pages can all be read."""

    def is_written(self, name: str, path: Path, page_count: int) -> bool:
        """Whether the document's files are there."""
        return all(file.is_file() for file in self.files(name, path, page_count))

    def discard(self, name: str, path: Path, page_count: int) -> None:
        """Remove them, because pages of the document are read again; figures are written over."""
        for file in self.files(name, path, page_count):
            file.unlink(missing_ok=True)


class DocumentLayout(OutputLayout):
    """`NAME.md` with page breaks, `images/NAME/page-0001-figure-1.jpg` beside it."""

    kind = "documents"

    def __init__(self, folder: Path, settings: ClientSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._one_at_a_time = threading.Lock()  # a decoded page may have 60 MB

    def save_page(self, name: str, page: Page, result: OcrResult) -> tuple[str, str]:
        """Crop and write the page's figures."""
        with self._one_at_a_time:
            return save_page(self._folder, name, page, result, self._settings)

    def finish(
        self, name: str, path: Path, pages: Sequence[int], text: PageText, failed: Mapping[int, ClientError]
    ) -> None:
        """Write the Markdown, one page in memory at a time."""
        [markdown] = self.files(name, path, len(pages))
        with atomic_write(markdown) as file:
            for number in pages:
                if number != pages[0]:
                    file.write(page_break(number).encode())
                page = text(number)
                if page is None:
                    why = str(failed.get(number)).replace("--", "- -").replace(">", "")  # inside a comment
                    page = f"<!-- page {number} couldn't be read: {why} -->"
                file.write(page.strip().encode("utf-8", "replace"))
            file.write(b"\n")

    def files(self, name: str, path: Path, page_count: int) -> Iterator[Path]:
        """The Markdown."""
        yield self._folder / f"{name}.md"


class OmniDocBenchLayout(OutputLayout):
    """`predictions/IMAGE.md`, flat, as OmniDocBench's end-to-end evaluation looks for them.

    It takes an image's file name without its last four characters, then tries the whole name
    (`dataset/end2end_dataset.py`). Figures are left out, as the evaluation has no use for them.
    """

    kind = "omnidocbench"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / PREDICTIONS

    def save_page(self, name: str, page: Page, result: OcrResult) -> tuple[str, str]:
        """Nothing to write for a page alone."""
        return for_evaluation(result), ""

    def finish(
        self, name: str, path: Path, pages: Sequence[int], text: PageText, failed: Mapping[int, ClientError]
    ) -> None:
        """Write a file a page; a failed page has none, so that it counts as missing."""
        for number in pages:
            page = text(number)
            if page is not None:
                with atomic_write(self._folder / prediction_name(path.name, number, len(pages))) as file:
                    file.write(page.encode("utf-8", "replace"))

    def files(self, name: str, path: Path, page_count: int) -> Iterator[Path]:
        """A prediction a page."""
        for number in range(1, page_count + 1):
            yield self._folder / prediction_name(path.name, number, page_count)


def prediction_name(file_name: str, number: int = 1, page_count: int = 1) -> str:
    """Name of a page's prediction: `IMAGE.md`, or `FILE_0001.md` for a page of a longer file."""
    stem = file_name[:-4] if file_name[-4:-3] == "." else file_name
    return f"{stem}.md" if page_count == 1 else f"{stem}_{number:04d}.md"


def for_evaluation(result: OcrResult) -> str:
    """A page's Markdown as OmniDocBench compares it: without figures, `<center>` tags and equation numbers.

    The same normalisation that the authors' evaluation script applies (`run_dpsk_ocr_eval_batch.py`), so
    that edit distances compare with the published ones.
    """
    markdown, _ = to_markdown(result.text, None, text_labels=result.text_labels)
    return _CENTER.sub("", _EQUATION_NUMBER.sub("", markdown)) + "\n"


class DocumentFiles:
    """Output of a short document read by `ocr`: as `DocumentLayout`, and `NAME.jsonl` with a line a page."""

    def __init__(self, folder: Path, path: Path, settings: ClientSettings) -> None:
        self._layout = DocumentLayout(folder, settings)
        self._path = path
        self._name = safe_name(path.stem)
        self._lines = folder / f"{self._name}.jsonl"
        self._records: dict[int, dict[str, Any]] = {}

    def add(self, page: Page, result: OcrResult) -> str:
        """Write a page's figures and remember its text; returns what went wrong, if anything."""
        markdown, note = self._layout.save_page(self._name, page, result)
        self._records[page.number] = {**page_record(page, result), "markdown": markdown}
        return note

    def finish(self) -> None:
        """Write the Markdown and the JSON lines."""
        if not self._records:
            return
        pages = list(self._records)
        self._layout.finish(self._name, self._path, pages, lambda page: self._records[page]["markdown"], {})
        write_lines(self._lines, self._records.values())


def page_record(page: Page, result: OcrResult) -> dict[str, Any]:
    """JSON-ready: a page's result, and which page it is."""
    note = {"note": page.note} if page.note else {}
    return {"document": str(page.document), "page": page.number, **note, **result.to_dict()}
