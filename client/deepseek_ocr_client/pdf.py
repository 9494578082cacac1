"""PDF pages -> PNG, one at a time, with pypdfium2 (PDFium, what Chrome shows PDFs with)."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from pathlib import Path

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.images import to_png
from deepseek_ocr_client.pages import Document, Page
from deepseek_ocr_client.settings import ClientSettings

POINTS_AN_INCH = 72

# PDFium isn't thread-safe, not even over different documents.
_PDFIUM = threading.RLock()


class PdfDocument(Document):
    """A PDF file. Rotation and crop boxes are applied, form fields and annotations are drawn."""

    def __init__(self, path: Path, settings: ClientSettings, password: str | None = None) -> None:
        self._password = password
        self._rendered = 0
        self._pdf = _open(path, password)
        with _PDFIUM:
            count = len(self._pdf)
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
            except InvalidRequest:
                raise
            except (pdfium.PdfiumError, ValueError, MemoryError):
                raise InvalidRequest(f"Page {number} of {self.path} can't be rendered.") from None
            finally:
                page.close()
        return Page(self.path, number, to_png(picture), note)

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
            pdf = pdfium.PdfDocument(path, password=password)
        except pdfium.PdfiumError as error:
            raise _refusal(path, password, error.err_code) from None
        except OSError as error:
            raise InvalidRequest(f"{path} can't be read: {error.strerror or error}.") from None
        with suppress(pdfium.PdfiumError):  # a broken form doesn't keep the pages from being read
            pdf.init_forms()  # filled-in fields are part of what a reader sees
        return pdf


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
