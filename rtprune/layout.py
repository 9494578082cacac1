"""Where content tokens, newlines and the separator stand in the sequence of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtprune.errors import InvalidInput
from rtprune.modes import BLOCK, MODES, TILE_SIDE

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The order of the visual tokens as the decoder sees them (DeepSeek-OCR, `modeling_deepseekocr.py`).

    Rows of content tokens, each closed by an `image_newline`: first the tiles as one grid, where there are
    any, then the global view; last the `view_seperator`.

    Attributes:
        global_grid: rows and columns of content tokens of the global view.
        tile_grid: columns and rows of tiles; (0, 0) = none.
    """

    global_grid: tuple[int, int]
    tile_grid: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, mode: str, tile_grid: tuple[int, int] | None = None) -> TokenLayout:
        """The layout of a mode; gundam with no tiles is base's.

        Raises:
            InvalidInput: an unknown mode, tiles in a mode that has none, or an impossible grid.
        """
        if mode not in MODES:
            raise InvalidInput(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
        cols, rows = (0, 0) if tile_grid is None else (int(tile_grid[0]), int(tile_grid[1]))
        if (cols, rows) != (0, 0):
            if not MODES[mode].tiles:
                raise InvalidInput(f"tile_grid must be (0, 0) in mode {mode}; got ({cols}, {rows}).")
            if cols < 1 or rows < 1:
                raise InvalidInput(
                    f"tile_grid must have columns and rows, or be (0, 0); got ({cols}, {rows})."
                )
        side = MODES[mode].side // BLOCK
        return cls((side, side), (cols, rows))

    @classmethod
    def from_geometry(cls, geometry: NDArray[np.integer[Any]]) -> TokenLayout:
        """The layout that LAYOUT, int32 (8,) of global side in px, tile columns, tile rows, ..., describes.

        Raises:
            InvalidInput: a side that no mode has.
        """
        side, cols, rows = (int(n) for n in geometry[:3])
        if side not in {mode.side for mode in MODES.values()}:
            raise InvalidInput(f"LAYOUT names a global view of {side} px, which no mode has.")
        return cls((side // BLOCK, side // BLOCK), (cols, rows))

    @property
    def local_grid(self) -> tuple[int, int]:
        """Rows and columns of content tokens of the tiles together; (0, 0) = none."""
        cols, rows = self.tile_grid
        return rows * (TILE_SIDE // BLOCK), cols * (TILE_SIDE // BLOCK)

    @property
    def length(self) -> int:
        """L, tokens in the sequence."""
        return sum(rows * (cols + 1) for rows, cols in (self.local_grid, self.global_grid)) + 1

    @property
    def content_count(self) -> int:
        """N, content tokens."""
        return sum(rows * cols for rows, cols in (self.local_grid, self.global_grid))

    @property
    def content_mask(self) -> Mask:
        """bool (L,), read-only: True at content tokens."""
        return _masks(self)[0]

    @property
    def newline_mask(self) -> Mask:
        """bool (L,), read-only: True at `image_newline` tokens."""
        return _masks(self)[1]

    @property
    def separator(self) -> int:
        """Position of the `view_seperator`: the last, L - 1."""
        return self.length - 1


@lru_cache(maxsize=128)
def _masks(layout: TokenLayout) -> tuple[Mask, Mask]:
    parts = []
    for rows, cols in (layout.local_grid, layout.global_grid):
        grid = np.zeros((rows, cols + 1), bool)
        grid[:, -1] = True
        parts.append(grid.reshape(-1))
    newline = np.concatenate([*parts, [False]])
    content = ~newline
    content[-1] = False
    newline.flags.writeable = content.flags.writeable = False
    return content, newline
