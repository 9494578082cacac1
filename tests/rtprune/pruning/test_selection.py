"""The strategies that RTPrune is compared with: each keeps what its definition says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtprune import PruneConfig, TokenLayout, prune
from tests.rtprune.pruning.test_pruning import page

seeds = st.integers(0, 2**32 - 1)
TINY = TokenLayout.of("tiny")


def kept(strategy: Any, layout: TokenLayout, count: int, seed: int = 0, pages: int = 0) -> NDArray[Any]:
    config = PruneConfig(strategy=strategy, retention=(count + 0.5) / layout.content_count, seed=seed)
    result = prune(page(layout, pages), layout, text_density=0.2, config=config)
    assert result.content_count == count
    return np.asarray(result.kept_content)


@given(seeds, st.integers(1, 63))
def test_random_is_seeded(seed: int, count: int) -> None:
    np.testing.assert_array_equal(kept("random", TINY, count, seed), kept("random", TINY, count, seed))


def test_random_draws_every_token_alike() -> None:
    drawn = np.bincount(np.concatenate([kept("random", TINY, 32, seed) for seed in range(400)]), minlength=64)
    # 400 draws at 1/2: 200 +- 10; six deviations.
    assert drawn.min() > 140
    assert drawn.max() < 260


@pytest.mark.parametrize("mode", ["tiny", "base"])
def test_uniform_spreads_over_rows_and_columns(mode: str) -> None:
    layout = TokenLayout.of(mode)
    side = layout.global_grid[0]
    for count in range(1, layout.content_count):
        rows, columns = np.divmod(kept("uniform", layout, count), side)
        per_row = np.bincount(rows, minlength=side)
        assert per_row.max() - per_row.min() <= 1
        for row in range(side):
            gaps = np.diff(columns[rows == row])
            assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("count", [1, 5, 100, 228, 400, 455])
def test_uniform_gives_tiles_and_global_view_their_share(count: int) -> None:
    layout = TokenLayout.of("gundam", tile_grid=(1, 2))
    in_tiles = int((kept("uniform", layout, count) < 200).sum())
    assert abs(in_tiles - count * 200 / 456) <= 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 20, 50, 63])
def test_divprune_is_the_greedy_max_min_choice(seed: int, count: int) -> None:
    vectors = page(TINY, seed)[TINY.content_mask].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = 1 - vectors @ vectors.T
    np.fill_diagonal(distance, np.inf)
    chosen = [int(distance.min(1).argmax())]
    while len(chosen) < count:
        nearest = distance[:, chosen].min(1)
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    np.testing.assert_array_equal(kept("divprune", TINY, count, pages=seed), sorted(chosen))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 20, 50, 63])
def test_divprune_on_a_tensor_is_as_diverse(seed: int, count: int) -> None:
    tokens = page(TINY, seed)
    config = PruneConfig(strategy="divprune", retention=(count + 0.5) / 64)
    least = []
    for value in (tokens, torch.from_numpy(tokens)):
        result = prune(value, TINY, text_density=0.2, config=config)
        vectors = tokens[TINY.content_mask][np.asarray(result.kept_content)]
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        distance = 1 - vectors @ vectors.T + 3 * np.eye(count)
        least.append(distance.min())
    assert least[0] == pytest.approx(least[1], abs=1e-5)


def test_norm_and_rtprune_keep_the_same_tokens() -> None:
    np.testing.assert_array_equal(kept("norm", TINY, 40), kept("rtprune", TINY, 40))


def test_none_keeps_everything_whatever_is_asked() -> None:
    tokens = page(TINY, 1)
    result = prune(tokens, TINY, text_density=0.2, config=PruneConfig(strategy="none", retention=0.3))
    np.testing.assert_array_equal(result.tokens, tokens)
    assert (result.retention, result.length, result.content_count) == (1.0, 73, 64)
