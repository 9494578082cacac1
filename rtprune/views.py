"""The views that the vision encoder reads: the page as one square, and, for large pages, its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rtprune.modes import MODES, TILE_SIDE
from rtprune.settings import Settings

GREY = (127, 127, 127)  # int(255 * 0.5), DeepSeek-OCR's padding
SCALE_UNIT = 10_000


@dataclass(frozen=True, slots=True)
class Views:
    """What is read of one page.

    Attributes:
        global_view: uint8 (S, S, 3).
        tiles: uint8 (n, 640, 640, 3), row by row; n may be 0.
        tile_grid: columns and rows of tiles; (0, 0) = none.
        geometry: int32 [8], the LAYOUT of the front doors: global side S, tile columns, tile rows, the page's
            width and height (upright), padding left and top in the global view (px), and the scale in 1/10,000
            of global-view px a page px; 0 where the page was stretched to the square, each axis by its own
            S / width and S / height. So a point x of the global view is on the page at
            (x - left) * width / (S - 2 * left), whatever the scale, give or take a pixel of rounding.
    """

    global_view: NDArray[np.uint8]
    tiles: NDArray[np.uint8]
    tile_grid: tuple[int, int]
    geometry: NDArray[np.int32]


def make_views(image: Image.Image, mode: str, settings: Settings) -> Views:
    """Resize, pad and tile a page as DeepSeek-OCR does (`modeling_deepseekocr.py`, `infer`).

    tiny and small stretch the page to the square; base, large and gundam fit it and pad with grey 127; gundam
    also cuts pages with a side above 640 px into 2 to `max_tiles` tiles of 640 px. All resizing is bicubic.

    Args:
        image: RGB, upright.
        mode: one of `MODES`.
        settings: `max_tiles`.
    """
    kind = MODES[mode]
    side = kind.side
    width, height = image.size
    if kind.pad:
        view = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=GREY)
        fitted = _fitted(width, height, side)
        left, top = (round((side - length) * 0.5) for length in fitted)
        scale = round(side / max(width, height) * SCALE_UNIT)
    else:
        view = image.resize((side, side), Image.Resampling.BICUBIC)
        left = top = scale = 0
    grid = (0, 0)
    if kind.tiles and max(width, height) > TILE_SIDE:
        grid = choose_grid(width, height, settings.max_tiles)
    geometry = np.array([side, *grid, width, height, left, top, scale], np.int32)
    return Views(np.asarray(view), _tiles(image, grid), grid, geometry)


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """The size that `ImageOps.contain` gives a page in a square of `side` px."""
    if width >= height:
        return side, round(height / width * side)
    return round(width / height * side), side


def choose_grid(width: int, height: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of tiles: the grid of 2 to `max_tiles` whose aspect is closest to the page's.

    Grids are tried from few tiles to many; on a tie the larger one wins if the page has more than half of its
    pixels (DeepSeek-OCR, `find_closest_aspect_ratio`).
    """
    aspect = width / height
    grids = sorted(
        (
            (cols, rows)
            for cols in range(1, max_tiles + 1)
            for rows in range(1, max_tiles + 1)
            if 2 <= cols * rows <= max_tiles
        ),
        key=lambda grid: (grid[0] * grid[1], grid),
    )
    best, best_difference = grids[0], float("inf")
    for cols, rows in grids:
        difference = abs(aspect - cols / rows)
        larger = width * height > 0.5 * TILE_SIDE * TILE_SIDE * cols * rows
        if difference < best_difference or (difference == best_difference and larger):
            best, best_difference = (cols, rows), difference
    return best


def _tiles(image: Image.Image, grid: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 (n, 640, 640, 3), row by row."""
    cols, rows = grid
    if not cols * rows:
        return np.zeros((0, TILE_SIDE, TILE_SIDE, 3), np.uint8)
    resized = image.resize((cols * TILE_SIDE, rows * TILE_SIDE), Image.Resampling.BICUBIC)
    pixels: NDArray[Any] = np.asarray(resized).reshape(rows, TILE_SIDE, cols, TILE_SIDE, 3)
    return np.ascontiguousarray(pixels.swapaxes(1, 2)).reshape(cols * rows, TILE_SIDE, TILE_SIDE, 3)
