"""Which content tokens stay: RTPrune's norm, and the other strategies that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from rtprune.layout import TokenLayout


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a strategy may look at.

    Attributes:
        norms: L2 norm of each content token, (N,).
        cosines: cosine of each pair of content tokens, (N, N).
        layout: where the content tokens stand on the page.
        seed: for what is random.
    """

    norms: Any
    cosines: Any
    layout: TokenLayout
    seed: int


def _by_norm(candidates: Candidates, kept: int) -> Any:
    """The `kept` tokens of highest norm; ties go to the lower index (RTPrune, stage 1)."""
    xp = array_namespace(candidates.norms)
    return xp.sort(xp.argsort(candidates.norms, descending=True, stable=True)[:kept])


def _random(candidates: Candidates, kept: int) -> Any:
    """A seeded draw without replacement, the same on every device."""
    chosen = np.random.default_rng(candidates.seed).choice(candidates.norms.shape[0], kept, replace=False)
    return _like(candidates, np.sort(chosen))


def _uniform(candidates: Candidates, kept: int) -> Any:
    """Evenly spread along rows and columns of each grid, the tiles' and the global view's in proportion.

    A grid of r x c tokens of which k stay gives each of its rows k / r of them, the remainder spread evenly
    over the rows, and each row's tokens evenly over its columns.
    """
    layout = candidates.layout
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
    return _like(candidates, np.array(chosen))


def _divprune(candidates: Candidates, kept: int) -> Any:
    """Max-min diversity: each next token is the one farthest from all that were chosen (DivPrune, 2503.02175).

    The distance is 1 - cosine; the first token is the one whose nearest neighbour is farthest away.
    """
    xp = array_namespace(candidates.cosines)
    distance = 1.0 - candidates.cosines
    count = distance.shape[0]
    if kept == count:
        return _like(candidates, np.arange(count))
    index = xp.arange(count, device=device(distance))
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


def _like(candidates: Candidates, indices: np.ndarray[Any, Any]) -> Any:
    xp = array_namespace(candidates.norms)
    return xp.asarray(indices.astype(np.int64), device=device(candidates.norms))


SELECTORS: dict[str, Callable[[Candidates, int], Any]] = {
    "rtprune": _by_norm,
    "norm": _by_norm,
    "random": _random,
    "uniform": _uniform,
    "divprune": _divprune,
}
