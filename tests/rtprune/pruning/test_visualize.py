"""Pictures of pruning: what is kept is the page itself, what is pruned isn't, and colours follow the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rtprune import PruneConfig, TokenLayout, prune
from rtprune.errors import InvalidInput
from rtprune.pruning.visualize import draw_pruning, heat, heat_colours, join_tiles, token_grids
from tests.rtprune.pruning.test_pruning import page

TINY = TokenLayout.of("tiny")


def view(side: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, lambda a: torch.from_numpy(a).bfloat16()])
def test_kept_blocks_are_the_page_and_pruned_ones_are_not(convert: object) -> None:
    tokens = convert(page(TINY, 1))  # type: ignore[operator]
    result = prune(tokens, TINY, text_density=0.2, config=PruneConfig(retention=0.5))
    pixels = view(512)
    pictures = draw_pruning(result, tokens, pixels)
    drawn = np.asarray(pictures.kept)
    kept = set(np.asarray(result.kept_content).tolist())
    for index in range(64):
        row, col = divmod(index, 8)
        block = np.s_[row * 64 : row * 64 + 64, col * 64 : col * 64 + 64]
        assert np.array_equal(drawn[block], pixels[block]) == (index in kept)
        if index not in kept:
            assert drawn[block].mean() > 180
            np.testing.assert_array_equal(np.asarray(pictures.merge_mass)[block], drawn[block])
    assert pictures.norms.size == pictures.merge_mass.size == (512, 512)
    assert 0 <= pictures.merge_mass_range[0] <= pictures.merge_mass_range[1] <= 1
    assert pictures.norm_range[0] < pictures.norm_range[1]


def test_tiles_stand_left_of_the_global_view() -> None:
    layout = TokenLayout.of("gundam", tile_grid=(1, 2))
    tokens = page(layout, 1)
    result = prune(tokens, layout, text_density=0.2, config=PruneConfig(retention=0.6))
    tiles = np.stack([view(640, 1), view(640, 2)])
    pictures = draw_pruning(result, tokens, view(1024), tiles)
    assert pictures.kept.size == (640 + 16 + 1024, 1280)
    first = int(result.kept_content[0])
    row, col = divmod(first, 10)
    drawn = np.asarray(pictures.kept)[row * 64 : row * 64 + 64, col * 64 : col * 64 + 64]
    joined = join_tiles(tiles, (1, 2))
    np.testing.assert_array_equal(drawn, joined[row * 64 : row * 64 + 64, col * 64 : col * 64 + 64])


def test_an_unpruned_page_and_a_blank_one_can_be_drawn() -> None:
    pixels = view(512)
    for tokens in (page(TINY, 2), np.zeros((73, 4), np.float32)):
        result = prune(tokens, TINY, text_density=0.2, config=PruneConfig(retention=1.0))
        pictures = draw_pruning(result, tokens, pixels)
        np.testing.assert_array_equal(np.asarray(pictures.kept), pixels)
        assert pictures.merge_mass_range == (0.0, 0.0)


def test_token_grids_follow_the_layout() -> None:
    layout = TokenLayout.of("gundam", tile_grid=(2, 1))
    local, whole = token_grids(layout, np.arange(layout.content_count))
    assert (local.shape, whole.shape) == ((10, 20), (16, 16))
    assert (local[0, 19], local[1, 0], whole[0, 0]) == (19, 20, 200)
    assert len(token_grids(TINY, np.arange(64))) == 1


def test_join_tiles_undoes_the_cut() -> None:
    sheet = np.concatenate(
        [np.concatenate([view(640, 10 * r + c) for c in range(3)], 1) for r in range(2)], 0
    )
    tiles = np.stack([view(640, 10 * r + c) for r in range(2) for c in range(3)])
    np.testing.assert_array_equal(join_tiles(tiles, (3, 2)), sheet)


def test_colours_rise_in_lightness() -> None:
    lightness = heat_colours(np.linspace(0, 1, 50)) @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness) > 0).all()
    np.testing.assert_array_equal(
        heat_colours(np.array([-1.0, 2.0, np.nan])), heat_colours(np.array([0.0, 1.0, 0.0]))
    )
    blank = np.full((64, 128, 3), 255, np.uint8)
    drawn = heat(blank, np.array([[1.0, 3.0]]), (1.0, 3.0))
    assert drawn[0, 0].sum() < drawn[0, 127].sum()


def test_views_that_do_not_fit_are_refused() -> None:
    tokens = page(TINY, 1)
    result = prune(tokens, TINY, text_density=0.2)
    with pytest.raises(InvalidInput, match="global_view must have"):
        draw_pruning(result, tokens, view(500))
    with pytest.raises(InvalidInput, match="tiles must be 0"):
        draw_pruning(result, tokens, view(512), np.zeros((1, 640, 640, 3), np.uint8))
    with pytest.raises(InvalidInput, match="tokens must be the 73"):
        draw_pruning(result, tokens[:-1], view(512))
