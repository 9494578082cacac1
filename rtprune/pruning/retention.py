"""How many content tokens a page needs: the similarity phi2 of its tokens and its text density rho decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from rtprune.config import PruneConfig
from rtprune.errors import InvalidInput
from rtprune.layout import TokenLayout

# Norms beyond these are computed again on scaled tokens: their squares would leave the range of float32.
_SMALLEST_SAFE, _LARGEST_SAFE = 1e-12, 1e12


class Indices(NamedTuple):
    """A layout on a device, int64: positions of content tokens (N,) and newlines (rows,), content's rows (N,)."""

    content: Any
    newline: Any
    row_of: Any


@dataclass(frozen=True, slots=True)
class Content:
    """One page's content tokens compared with each other, in float32 but for what is summed over all of them.

    Attributes:
        tokens: X, (L, D), the caller's.
        layout: of X.
        at: the layout's indices on X's device.
        V: (N, D), the content tokens over `scale`.
        scale: a power of two; 1 but for tokens so large or small that their squares leave float32.
        norms: (N,), of V.
        cosines: (N, N); a token of zeros has cosine 0 with everything.
        statistics: float64 (3,), phi2 * N * (N - 1), the largest norm, and 0 if newlines and separator are finite.
    """

    tokens: Any
    layout: TokenLayout
    at: Indices
    V: Any
    scale: float
    norms: Any
    cosines: Any
    statistics: Any


def compare(tokens: Any, layout: TokenLayout, scale: float = 1.0) -> Content:
    """Queue the norms and cosines of a page's content tokens; nothing is read from the device.

    Args:
        tokens: X, floating point (L, D), NumPy or torch.
        layout: of X.
        scale: what the content tokens are divided by, before they become float32.

    Raises:
        InvalidInput: `tokens` is of another kind, dtype or shape.
    """
    _check(tokens, layout)
    xp = array_namespace(tokens)
    at = _indices(layout, xp, device(tokens))
    V = xp.take(tokens, at.content, axis=0)
    if scale != 1.0:
        V = xp.astype(V, xp.float64) / scale
    V = xp.astype(V, xp.float32, copy=False)
    norms = xp.sqrt(xp.sum(V * V, axis=1))
    inverse = xp.where(norms > 0, 1.0 / xp.where(norms > 0, norms, 1.0), 0.0)
    cosines = V @ V.T
    cosines *= inverse[:, None]
    cosines *= inverse[None, :]
    # A row is short enough for float32; all of them are not: the kept count would move by one.
    rows, own = xp.vecdot(cosines, cosines), xp.linalg.diagonal(cosines)
    squares = xp.sum(rows, dtype=xp.float64) - xp.sum(own * own, dtype=xp.float64)
    fixed = xp.concat([xp.take(tokens, at.newline, axis=0), tokens[-1:, :]])
    statistics = [squares, *(xp.astype(each, xp.float64) for each in (xp.max(norms), xp.sum(fixed * 0)))]
    return Content(tokens, layout, at, V, scale, norms, cosines, xp.stack(statistics))


def read_similarities(pages: Sequence[Content]) -> list[tuple[Content, float]]:
    """Each page and its phi2, the mean of cos(v_i, v_j)^2 over i != j, 0 to 1, in one read from the device.

    This is the authors' code; the paper writes a normalised mean cosine. One or more pages; phi2 of a page of one
    token is 0. A page whose tokens' squares leave float32 is compared again, scaled; all others come back as they are.

    Raises:
        InvalidInput: a token that is not finite, or pages on different devices.
    """
    kinds = {(array_namespace(page.tokens), device(page.tokens)) for page in pages}
    if len(kinds) > 1:
        raise InvalidInput("tokens of one batch must be of one kind, on one device.")
    ((xp, _),) = kinds
    read = xp.stack([page.statistics for page in pages]).tolist()
    return [_similarity(page, *numbers) for page, numbers in zip(pages, read, strict=True)]


def _similarity(page: Content, squares: float, largest_norm: float, fixed: float) -> tuple[Content, float]:
    if not (_SMALLEST_SAFE < largest_norm < _LARGEST_SAFE and math.isfinite(squares + fixed)):
        # Nothing that a page holds: zeros, NaN or infinity, or a scale beyond float32's squares. A power of
        # two brings the largest entry into [1, 2) and changes no digit.
        xp = array_namespace(page.tokens)
        largest = float(xp.max(xp.abs(page.tokens)))
        if not math.isfinite(largest):
            raise InvalidInput("tokens must be finite; there is a NaN or an infinity among them.")
        if largest > 0.0:
            page = compare(page.tokens, page.layout, 2.0 ** math.floor(math.log2(largest)))
            squares = float(page.statistics[0])
    pairs = page.layout.content_count * (page.layout.content_count - 1)
    return page, min(1.0, max(0.0, squares / pairs)) if pairs else 0.0


def retention_ratio(similarity: float, text_density: float, config: PruneConfig) -> float:
    """Share of content tokens to keep, 0 to 1: 1 - phi2 * (1 - rho), or the fixed one; 1 where nothing is pruned.

    RTPrune's dynamic retention, rounded to the 8 decimals that phi2 holds of float32 cosines; a fixed one to 6, so
    that 0.7 sent as FP32 keeps 70 of 100.
    """
    if config.strategy == "none":
        return 1.0
    if config.retention is not None:
        return round(config.retention, 6)
    return round(1.0 - similarity * (1.0 - text_density), 8)


def kept_count(count: int, retention: float) -> int:
    """int(N * retention) tokens, clamped to 1..N."""
    return min(count, max(1, int(count * retention)))


@lru_cache(maxsize=128)
def _indices(layout: TokenLayout, xp: Any, on: Any) -> Indices:
    newline, content = np.flatnonzero(layout.newline_mask), np.flatnonzero(layout.content_mask)
    parts = (content, newline, np.searchsorted(newline, content))
    return Indices(*(xp.asarray(part, device=on) for part in parts))


def _check(tokens: Any, layout: TokenLayout) -> None:
    if not (is_numpy_array(tokens) or is_torch_array(tokens)):
        raise InvalidInput(f"tokens must be a NumPy array or a torch tensor; got {type(tokens).__name__}.")
    xp = array_namespace(tokens)
    if not xp.isdtype(tokens.dtype, "real floating"):
        raise InvalidInput(f"tokens must be floating point; got {tokens.dtype}.")
    if len(tokens.shape) != 2 or tokens.shape[0] != layout.length or tokens.shape[1] < 1:
        raise InvalidInput(
            f"tokens must have shape ({layout.length}, D) for this layout; got {tuple(tokens.shape)}."
        )
