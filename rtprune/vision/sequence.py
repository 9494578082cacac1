"""Lays the content tokens of a page out as the decoder reads them, with newlines and the separator."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.float32]


def token_sequence(
    global_tokens: Tokens,
    tile_tokens: Tokens,
    tile_grid: tuple[int, int],
    *,
    newline: Tokens,
    separator: Tokens,
) -> Tokens:
    """Return the page's sequence of visual tokens, float32 (L, hidden).

    Rows of the tiles as one large image, each closed by `newline`; then the rows of the global view, each
    closed by `newline`; then `separator`. Source: `DeepseekOCRModel.forward` in DeepSeek-OCR's
    modeling_deepseekocr.py.

    global_tokens: (g * g, hidden). tile_tokens: (tiles, t * t, hidden), row-major, tiles may be 0.
    tile_grid: columns and rows of tiles. newline, separator: (hidden,).

    Raises:
        ValueError: the grid doesn't have as many tiles as there are, or a view isn't square.
    """
    cols, rows = tile_grid
    if cols * rows != len(tile_tokens):
        raise ValueError(f"A grid of {cols} x {rows} tiles can't hold {len(tile_tokens)} tiles.")
    hidden = global_tokens.shape[-1]
    parts = []
    if len(tile_tokens):
        side = _side(tile_tokens.shape[1])
        tiles = tile_tokens.reshape(rows, cols, side, side, hidden)
        grid = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * side, cols * side, hidden)
        parts.append(_close_rows(grid, newline))
    side = _side(global_tokens.shape[0])
    parts.append(_close_rows(global_tokens.reshape(side, side, hidden), newline))
    parts.append(separator[None])
    return np.concatenate(parts, axis=0, dtype=np.float32)


def _close_rows(grid: Tokens, newline: Tokens) -> Tokens:
    rows, _, hidden = grid.shape
    ends = np.broadcast_to(newline, (rows, 1, hidden))
    closed: Tokens = np.concatenate([grid, ends], axis=1).reshape(-1, hidden)
    return closed


def _side(tokens: int) -> int:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{tokens} tokens don't make a square view.")
    return side
