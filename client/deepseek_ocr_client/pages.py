"""Pages and documents: what is rendered, one page at a time, and sent; what comes back of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ocr_client.errors import ClientError, InvalidRequest, unexpected
from deepseek_ocr_client.request import OcrOptions
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.settings import ClientSettings

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - typing has it from Python 3.11


@dataclass(frozen=True, slots=True)
class Page:
    """A page ready to be sent: `number` from 1, `image` encoded; or the `error` that rendering it gave.

    `note` says what was done differently than asked (fewer dpi, for example). `no_repeat_ngram`: what a page of this
    kind of document is read with, where the caller doesn't say; None is the server's.
    """

    document: Path
    number: int
    image: bytes = field(default=b"", repr=False)
    note: str = ""
    error: ClientError | None = None
    no_repeat_ngram: tuple[int, int] | None = None

    def options(self, asked: OcrOptions) -> OcrOptions:
        """What is asked for this page."""
        if asked.no_repeat_ngram is not None or self.no_repeat_ngram is None:
            return asked
        return replace(asked, no_repeat_ngram=self.no_repeat_ngram)


@dataclass(frozen=True, slots=True)
class PageResult:
    """A page and either its `result` or its `error`."""

    page: Page
    result: OcrResult | None = None
    error: ClientError | None = None

    @property
    def number(self) -> int:
        """The page's number in its document, from 1."""
        return self.page.number


class Document(ABC):
    """A document's pages, rendered one at a time; `InvalidRequest` for none, or more than the limit."""

    def __init__(self, path: Path, page_count: int, settings: ClientSettings) -> None:
        self.path = path
        self.page_count = page_count
        self.settings = settings
        if page_count < 1:
            raise InvalidRequest(f"{path} has no pages.")
        if page_count > settings.max_pages:
            raise InvalidRequest(
                f"{path} has {page_count} pages, more than the limit of {settings.max_pages}.",
                "Choose some with --pages, or raise DEEPSEEK_OCR_MAX_PAGES.",
            )

    @abstractmethod
    def render(self, number: int) -> Page:
        """Page `number` (from 1); `ClientError` where it can't be rendered."""

    def close(self) -> None:  # noqa: B027 - a file that's read already needs nothing
        """Release the file."""

    def choose(self, numbers: Iterable[int] | None) -> Sequence[int]:
        """The page numbers to read, all without a choice; `InvalidRequest` for one that isn't there."""
        if numbers is None:
            return range(1, self.page_count + 1)
        chosen = list(numbers)
        for number in chosen:
            if not 1 <= number <= self.page_count:
                raise InvalidRequest(f"{self.path} has no page {number}: it has {pages_of(self.page_count)}.")
        return chosen

    def pages(self, numbers: Iterable[int]) -> Iterator[Page]:
        """The pages `numbers`, lazily; a page that can't be rendered carries its error."""
        for number in numbers:
            yield self.page(number)

    def page(self, number: int) -> Page:
        """Page `number`; one that can't be rendered carries its error."""
        try:
            return self.render(number)
        except ClientError as error:
            return Page(self.path, number, error=error)
        except Exception as error:
            return Page(self.path, number, error=unexpected(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pages_of(count: int) -> str:
    """`1 page`, `2 pages`."""
    return f"{count} page{'' if count == 1 else 's'}"
