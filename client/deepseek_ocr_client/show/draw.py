"""The page as a picture with boxes, labels and, if asked, its pruned tokens dimmed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from deepseek_ocr_client.result import OcrResult, Region
from deepseek_ocr_client.show.tokens import View, pruned_mask, views_of

LONGEST_SIDE = 2400  # pixels; larger pages are drawn smaller
DIMMED = 0.35  # brightness of pruned blocks
FILL = 28  # alpha of a box's inside, of 255
GAP = 24  # pixels between two views side by side

# Okabe and Ito's palette, which stays apart for colour-blind readers, without black and yellow.
PALETTE = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
FIXED = {
    "text": 0,
    "title": 1,
    "sub_title": 1,
    "image": 2,
    "table": 3,
    "image_caption": 4,
    "table_caption": 4,
}


def color_of(label: str) -> tuple[int, int, int]:
    """RGB of a label, the same in every picture."""
    return PALETTE[FIXED.get(label, zlib.crc32(label.encode())) % len(PALETTE)]


def css(color: tuple[int, int, int]) -> str:
    """A colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def draw_result(picture: Image.Image, result: OcrResult, *, tokens: bool = False) -> Image.Image:
    """The page in RGB with its regions; with `tokens`, pruned blocks are dark.

    A page that was cut into tiles gives two pictures side by side with `tokens`: the tiles' blocks with the
    regions, and the global view's.
    """
    page = picture.convert("RGB")
    page.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    scale = page.width / result.layout.width, page.height / result.layout.height
    model = f"model: {result.model}" if result.model else ""
    if not tokens:
        drawn_page = _regions(page, result.regions, scale)
        return _titled(drawn_page, model) if model else drawn_page
    drawn = []
    for number, view in enumerate(views_of(result)):
        dimmed = _dim(page, view, result)
        if number == 0:
            dimmed = _regions(dimmed, result.regions, scale)
        drawn.append(_titled(dimmed, ", ".join(filter(None, (view.title, model)))))
    return _side_by_side(drawn)


def _dim(page: Image.Image, view: View, result: OcrResult) -> Image.Image:
    pixels = np.array(page)
    mask = pruned_mask(view, page.width, page.height, (result.layout.width, result.layout.height))
    pixels[mask] = (pixels[mask] * DIMMED).astype(np.uint8)
    return Image.fromarray(pixels)


def _regions(page: Image.Image, regions: Sequence[Region], scale: tuple[float, float]) -> Image.Image:
    layer = Image.new("RGBA", page.size)
    draw = ImageDraw.Draw(layer)
    line = max(2, page.width // 500)
    draw.font = ImageFont.load_default(size=max(12, page.width // 75))
    for region in regions:
        color = color_of(region.label)
        for box in region.boxes:
            left, right = sorted((box.x1 * scale[0], box.x2 * scale[0]))
            top, bottom = sorted((box.y1 * scale[1], box.y2 * scale[1]))
            corners = [left, top, max(right, left + 1), max(bottom, top + 1)]
            draw.rectangle(corners, fill=(*color, FILL), outline=(*color, 255), width=line)
            _label(draw, region.label, (left, top), color, page.width)
    return Image.alpha_composite(page.convert("RGBA"), layer).convert("RGB")


def _label(
    draw: ImageDraw.ImageDraw,
    label: str,
    corner: tuple[float, float],
    color: tuple[int, int, int],
    width: int,
) -> None:
    """The label above its box's left corner, or inside where there's no room above; `width` is the page's."""
    # One short line of characters that the built-in font has.
    words = " ".join(label.split())[:40].encode("ascii", "replace").decode()
    if not words:
        return
    left, top, right, bottom = draw.textbbox((0, 0), words)
    across, down = right - left + 8, bottom - top + 8
    x = max(0, min(corner[0], width - across))
    y = corner[1] - down if corner[1] >= down else corner[1]
    draw.rectangle((x, y, x + across, y + down), fill=(*color, 230))
    draw.text((x + 4 - left, y + 4 - top), words, fill="white")


def _titled(page: Image.Image, title: str) -> Image.Image:
    font = ImageFont.load_default(size=max(14, page.width // 45))
    height = int(ImageDraw.Draw(page).textbbox((0, 0), title, font=font)[3]) + 16
    canvas = ImageOps.expand(page, (0, height, 0, 0), "white")
    ImageDraw.Draw(canvas).text((8, 8), title, fill=(40, 40, 40), font=font)
    return canvas


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + GAP
    return canvas
