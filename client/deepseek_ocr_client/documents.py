"""Opens documents by their content: PDFs, image files, multi-page TIFFs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from deepseek_ocr_client import imaging
from deepseek_ocr_client.errors import ClientError, InvalidRequest, unexpected
from deepseek_ocr_client.images import open_image, read_file, sendable, to_png
from deepseek_ocr_client.pages import Document, Page
from deepseek_ocr_client.settings import ClientSettings

PDF_SIGNATURE = b"%PDF-"
SUFFIXES = frozenset(
    {
        ".pdf",
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jfi",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".gif",
    }
    | {".heic", ".heif", ".hif", ".avif"}
)


class ImageDocument(Document):
    """An image file: one page, or one a frame for a TIFF."""

    def __init__(self, path: Path, settings: ClientSettings) -> None:
        self._data = read_file(path, settings)
        kind = imaging.kind_of(self._data)
        if kind is None:
            open_image(self._data, settings, str(path))  # says what it is instead
        try:
            pages = len(imaging.tiff_pages(self._data)) if kind == "TIFF" else 1
        except imaging.ImageError as error:
            raise InvalidRequest(f"{path} can't be decoded: {error}") from None
        super().__init__(path, pages, settings)

    def render(self, number: int) -> Page:
        """The file itself, or a TIFF's page as PNG."""
        if self.page_count == 1:
            return Page(self.path, number, sendable(self._data, str(self.path), self.settings))
        name = f"Page {number} of {self.path}"
        return Page(self.path, number, to_png(open_image(self._data, self.settings, name, number - 1)))


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
    try:
        if PDF_SIGNATURE in head or path.suffix.lower() == ".pdf":
            from deepseek_ocr_client.pdf import PdfDocument

            return PdfDocument(path, settings, password)
        return ImageDocument(path, settings)
    except (ClientError, ImportError):
        raise
    except Exception as error:
        raise unexpected(error) from error


def parse_pages(written: str) -> list[int]:
    """Page numbers, from 1, of a list like `1-3,7`; `InvalidRequest` for anything else, an open end too."""
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
