"""Where boxes and visual tokens lie on the page: from 0..999 and token positions to page pixels.

Two frames, and they differ:

* Boxes that the model writes are fractions of the page: v / 999 of the page's own width and height (after
  EXIF rotation), whatever the mode, padding or tiles. The reference code draws them so
  (`draw_bounding_boxes` in DeepSeek-OCR), and so does `to_pixels`.
* Visual tokens are blocks of 64 x 64 px of the views that the encoder saw: a global view that is padded
  (base, large, gundam) or stretched (tiny, small), and tiles of a stretched page (gundam). `TokenMap` brings
  them back to the page with the answer's LAYOUT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deepseek_ocr_client.contract import LAYOUT
from deepseek_ocr_client.errors import ServerFailed
from deepseek_ocr_client.tags import MAX_COORDINATE, Box

BLOCK = 64  # pixels of a view's side that become one token: patch 16, then 4 x 4 patches to a token
TILE_SIDE = 640  # pixels
SCALE_UNIT = 10_000


def to_pixels(box: Box, width: int, height: int) -> Box:
    """A box in 0..999 of the page -> page pixels of a page of (width, height), never outside it.

    Every corner is rounded down, in the reference code's order of operations: figures are cut to the same pixel. So
    a box narrower than a pixel is empty.
    """
    sides = (width, height, width, height)
    return Box(*(int(value / MAX_COORDINATE * side) for value, side in zip(box, sides, strict=True)))


class Rectangle(NamedTuple):
    """A rectangle in page pixels, not rounded."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def empty(self) -> bool:
        """Whether it has no area."""
        return self.right <= self.left or self.bottom <= self.top


@dataclass(frozen=True, slots=True)
class Layout:
    """The LAYOUT output: what the encoder saw of a page.

    `side` is the global view's side in pixels; `columns` x `rows` tiles (0 x 0 without); `width` x `height`
    the page's pixels after EXIF rotation; `left` and `top` the padding in the global view, in its pixels;
    `scale` view pixels per page pixel, 0 where the page was stretched to the square.
    """

    side: int
    columns: int
    rows: int
    width: int
    height: int
    left: int
    top: int
    scale: float

    @classmethod
    def of(cls, values: Sequence[int]) -> Layout:
        """From the numbers of the tensor, in the contract's order; `ServerFailed` where it can't be one."""
        numbers = [int(value) for value in values]
        if len(numbers) != len(LAYOUT) or min(numbers) < 0 or 0 in (numbers[0], numbers[3], numbers[4]):
            raise ServerFailed(f"The server's LAYOUT isn't one: {numbers}.")
        side, columns, rows, width, height, left, top, scale = numbers
        return cls(side, columns, rows, width, height, left, top, scale / SCALE_UNIT)

    @property
    def tiled(self) -> bool:
        """Whether the page was cut into tiles as well."""
        return self.columns > 0 and self.rows > 0

    @property
    def global_grid(self) -> tuple[int, int]:
        """(columns, rows) of the global view's tokens."""
        return self.side // BLOCK, self.side // BLOCK

    @property
    def tile_grid(self) -> tuple[int, int]:
        """(columns, rows) of all tiles' tokens together; (0, 0) without tiles."""
        blocks = TILE_SIDE // BLOCK
        return self.columns * blocks, self.rows * blocks

    @property
    def sequence_length(self) -> int:
        """Visual tokens before pruning: content, a newline a row, and the separator."""
        return sum((columns + 1) * rows for columns, rows in (self.tile_grid, self.global_grid)) + 1


class Token(NamedTuple):
    """A content token: which view it belongs to, its cell there, and what it shows of the page."""

    view: str  # "tiles" or "global"
    column: int
    row: int
    area: Rectangle


class TokenMap:
    """From a position of the unpruned sequence to its place on the page.

    The sequence: the tiles' tokens row by row over the whole page, each row closed by a newline token, then
    the global view's likewise, then one separator. Newlines and the separator have no place.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        columns, rows = layout.tile_grid
        self._tiles = (columns + 1) * rows

    def token(self, position: int) -> Token | None:
        """The content token at `position`, or None for a newline, the separator or a place outside."""
        if not 0 <= position < self.layout.sequence_length - 1:
            return None
        view, grid = "tiles", self.layout.tile_grid
        if position >= self._tiles:
            view, grid, position = "global", self.layout.global_grid, position - self._tiles
        row, column = divmod(position, grid[0] + 1)
        if column == grid[0]:
            return None
        return Token(view, column, row, self.area(view, column, row))

    def area(self, view: str, column: int, row: int) -> Rectangle:
        """What the cell (column, row) of a view shows, in page pixels; empty where it's all padding."""
        layout = self.layout
        if view == "tiles":
            columns, rows = layout.tile_grid
            step_x, step_y = layout.width / columns, layout.height / rows
            return Rectangle(column * step_x, row * step_y, (column + 1) * step_x, (row + 1) * step_y)
        x1, x2 = (_on_page(edge, layout.left, layout.side, layout.width) for edge in (column, column + 1))
        y1, y2 = (_on_page(edge, layout.top, layout.side, layout.height) for edge in (row, row + 1))
        return Rectangle(x1, y1, x2, y2)


def _on_page(edge: int, padding: int, side: int, length: int) -> float:
    """An edge between cells of the global view, in page pixels along an axis of `length`, never outside it."""
    seen = max(side - 2.0 * padding, 1.0)  # what the page fills of the view's side
    return min(max((edge * BLOCK - padding) / seen, 0.0), 1.0) * length
