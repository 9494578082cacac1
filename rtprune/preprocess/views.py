"""The views that the vision encoder reads: the page as one square, and, for large pages, its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtprune.modes import MODES, TILE_SIDE
from rtprune.settings import Settings

GREY = 127  # int(255 * 0.5), DeepSeek-OCR's padding
SCALE_UNIT = 10_000

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Views:
    """What is read of one page.

    Attributes:
        global_view: uint8 (S, S, 3).
        tiles: uint8 (n, 640, 640, 3), row by row; n may be 0.
        tile_grid: columns and rows of tiles; (0, 0) = none.
        geometry: int32 [8], the LAYOUT of the endpoints, from which a client draws on the page:

            | index | what |
            |---|---|
            | 0 | S, the global view's side in px |
            | 1, 2 | columns, rows of tiles; 0, 0 = none |
            | 3, 4 | W, H: the page's width and height in px, upright |
            | 5, 6 | left, top: padding in px of the global view |
            | 7 | scale: px of the global view a px of the page, in 1/10,000, rounded; 0 = stretched |

            *Boxes* that the model writes, 0 to 999, are fractions of the page in every mode: x / 999 * W,
            y / 999 * H. Neither padding nor tiles enter.
            *The global view.* The page fills w x h px of it, from (left, top): w = h = S where scale is 0;
            else w = S and h = max(1, round(H / W * S)) for W >= H, and w = max(1, round(W / H * S)) and h = S
            for W < H (round: half to even). So the view's point (u, v) is on the page at
            x = (u - left) * W / w, y = (v - top) * H / h, exactly; the scale, which is rounded, isn't needed.
            What falls outside 0..W or 0..H is padding.
            *Tiles* are cut from the page stretched to (640 * columns, 640 * rows): point (u, v) of the tile in
            column c and row r is at x = (640 c + u) * W / (640 * columns), y = (640 r + v) * H / (640 * rows).
            *A content token* is a block of 64 x 64 px of its view.
    """

    global_view: Pixels
    tiles: Pixels
    tile_grid: tuple[int, int]
    geometry: NDArray[np.int32]


def make_views(image: Image.Image, mode: str, settings: Settings) -> Views:
    """Resize, pad and tile a page as DeepSeek-OCR does (`modeling_deepseekocr.py`, `infer`).

    tiny and small stretch the page to the square; base, large and gundam fit it and pad with grey 127; gundam
    also cuts pages with a side above 640 px into 2 to `max_tiles` tiles of 640 px. All resizing is Pillow's
    bicubic, which is what the reference gets from `Image.resize` and `ImageOps.pad` without saying so.

    `UnlimitedOcrImageProcessor` of transformers, the maintained reference of the architecture, chooses the same
    grids and sizes. It differs where the padding is odd (it rounds down, `ImageOps.pad` half to even, so that the
    page lies up to 1 px elsewhere), and by a few levels in pixels, for it resizes with torchvision.

    Args:
        image: mode RGB, or L for a grey page; upright. `info["size"]` is the page's width and height where the decoder
            made the picture smaller.
        mode: one of `MODES`.
        settings: `max_tiles`.
    """
    kind = MODES[mode]
    side, (width, height) = kind.side, image.info.get("size", image.size)
    if kind.pad:
        fitted = fitted_size(width, height, side)
        left, top = (round((side - length) * 0.5) for length in fitted)
        scale = round(side / max(width, height) * SCALE_UNIT)
    else:
        fitted, left, top, scale = (side, side), 0, 0, 0
    grid = (0, 0)
    if kind.tiles and max(width, height) > TILE_SIDE:
        grid = choose_grid(width, height, settings.max_tiles)
    geometry = np.array([side, *grid, width, height, left, top, scale], np.int32)
    return Views(_padded(image, fitted, (left, top), side), _tiles(image, grid), grid, geometry)


def fitted_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height, px, of a page that keeps its aspect in a square of `side` px (`ImageOps.contain`)."""
    if width >= height:
        return side, max(1, round(height / width * side))
    return max(1, round(width / height * side)), side


def choose_grid(width: int, height: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of 2 to `max_tiles` tiles whose aspect is closest to that of a page of width x height px.

    Grids are tried from few tiles to many; on a tie the larger one wins if the page has more than half of its
    pixels (DeepSeek-OCR, `find_closest_aspect_ratio`).
    """
    aspect, area = width / height, width * height
    best, best_difference = (1, 1), float("inf")
    for cols, rows in _grids(max_tiles):
        difference = abs(aspect - cols / rows)
        larger = area > 0.5 * TILE_SIDE * TILE_SIDE * cols * rows
        if difference < best_difference or (difference == best_difference and larger):
            best, best_difference = (cols, rows), difference
    return best


@lru_cache(maxsize=16)
def _grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    sides = range(1, max_tiles + 1)
    grids = ((cols, rows) for cols in sides for rows in sides if 2 <= cols * rows <= max_tiles)
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def _resized(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """uint8 (height, width, 3), or (height, width, 1) of a grey page."""
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _padded(image: Image.Image, size: tuple[int, int], corner: tuple[int, int], side: int) -> Pixels:
    """uint8 (side, side, 3): the page in `size`, its upper left corner at `corner`, on grey."""
    (width, height), (left, top) = size, corner
    view = np.full((side, side, 3), GREY, np.uint8)
    view[top : top + height, left : left + width] = _resized(image, size)
    return view


def _tiles(image: Image.Image, grid: tuple[int, int]) -> Pixels:
    """uint8 (n, 640, 640, 3), row by row."""
    cols, rows = grid
    tiles = np.empty((rows, cols, TILE_SIDE, TILE_SIDE, 3), np.uint8)
    if tiles.size:
        pixels = _resized(image, (cols * TILE_SIDE, rows * TILE_SIDE))
        tiles[:] = pixels.reshape(rows, TILE_SIDE, cols, TILE_SIDE, -1).swapaxes(1, 2)
    return tiles.reshape(-1, TILE_SIDE, TILE_SIDE, 3)
