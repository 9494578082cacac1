"""The views: DeepSeek-OCR's pixels and geometry, and that the geometry can be undone."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deepseek_ocr_client.geometry import Layout, TokenMap
from rtprune.modes import BLOCK, MODES, TILE_SIDE
from rtprune.preprocess.views import choose_grid, fitted_size, make_views
from rtprune.settings import Settings

SETTINGS = Settings()
sizes = st.integers(1, 3000)
PADDED = [mode.name for mode in MODES.values() if mode.pad]


def random_page(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def page_area(geometry: NDArray[Any]) -> tuple[float, float, float, float]:
    """left, top, width, height of the page in the global view, from the geometry alone (docstring of Views)."""
    side, _, _, width, height, left, top, scale = geometry.tolist()
    if scale == 0:
        return 0, 0, side, side
    longer = max(width, height)
    return left, top, *(max(1, round(length / longer * side)) for length in (width, height))


# The pixels


@pytest.mark.parametrize("size", [(640, 640), (300, 200), (813, 1500), (1999, 641), (40, 900), (1, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_the_references(mode: str, size: tuple[int, int]) -> None:
    """The reference calls Image.resize and ImageOps.pad with their defaults."""
    page, side = random_page(*size), MODES[mode].side
    views = make_views(page, mode, SETTINGS)
    wanted = (
        ImageOps.pad(page, (side, side), color=(127,) * 3) if MODES[mode].pad else page.resize((side, side))
    )
    np.testing.assert_array_equal(views.global_view, np.asarray(wanted))
    assert views.global_view.flags.c_contiguous
    cols, rows = views.tile_grid
    if cols:
        whole = page.resize((cols * TILE_SIDE, rows * TILE_SIDE))
        for number, (row, col) in enumerate(itertools.product(range(rows), range(cols))):
            box = (col * TILE_SIDE, row * TILE_SIDE, (col + 1) * TILE_SIDE, (row + 1) * TILE_SIDE)
            np.testing.assert_array_equal(views.tiles[number], np.asarray(whole.crop(box)))


@pytest.mark.parametrize("mode", ["tiny", "base", "gundam"])
def test_a_grey_page_has_the_views_of_the_same_page_in_rgb(mode: str) -> None:
    grey = random_page(900, 700).convert("L")
    one, three = (make_views(page, mode, SETTINGS) for page in (grey, grey.convert("RGB")))
    np.testing.assert_array_equal(one.global_view, three.global_view)
    np.testing.assert_array_equal(one.tiles, three.tiles)


@pytest.mark.parametrize("mode", MODES)
def test_a_page_of_the_views_own_size_is_itself(mode: str) -> None:
    side = MODES[mode].side
    page = random_page(side, side)
    views = make_views(page, mode, SETTINGS)
    np.testing.assert_array_equal(views.global_view, np.asarray(page))
    assert views.geometry.tolist()[3:7] == [side, side, 0, 0]


def test_tiles_are_cut_row_by_row() -> None:
    page = np.zeros((1920, 1280, 3), np.uint8)
    for number in range(6):
        row, col = divmod(number, 2)
        page[640 * row : 640 * (row + 1), 640 * col : 640 * (col + 1)] = 40 * number
    tiles = make_views(Image.fromarray(page), "gundam", SETTINGS).tiles
    assert tiles.shape == (6, 640, 640, 3)
    assert [int(np.median(tile)) for tile in tiles] == [0, 40, 80, 120, 160, 200]


@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_types(mode: str) -> None:
    views = make_views(random_page(700, 500), mode, SETTINGS)
    side, grid = MODES[mode].side, (3, 2) if MODES[mode].tiles else (0, 0)
    assert (views.global_view.shape, views.global_view.dtype) == ((side, side, 3), np.dtype(np.uint8))
    assert (views.tiles.shape, views.tiles.dtype) == ((grid[0] * grid[1], 640, 640, 3), np.dtype(np.uint8))
    assert (views.geometry.shape, views.geometry.dtype) == ((8,), np.dtype(np.int32))
    assert views.tile_grid == grid


# The geometry


@settings(max_examples=25)
@given(st.integers(1, 1200), st.integers(1, 1200), st.sampled_from(PADDED))
def test_the_page_lies_where_the_geometry_says(width: int, height: int, mode: str) -> None:
    views = make_views(Image.new("L", (width, height), 255), mode, SETTINGS)
    side, _, _, w, h, _, _, scale = views.geometry.tolist()
    assert (w, h, side) == (width, height, MODES[mode].side)
    left, top, shown_width, shown_height = page_area(views.geometry)
    wanted = np.full((side, side, 3), 127, np.uint8)
    wanted[top : top + shown_height, left : left + shown_width] = 255
    np.testing.assert_array_equal(views.global_view, wanted)
    assert abs(max(width, height) * scale / 10_000 - side) <= max(width, height) / 20_000


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from(PADDED))
def test_padding_and_size_invert_exactly(width: int, height: int, mode: str) -> None:
    side = MODES[mode].side
    fitted = fitted_size(width, height, side)
    assert max(fitted) == side
    assert min(fitted) >= 1
    for length, shown in zip((width, height), fitted, strict=True):
        exact = Fraction(length * side, max(width, height))
        assert abs(shown - exact) <= Fraction(1, 2) or shown == 1
        left = round((side - shown) * 0.5)
        assert abs(left - (side - shown - left)) <= 1  # centred
        for x in (Fraction(0), Fraction(length, 3), Fraction(length)):
            u = left + x * shown / length  # page to view
            assert (u - left) * length / shown == x
            assert 0 <= u <= side


@settings(max_examples=25)
@given(sizes, sizes)
def test_tiny_is_stretched(width: int, height: int) -> None:
    views = make_views(Image.new("L", (width, height), 255), "tiny", SETTINGS)
    assert views.geometry.tolist() == [512, 0, 0, width, height, 0, 0, 0]
    assert (views.global_view == 255).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(900, 1300), (1300, 501), (333, 640)])
def test_the_clients_map_finds_a_mark(mode: str, size: tuple[int, int]) -> None:
    """A dark square on the page is dark in exactly the token that the client draws around it."""
    width, height = size
    page = np.full((height, width), 255, np.uint8)
    x, y = width * 5 // 8, height * 3 // 8
    page[y - 5 : y + 5, x - 5 : x + 5] = 0
    views = make_views(Image.fromarray(page), mode, SETTINGS)
    layout = Layout.of(views.geometry.tolist())
    where = TokenMap(layout)
    for name, grid in (("global", layout.global_grid), ("tiles", layout.tile_grid)):
        if not grid[0]:
            continue
        view = views.global_view if name == "global" else mosaic(views.tiles, views.tile_grid)
        blocks = view[..., 0].reshape(grid[1], BLOCK, grid[0], BLOCK).min(axis=(1, 3))
        row, column = divmod(int(blocks.argmin()), grid[0])
        area = where.area(name, column, row)
        assert area.left - 6 <= x <= area.right + 6
        assert area.top - 6 <= y <= area.bottom + 6


def mosaic(tiles: NDArray[Any], grid: tuple[int, int]) -> NDArray[Any]:
    cols, rows = grid
    joined = tiles.reshape(rows, cols, TILE_SIDE, TILE_SIDE, 3).swapaxes(1, 2)
    return joined.reshape(rows * TILE_SIDE, cols * TILE_SIDE, 3)


# The grid of tiles


@given(sizes, sizes, st.integers(2, 9))
def test_the_grid_is_that_of_brute_force(width: int, height: int, most: int) -> None:
    """All grids in exact arithmetic: the closest, and among equals the largest that is not too large."""
    sides = range(1, most + 1)
    grids = [(c, r) for c in sides for r in sides if 2 <= c * r <= most]
    distance = {(c, r): abs(Fraction(width, height) - Fraction(c, r)) for c, r in grids}
    closest = [grid for grid in grids if distance[grid] == min(distance.values())]
    smallest = min(c * r for c, r in closest)
    allowed = [(c, r) for c, r in closest if c * r == smallest or 2 * width * height > TILE_SIDE**2 * c * r]
    most_tiles = max(c * r for c, r in allowed)
    wanted = {grid for grid in allowed if grid[0] * grid[1] == most_tiles}
    assume(len(wanted) == 1)  # the reference leaves a tie of grids with equal tiles to its set's order
    # Equal distances above and below the page's aspect may differ in the last bit of the reference's floats.
    assume(len({Fraction(c, r) for c, r in closest}) == 1)
    assert {choose_grid(width, height, most)} == wanted


def test_no_tie_of_equal_tiles_is_left_to_chance() -> None:
    for scale, cols, rows, most in itertools.product(
        (80, 320, 640, 900), range(1, 41), range(1, 41), range(4, 10)
    ):
        width, height = scale * cols, scale * rows
        grid = choose_grid(width, height, most)
        distance = abs(cols / rows - grid[0] / grid[1])
        twins = [
            (n, grid[0] * grid[1] // n)
            for n in range(1, most + 1)
            if grid[0] * grid[1] % n == 0 and n != grid[0]
        ]
        assert all(abs(cols / rows - c / r) != distance for c, r in twins)


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
    views = make_views(Image.new("L", size), "gundam", SETTINGS)
    assert views.tile_grid == grid == tuple(views.geometry[1:3])
    assert len(views.tiles) == grid[0] * grid[1]


def test_the_number_of_tiles_is_a_setting() -> None:
    assert make_views(Image.new("L", (4000, 4000)), "gundam", Settings(max_tiles=6)).tile_grid == (2, 2)
