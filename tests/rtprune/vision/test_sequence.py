"""The order of a page's visual tokens, and the grids that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtprune.layout import TokenLayout
from rtprune.vision.sequence import token_sequence

NEWLINE, SEPARATOR = np.full(2, -1, np.float32), np.full(2, -2, np.float32)


def numbered(*shape: int, start: int = 0) -> NDArray[Any]:
    count = int(np.prod(shape))
    return np.repeat(np.arange(start, start + count, dtype=np.float32)[:, None], 2, 1).reshape(*shape, 2)


def test_a_small_page_by_hand() -> None:
    """Two tiles of 2 x 2 tokens side by side, then a global view of 2 x 2."""
    sequence = token_sequence(
        numbered(4, start=100), numbered(2, 4), (2, 1), newline=NEWLINE, separator=SEPARATOR
    )
    assert sequence[:, 0].tolist() == [0, 1, 4, 5, -1, 2, 3, 6, 7, -1, 100, 101, -1, 102, 103, -1, -2]
    assert sequence.dtype == np.float32


@given(cols=st.integers(1, 9), rows=st.integers(1, 9))
def test_the_layout_says_where_each_kind_stands(cols: int, rows: int) -> None:
    layout = TokenLayout.of("gundam", (cols, rows))
    sequence = token_sequence(
        numbered(256, start=10_000),
        numbered(cols * rows, 100),
        (cols, rows),
        newline=NEWLINE,
        separator=SEPARATOR,
    )[:, 0]
    assert len(sequence) == layout.length
    assert (sequence[layout.newline_mask] == -1).all()
    assert sequence[layout.separator] == -2
    content = sequence[layout.content_mask]
    assert sorted(content) == [*range(100 * cols * rows), *range(10_000, 10_256)]


def test_without_tiles_only_the_view_is_there() -> None:
    none = np.empty((0, 0, 2), np.float32)
    sequence = token_sequence(numbered(64), none, (0, 0), newline=NEWLINE, separator=SEPARATOR)
    assert len(sequence) == TokenLayout.of("tiny").length == 73


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 2 tiles can't hold 3"):
        token_sequence(numbered(4), numbered(3, 4), (2, 2), newline=NEWLINE, separator=SEPARATOR)
    with pytest.raises(ValueError, match="5 tokens don't make a square"):
        token_sequence(
            numbered(5), np.empty((0, 0, 2), np.float32), (0, 0), newline=NEWLINE, separator=SEPARATOR
        )
