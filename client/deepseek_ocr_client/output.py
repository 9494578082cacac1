"""Files on disk: whole or not at all, with names that are safe everywhere; figures cropped from a page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from PIL import Image

from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.geometry import Layout
from deepseek_ocr_client.images import open_image
from deepseek_ocr_client.pages import Page
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.settings import ClientSettings
from deepseek_ocr_client.tags import Box

IMAGES = "images"
# The last range stands for bytes of a file name that aren't UTF-8.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|()\[\]#%\ud800-\udfff]+|\s+")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it's complete and on disk.

    Raises `InvalidRequest` where it can't be written (no room, no permission).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid4().hex}.part")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InvalidRequest(f"{path} can't be written: {error.strerror or error}.") from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines; `InvalidRequest` where it can't be written."""
    with atomic_write(path) as file:
        for record in records:
            file.write(json_line(record))


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON in UTF-8; bytes of a file name that aren't come back as they were when it's read."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def safe_name(name: str) -> str:
    """A file name that's safe on every system and inside a Markdown link, of 150 bytes at most."""
    cleaned = _UNSAFE.sub("_", name).strip(". ") or "document"
    return cleaned.encode()[:150].decode(errors="ignore")


def figure_path(name: str, page: int, number: int) -> str:
    """Link of figure `number` of a page, relative to the Markdown file."""
    return f"{IMAGES}/{name.rpartition('/')[2]}/page-{page:04d}-figure-{number}.jpg"


def save_page(
    folder: Path, name: str, page: Page, result: OcrResult, settings: ClientSettings
) -> tuple[str, str]:
    """Write a page's figures below `folder`; returns its Markdown with links to them, and what went wrong, if anything.

    `name` is the document's, with folders in it where the batch keeps a tree. A page that can't be decoded here has its
    text without figures.
    """
    markdown, boxes = result.to_markdown(lambda number: figure_path(name, page.number, number))
    if boxes:
        try:
            picture = open_image(page.image, settings, f"Page {page.number} of {page.document}")
        except InvalidRequest as error:
            return result.to_markdown(None)[0], f"{str(error).rstrip('.')}, so its figures are left out."
        home = (folder / name).parent
        for number, box in enumerate(boxes, start=1):
            with atomic_write(home / figure_path(name, page.number, number)) as file:
                _crop(picture, box, result.layout).save(file, format="JPEG", quality=settings.figure_quality)
    return markdown, ""


def _crop(picture: Image.Image, box: Box, layout: Layout) -> Image.Image:
    """What `box` (page pixels) holds, or a pixel or a line of them where it has no area.

    The picture is smaller than the page where it was decoded so.
    """
    across, down = picture.width / layout.width, picture.height / layout.height
    left, top = min(int(box.x1 * across), picture.width - 1), min(int(box.y1 * down), picture.height - 1)
    right = max(min(int(box.x2 * across), picture.width), left + 1)
    bottom = max(min(int(box.y2 * down), picture.height), top + 1)
    return picture.crop((left, top, right, bottom))
