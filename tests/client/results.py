"""Results for tests, without a server."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from deepseek_ocr_client.geometry import Layout
from deepseek_ocr_client.pages import Page
from deepseek_ocr_client.result import OcrResult, Timings

PAGE_TEXT = (
    "<|ref|>title<|/ref|><|det|>[[100, 50, 900, 100]]<|/det|>\n# A title\n\n"
    "<|ref|>image<|/ref|><|det|>[[100, 200, 500, 600]]<|/det|>\n"
    "<|ref|>text<|/ref|><|det|>[[100, 620, 900, 900]]<|/det|>\nSome <script>alert(1)</script> text & more."
)
BASE = Layout(1024, 0, 0, 512, 1024, 256, 0, 1.0)
GUNDAM = Layout(1024, 2, 1, 2000, 1000, 0, 256, 0.512)


def make_result(
    text: str = PAGE_TEXT, layout: Layout = BASE, kept: list[int] | None = None, reason: str = "stop"
) -> OcrResult:
    positions = list(range(0, layout.sequence_length, 2)) if kept is None else kept
    return OcrResult(
        text=text,
        finish_reason=reason,
        visual_tokens=layout.sequence_length,
        kept_tokens=len(positions),
        output_tokens=42,
        kept=np.array(positions, np.int32),
        layout=layout,
        timings=Timings(0.01, 0.02, 0.003, 0.0, 0.1, 0.5, 0.6),
        request_id="id",
    )


def make_picture(layout: Layout = BASE) -> Image.Image:
    """A page with a gradient, so that every crop is different."""
    across = np.linspace(0, 255, layout.width)[None, :, None]
    down = np.linspace(0, 255, layout.height)[:, None, None]
    pixels = np.concatenate([across + 0 * down, 0 * across + down, 0 * across + 0 * down + 128], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def make_page(path: str = "page.png", number: int = 1, layout: Layout = BASE) -> Page:
    buffer = io.BytesIO()
    make_picture(layout).save(buffer, "PNG")
    return Page(Path(path), number, buffer.getvalue())
