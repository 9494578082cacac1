"""Documents as lazy sequences of encoded pages: PDFs, image files, multi-page TIFFs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Self

from PIL import Image

from deepseek_ocr_client.errors import ClientError, InvalidRequest
from deepseek_ocr_client.images import inspect_image, read_file, to_png
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.settings import ClientSettings

PDF_SIGNATURE = b"%PDF-"
SUFFIXES = frozenset({".pdf", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"})


@dataclass(frozen=True, slots=True)
class Page:
    """A page ready to be sent: `number` from 1, `image` encoded; or the `error` that rendering it gave.

    `note` says what was done differently than asked (fewer dpi, for example).
    """

    document: Path
    number: int
    image: bytes = field(default=b"", repr=False)
    note: str = ""
    error: ClientError | None = None


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
    """A document's pages, rendered one at a time."""

    def __init__(self, path: Path, page_count: int, settings: ClientSettings) -> None:
        self.path = path
        self.page_count = page_count
        self.settings = settings

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ImageDocument(Document):
    """An image file: one page, or one a frame for a TIFF."""

    def __init__(self, path: Path, settings: ClientSettings) -> None:
        self._data = read_file(path, settings)
        frames = _inspect(self._data, path)
        super().__init__(path, frames, settings)
        check_page_count(path, frames, settings)

    def render(self, number: int) -> Page:
        """The file itself, or a TIFF's page as PNG."""
        if self.page_count == 1:
            return Page(self.path, number, self._data)
        return Page(self.path, number, to_png(_frame(self._data, number - 1, self)))


def _inspect(data: bytes, path: Path) -> int:
    """Pages of an image file, from its headers."""
    with inspect_image(data, str(path)) as picture:
        try:
            return getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise InvalidRequest(f"{path} can't be decoded: {error}.") from None


def _frame(data: bytes, index: int, document: ImageDocument) -> Image.Image:
    name = f"Page {index + 1} of {document.path}"
    with inspect_image(data, name) as picture:
        try:
            picture.seek(index)
            if picture.width * picture.height <= document.settings.max_image_pixels:
                return picture.copy()
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise InvalidRequest(f"{name} can't be decoded: {error}.") from None
        raise InvalidRequest(f"{name} has {picture.width} x {picture.height} pixels, over the limit.")


def check_page_count(path: Path, count: int, settings: ClientSettings) -> None:
    """Refuse a document without pages, or with more than the limit (`InvalidRequest`)."""
    if count < 1:
        raise InvalidRequest(f"{path} has no pages.")
    if count > settings.max_pages:
        raise InvalidRequest(
            f"{path} has {count} pages, more than the limit of {settings.max_pages}.",
            "Choose some with --pages, or raise DEEPSEEK_OCR_MAX_PAGES.",
        )


def open_document(
    path: str | PathLike[str], settings: ClientSettings, password: str | None = None
) -> Document:
    """The document at `path`, by its content and not its suffix; or `InvalidRequest`."""
    path = Path(path)
    if path.is_dir():
        raise InvalidRequest(f"{path} is a folder, not a document.", "Use `batch` for folders.")
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except FileNotFoundError:
        raise InvalidRequest(f"There is no file {path}.") from None
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read: {error.strerror or error}.") from None
    if not head:
        raise InvalidRequest(f"{path} is empty.")
    if PDF_SIGNATURE in head or path.suffix.lower() == ".pdf":
        from deepseek_ocr_client.pdf import PdfDocument

        return PdfDocument(path, settings, password)
    return ImageDocument(path, settings)


def pages_of(count: int) -> str:
    """`1 page`, `2 pages`."""
    return f"{count} page{'' if count == 1 else 's'}"


def parse_pages(written: str) -> list[int]:
    """Page numbers of `1-3,7,10-`; an open end is refused here because the length isn't known.

    Raises `InvalidRequest` for anything else.
    """
    numbers: list[int] = []
    for part in written.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 6 or len(last) > 6:
            raise InvalidRequest(f"{written!r} are no pages.", "Write them like 1-3,7.")
        start, stop = int(first), int(last) if dash else int(first)
        if not 1 <= start <= stop:
            raise InvalidRequest(f"{written!r} are no pages.", "Write them like 1-3,7.")
        numbers.extend(range(start, stop + 1))
    return numbers
