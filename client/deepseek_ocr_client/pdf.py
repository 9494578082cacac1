"""PDF pages -> PNG, one at a time, with pypdfium2 (PDFium, what Chrome shows PDFs with)."""

from __future__ import annotations

import ctypes
import math
import mmap
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
from PIL import Image

from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.images import to_png
from deepseek_ocr_client.pages import Document, Page
from deepseek_ocr_client.settings import ClientSettings

POINTS_AN_INCH = 72
NO_REPEAT_NGRAM = (20, 50)  # the authors' for PDF pages; for images it is 30 and 90, the server's default

_PAGE_OBJECT = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_COUNT = re.compile(rb"(/Count\s+)([0-9]+)")
_XFA = (pdfium_c.FORMTYPE_XFA_FULL, pdfium_c.FORMTYPE_XFA_FOREGROUND)
_NAMED = 5  # attachments named in a note
_LOOKED_AT = 20_000  # characters of a page
_LAST_LATIN = 0x24F  # Latin Extended-B ends here

# PDFium isn't thread-safe, not even over different documents.
_PDFIUM = threading.RLock()


class PdfDocument(Document):
    """A PDF file. Rotation and crop boxes are applied, form fields and annotations are drawn.

    What a reader would miss in the pages' pictures is said in a note: of the document with the first page that is
    rendered, of a page with that page.
    """

    def __init__(self, path: Path, settings: ClientSettings, password: str | None = None) -> None:
        self._password = password
        self._rendered = 0
        self._pdf = _open(path, password)
        with _PDFIUM:
            claimed = len(self._pdf)
            count = _loadable(self._pdf, claimed)
            self._notes = [*_not_in_the_pages(self._pdf, path)]
        if count < claimed:
            self._notes.append(f"{path} claims {claimed} pages and holds {count}.")
        super().__init__(path, count, settings)

    def render(self, number: int) -> Page:
        """Page `number` as PNG at the settings' dpi, or at fewer where the page would be too large."""
        with _PDFIUM:
            if self._rendered >= self.settings.pdf_reopen_pages:
                self._pdf.close()
                self._pdf = _open(self.path, self._password)
                self._rendered = 0
            self._rendered += 1
            try:
                page = self._pdf[number - 1]
            except (pdfium.PdfiumError, IndexError):
                raise InvalidRequest(f"Page {number} of {self.path} is broken and can't be loaded.") from None
            try:
                width, height = page.get_size()
                dpi, note = self._dpi(number, width, height)
                picture = page.render(scale=dpi / POINTS_AN_INCH, rev_byteorder=True).to_pil()
                notes = [
                    *self._notes,
                    note,
                    *_not_in_the_picture(page, picture, f"Page {number} of {self.path}"),
                ]
                self._notes = []
            except InvalidRequest:
                raise
            except (pdfium.PdfiumError, ValueError, MemoryError):
                raise InvalidRequest(f"Page {number} of {self.path} can't be rendered.") from None
            finally:
                page.close()
        note = " ".join(filter(None, notes))
        return Page(self.path, number, to_png(picture), note, no_repeat_ngram=NO_REPEAT_NGRAM)

    def close(self) -> None:
        """Close the file."""
        with _PDFIUM:
            self._pdf.close()

    def _dpi(self, number: int, width: float, height: float) -> tuple[float, str]:
        """The dpi for a page of (width, height) points, and a note where it isn't what was asked for."""
        settings = self.settings
        name = f"Page {number} of {self.path}"
        if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
            raise InvalidRequest(f"{name} has no area.")
        pixels = width * height * (settings.dpi / POINTS_AN_INCH) ** 2
        limit = min(settings.max_page_pixels, settings.max_image_pixels)
        if pixels <= limit:
            return settings.dpi, ""
        fitting = settings.dpi * math.sqrt(limit / pixels) * 0.999  # sides are rounded up to whole pixels
        size = f"{width / POINTS_AN_INCH:.0f} x {height / POINTS_AN_INCH:.0f} inches large"
        if fitting < settings.min_dpi:
            raise InvalidRequest(
                f"{name} is {size}: at {settings.min_dpi:g} dpi it would have more than "
                f"{limit / 1e6:.0f} million pixels.",
                "Raise DEEPSEEK_OCR_MAX_PAGE_PIXELS, or lower DEEPSEEK_OCR_MIN_DPI.",
            )
        return fitting, f"{name} is {size} and was rendered at {fitting:.0f} dpi instead of {settings.dpi:g}."


def _open(path: Path, password: str | None) -> pdfium.PdfDocument:
    with _PDFIUM:
        # PDFium refuses a file without pages and doesn't say why: its last error stays what it was before.
        # Opening no file leaves a reason there that a file that we can read never has.
        pdfium_c.FPDF_LoadDocument(b"", None)
        try:
            pdf = _with_every_page(pdfium.PdfDocument(path, password=password), path, password)
        except pdfium.PdfiumError as error:
            raise _refusal(path, password, error.err_code) from None
        except OSError as error:
            raise InvalidRequest(f"{path} can't be read: {error.strerror or error}.") from None
        if pdf.get_formtype() not in _XFA:  # which it has no code for, and says so on the terminal
            with suppress(pdfium.PdfiumError):  # a broken form doesn't keep the pages from being read
                pdf.init_forms()  # filled-in fields are part of what a reader sees
        return pdf


def _with_every_page(pdf: pdfium.PdfDocument, path: Path, password: str | None) -> pdfium.PdfDocument:
    """The document, with the pages too that its /Count leaves out; PDFium believes every number but 0.

    Seen where page objects stand in the file as they are; those in object streams aren't.
    """
    if not path.stat().st_size:
        return pdf
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if sum(1 for _ in _PAGE_OBJECT.finditer(data)) <= len(pdf):
            return pdf
        counted = _COUNT.sub(lambda match: match[1] + b"0" * len(match[2]), data)
    try:
        every = pdfium.PdfDocument(counted, password=password)
    except pdfium.PdfiumError:
        return pdf
    chosen, other = (every, pdf) if len(every) > len(pdf) else (pdf, every)
    other.close()
    return chosen


def _loadable(pdf: pdfium.PdfDocument, claimed: int) -> int:
    """How many pages there are: fewer than the file claims where two or more at its end don't exist.

    A single one is a broken page, and fails as such.
    """
    count = claimed
    while count:
        try:
            pdf[count - 1].close()
            break
        except (pdfium.PdfiumError, IndexError):
            count -= 1
    return claimed if claimed - count < 2 else count


def _not_in_the_pages(pdf: pdfium.PdfDocument, path: Path) -> Iterator[str]:
    """What the document holds besides its pages, in a sentence each."""
    if pdf.get_formtype() in _XFA:
        yield f"{path} is an XFA form: only its pages were read, and not what the form holds."
    names = [pdf.get_attachment(index).get_name() for index in range(pdf.count_attachments())]
    if names:
        shown = ", ".join(names[:_NAMED]) + (
            f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        )
        yield f"{path} has attached files, which were not read: {shown}."


def _not_in_the_picture(page: pdfium.PdfPage, picture: Image.Image, name: str) -> Iterator[str]:
    """What the page draws and its picture doesn't show, in a sentence each."""
    darkest, lightest = picture.convert("L").getextrema()
    if darkest == lightest and pdfium_c.FPDFPage_CountObjects(page) > 0:
        yield f"{name} draws something, and its picture is blank."
    elif fonts := _missing_fonts(page, picture):
        yield (
            f"{name} lacks characters of {', '.join(sorted(fonts))}: "
            "the font is neither in the file nor installed here."
        )


def _missing_fonts(page: pdfium.PdfPage, picture: Image.Image) -> set[str]:
    """Fonts that aren't in the file, of characters whose place in the picture is blank.

    PDFium draws nothing where no font has a character. It has Latin letters itself: only others are looked at.
    """
    grey, missing = picture.convert("L"), set()
    embedded: dict[int | None, bool] = {}
    textpage = page.get_textpage()
    try:
        for index in range(min(textpage.count_chars(), _LOOKED_AT)):
            code = pdfium_c.FPDFText_GetUnicode(textpage, index)
            text = pdfium_c.FPDFText_GetTextObject(textpage, index) if code > _LAST_LATIN else None
            if (
                not text
                or pdfium_c.FPDFTextObj_GetTextRenderMode(text) == pdfium_c.FPDF_TEXTRENDERMODE_INVISIBLE
            ):
                continue
            font = pdfium_c.FPDFTextObj_GetFont(text)
            key = ctypes.cast(font, ctypes.c_void_p).value
            if key not in embedded:
                embedded[key] = pdfium_c.FPDFFont_GetIsEmbedded(font) != 0
            if not embedded[key] and _blank(page, textpage, index, grey):
                missing.add(_font_name(font))
    finally:
        textpage.close()
    return missing


def _blank(page: pdfium.PdfPage, textpage: pdfium.PdfTextPage, index: int, grey: Image.Image) -> bool:
    """Whether nothing is drawn where a character stands."""
    box = textpage.get_charbox(index, loose=True)
    x, y, across, down = ctypes.c_int(), ctypes.c_int(), [], []
    for corner in ((box[0], box[1]), (box[2], box[3])):
        pdfium_c.FPDF_PageToDevice(page, 0, 0, *grey.size, 0, *corner, x, y)
        across.append(min(max(x.value, 0), grey.width))
        down.append(min(max(y.value, 0), grey.height))
    if abs(across[0] - across[1]) < 2 or abs(down[0] - down[1]) < 2:
        return False  # off the page
    darkest, lightest = grey.crop((min(across), min(down), max(across), max(down))).getextrema()
    return darkest == lightest


def _font_name(font: object) -> str:
    size = pdfium_c.FPDFFont_GetBaseFontName(font, None, 0)
    buffer = ctypes.create_string_buffer(size)
    pdfium_c.FPDFFont_GetBaseFontName(font, buffer, size)
    return buffer.value.decode(errors="replace")[:60] or "a font without a name"


def _refusal(path: Path, password: str | None, code: int | None) -> InvalidRequest:
    if code == pdfium_c.FPDF_ERR_PASSWORD:
        if password:
            return InvalidRequest(f"The password for {path} is wrong.")
        return InvalidRequest(f"{path} is protected by a password.", "Give it with --password.")
    if code == pdfium_c.FPDF_ERR_FILE:  # not PDFium's word on this file, but what `_open` left there
        return InvalidRequest(f"{path} has no pages.")
    if code == pdfium_c.FPDF_ERR_SECURITY:
        return InvalidRequest(f"{path} is encrypted in a way that can't be opened.")
    return InvalidRequest(f"{path} is no PDF, or a broken one.")
