"""Which content tokens stay: RTPrune's norm, and the other strategies that it is compared with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from rtprune.config import PruneConfig
from rtprune.layout import TokenLayout
from rtprune.pruning.retention import Content


def select(page: Content, kept: int, config: PruneConfig) -> Any:
    """K, the `kept` content tokens that the configuration's strategy chooses; nothing is read from the device.

    Args:
        page: the content tokens, their norms and cosines.
        kept: M, 1 to N.
        config: `strategy`, and the `seed` of "random".

    Returns:
        int64 (M,), indices among the content tokens, ascending.
    """
    xp, on, count = array_namespace(page.norms), device(page.norms), page.layout.content_count
    if kept == count:
        return xp.arange(count, dtype=xp.int64, device=on)
    if config.strategy == "divprune":
        return _diverse(page.cosines, kept)
    if config.strategy == "random":
        return xp.asarray(_random(count, kept, config.seed), device=on)
    if config.strategy == "uniform":
        return xp.asarray(_uniform(page.layout, kept), device=on)
    # RTPrune, stage 1: the highest norms; ties go to the lower index.
    return xp.sort(xp.argsort(page.norms, descending=True, stable=True)[:kept])


def staying(page: Content, K: Any) -> Any:
    """bool (L,): the tokens that are left, `K` of the content, newlines and the separator.

    A newline stays where its row has a token left, or where it is the first: every other stands behind
    another newline. Nothing is read from the device.
    """
    xp, on, at = array_namespace(page.norms), device(page.norms), page.at
    row_stays = xp.zeros(at.newline.shape[0], dtype=xp.bool, device=on)
    row_stays[xp.take(at.row_of, K)] = True
    row_stays[0] = True
    stays = xp.zeros(page.layout.length, dtype=xp.bool, device=on)
    stays[at.newline] = row_stays
    stays[page.layout.separator] = True
    stays[xp.take(at.content, K)] = True
    return stays


def complement(K: Any, count: int) -> Any:
    """Q, int64 (count - M,): the indices below `count` that are not in `K`, ascending; no read from the device."""
    xp = array_namespace(K)
    is_gone = xp.ones(count, dtype=xp.uint8, device=device(K))
    is_gone[K] = 0
    return xp.argsort(is_gone, descending=True, stable=True)[: count - K.shape[0]]


def _random(count: int, kept: int, seed: int) -> NDArray[np.int64]:
    """A seeded draw without replacement, the same on every device."""
    return np.sort(np.random.default_rng(seed).choice(count, kept, replace=False))


def _uniform(layout: TokenLayout, kept: int) -> NDArray[np.int64]:
    """Evenly spread along rows and columns of each grid, the tiles' and the global view's in proportion.

    A grid of r x c tokens of which k stay gives each of its rows k / r of them, the remainder spread evenly
    over the rows, and each row's tokens evenly over its columns.
    """
    grids = [grid for grid in (layout.local_grid, layout.global_grid) if grid[0] * grid[1]]
    chosen, start, left, tokens_left = [], 0, kept, layout.content_count
    for rows, cols in grids:
        size = rows * cols
        share = min(size, math.floor(left * size / tokens_left + 0.5))
        row_ends = [math.floor((row + 1) * share / rows) for row in range(rows)]
        for row, end in enumerate(row_ends):
            count = end - (row_ends[row - 1] if row else 0)
            # Alternate rows begin half a step later, so that the kept tokens do not line up in columns.
            phase = 0.25 if row % 2 else 0.75
            columns = [math.floor((i + phase) * cols / count) for i in range(count)]
            chosen += [start + row * cols + column for column in columns]
        start, left, tokens_left = start + size, left - share, tokens_left - size
    return np.array(chosen, np.int64)


def _diverse(cosines: Any, kept: int) -> Any:
    """Max-min diversity: each next token is the one farthest from all that were chosen (DivPrune, 2503.02175).

    The distance is 1 - cosine; the first token is the one whose nearest neighbour is farthest away.
    """
    xp = array_namespace(cosines)
    distance = 1.0 - cosines
    index = xp.arange(distance.shape[0], device=device(distance))
    own = index[:, None] == index[None, :]
    nearest = xp.min(xp.where(own, xp.asarray(math.inf, dtype=distance.dtype), distance), axis=1)
    chosen = [xp.argmax(nearest)]
    nearest = distance[chosen[0]]
    taken = index == chosen[0]
    for _ in range(kept - 1):
        nearest = xp.where(taken, xp.asarray(-math.inf, dtype=distance.dtype), nearest)
        chosen.append(xp.argmax(nearest))
        taken = taken | (index == chosen[-1])
        nearest = xp.minimum(nearest, distance[chosen[-1]])
    return xp.sort(xp.stack(chosen))
