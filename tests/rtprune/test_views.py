"""The views: DeepSeek-OCR's geometry, and that it can be undone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rtprune.modes import MODES
from rtprune.settings import Settings
from rtprune.views import choose_grid, make_views

SETTINGS = Settings()
sizes = st.integers(1, 3000)


@pytest.mark.parametrize("mode", MODES)
def test_a_page_of_the_views_own_size_is_itself(mode: str) -> None:
    side = MODES[mode].side
    page = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    views = make_views(Image.fromarray(page), mode, SETTINGS)
    np.testing.assert_array_equal(views.global_view, page)
    assert views.geometry.tolist()[:1] + views.geometry.tolist()[3:7] == [side, side, side, 0, 0]


@given(st.integers(8, 1200), st.integers(8, 1200), st.sampled_from(["base", "large", "gundam"]))
def test_the_page_lies_where_the_geometry_says(width: int, height: int, mode: str) -> None:
    views = make_views(Image.new("RGB", (width, height), "white"), mode, SETTINGS)
    side, _, _, w, h, left, top, scale = views.geometry.tolist()
    assert (w, h, side) == (width, height, MODES[mode].side)
    white = (views.global_view == 255).all(2)
    rows, cols = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    assert (cols[0], rows[0]) == (left, top)
    assert (views.global_view[~white] == 127).all()
    shown = (cols[-1] - cols[0] + 1, rows[-1] - rows[0] + 1)
    assert shown == pytest.approx((width * scale / 10_000, height * scale / 10_000), abs=1.5)
    assert max(shown) == side


@given(sizes, sizes)
def test_tiny_is_stretched(width: int, height: int) -> None:
    views = make_views(Image.new("RGB", (width, height), "white"), "tiny", SETTINGS)
    assert views.geometry.tolist() == [512, 0, 0, width, height, 0, 0, 0]
    assert (views.global_view == 255).all()


@given(sizes, sizes, st.integers(2, 9))
def test_the_grid_is_the_closest(width: int, height: int, most: int) -> None:
    cols, rows = choose_grid(width, height, most)
    assert 2 <= cols * rows <= most
    aspect = width / height
    best = min(
        abs(aspect - c / r) for c in range(1, most + 1) for r in range(1, most + 1) if 2 <= c * r <= most
    )
    assert abs(aspect - cols / rows) == best


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((640, 640), (0, 0)),
        ((641, 640), (2, 2)),
        ((1280, 1920), (2, 3)),
        ((700, 1400), (1, 2)),
        ((2000, 4000), (2, 4)),
        ((4000, 4000), (3, 3)),
        ((900, 900), (2, 2)),
        ((3000, 300), (9, 1)),
        ((300, 3000), (1, 9)),
    ],
)
def test_the_published_rule(size: tuple[int, int], grid: tuple[int, int]) -> None:
    views = make_views(Image.new("RGB", size), "gundam", SETTINGS)
    assert views.tile_grid == grid == tuple(views.geometry[1:3])
    assert len(views.tiles) == grid[0] * grid[1]


def test_tiles_are_cut_row_by_row() -> None:
    page = np.zeros((1920, 1280, 3), np.uint8)
    for number in range(6):
        row, col = divmod(number, 2)
        page[640 * row : 640 * (row + 1), 640 * col : 640 * (col + 1)] = 40 * number
    tiles = make_views(Image.fromarray(page), "gundam", SETTINGS).tiles
    assert tiles.shape == (6, 640, 640, 3)
    assert [int(np.median(tile)) for tile in tiles] == [0, 40, 80, 120, 160, 200]
