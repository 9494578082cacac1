"""The order of the visual tokens in every mode."""

from __future__ import annotations

import numpy as np
import pytest

from rtprune import TokenLayout
from rtprune.errors import InvalidInput

LENGTHS = {"tiny": 73, "small": 111, "base": 273, "large": 421, "gundam": 273}


@pytest.mark.parametrize(("mode", "length"), LENGTHS.items())
def test_the_published_lengths(mode: str, length: int) -> None:
    layout = TokenLayout.of(mode)
    assert layout.length == length == len(layout.content_mask)


@pytest.mark.parametrize("cols", range(1, 10))
@pytest.mark.parametrize("rows", range(1, 10))
def test_tiles(cols: int, rows: int) -> None:
    layout = TokenLayout.of("gundam", tile_grid=(cols, rows))
    assert layout.length == 10 * rows * (10 * cols + 1) + 273
    assert layout.content_count == 100 * cols * rows + 256 == layout.content_mask.sum()
    assert layout.newline_mask.sum() == 10 * rows + 16
    assert layout.newline_mask[10 * cols]
    assert layout.newline_mask[10 * rows * (10 * cols + 1) + 16]
    other = ~(layout.content_mask | layout.newline_mask)
    assert np.flatnonzero(other).tolist() == [layout.separator] == [layout.length - 1]
    assert not (layout.content_mask & layout.newline_mask).any()
    geometry = np.array([1024, cols, rows, 5, 6, 7, 8, 9], np.int32)
    assert TokenLayout.from_geometry(geometry) == layout


@pytest.mark.parametrize(
    ("mode", "grid"), [("huge", None), ("base", (2, 1)), ("gundam", (0, 3)), ("gundam", (-1, 2))]
)
def test_what_cannot_be_is_refused(mode: str, grid: tuple[int, int] | None) -> None:
    with pytest.raises(InvalidInput, match="mode must be|tile_grid must"):
        TokenLayout.of(mode, tile_grid=grid)


def test_the_masks_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TokenLayout.of("tiny").content_mask[0] = False
