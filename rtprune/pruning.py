"""RTPrune: how many visual tokens a page needs, which stay, and what they take over from those that go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from rtprune.config import PruneConfig
from rtprune.errors import InvalidInput
from rtprune.layout import TokenLayout
from rtprune.selection import SELECTORS, Candidates
from rtprune.transport import transport_plan

_SMALLEST_NORM = 1e-12  # a zero token has cosine 0 with everything, not NaN


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What is left of a page's visual tokens, and why. Arrays are of the caller's kind and device.

    Attributes:
        tokens: (kept, D), in the caller's dtype and the original order.
        positions: int64 (kept,), where each stood in the unpruned sequence; strictly increasing.
        retention: share of content tokens to keep, as used.
        similarity: phi2, the mean squared cosine of the content tokens.
        text_density: rho, as given.
        kept_content: int64 (M,), indices of the kept ones among the content tokens.
        plan: P, float64 (M, N - M), how much of each pruned token (column) went to each kept one (row);
            None where nothing was merged.
    """

    tokens: Any
    positions: Any
    retention: float
    similarity: float
    text_density: float
    kept_content: Any
    plan: Any | None


def prune(
    tokens: Any, layout: TokenLayout, *, text_density: float, config: PruneConfig | None = None
) -> PruneResult:
    """Prune one page's visual tokens (arXiv 2605.00392).

    The number that stays is int(N * retention), at least 1, with retention = 1 - phi2 * (1 - rho) unless the
    configuration fixes it. The content tokens of highest norm stay; each takes over `alpha` times what the
    transport plan brings it of the others. Newlines and the separator stay as they are; of newlines that
    become adjacent, the first.

    Args:
        tokens: X, floating point (L, D), in the decoder's order; NumPy, or torch on any device. With a torch
            tensor nothing is read back from the device before the kept count is needed. (Checked on CPU
            tensors; it has not been run on a GPU.)
        layout: which of the L tokens are content, newline and separator.
        text_density: rho of the global view, 0 to 1.
        config: None = the paper's.

    Raises:
        InvalidInput: wrong shape or dtype, a token that is not finite, or a density outside 0 to 1.
    """
    return prune_batch([tokens], [layout], text_densities=[text_density], config=config)[0]


def prune_batch(
    tokens: Sequence[Any],
    layouts: Sequence[TokenLayout],
    *,
    text_densities: Sequence[float],
    config: PruneConfig | None = None,
) -> list[PruneResult]:
    """Prune several pages, each with the result that `prune` gives it.

    All pages' similarities are queued before any is read, so a GPU is waited for once, not once a page.

    Args:
        tokens: one (L, D) array a page.
        layouts: one a page.
        text_densities: one a page.
        config: for all of them; None = the paper's.

    Raises:
        InvalidInput: as `prune`, or lists of different lengths.
    """
    if not len(tokens) == len(layouts) == len(text_densities):
        raise InvalidInput(
            f"tokens, layouts and text_densities must be as many; got {len(tokens)}, {len(layouts)} and "
            f"{len(text_densities)}."
        )
    config = config or PruneConfig()
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below, in words
        pages = [_Page(*page) for page in zip(tokens, layouts, text_densities, strict=True)]
    return [page.finish(config) for page in pages]


class _Page:
    """One page under way: what was computed before the kept count is read from the device."""

    def __init__(self, tokens: Any, layout: TokenLayout, text_density: float) -> None:
        self.tokens, self.layout, self.text_density = tokens, layout, float(text_density)
        _check(tokens, layout, self.text_density)
        self.xp = xp = array_namespace(tokens)
        self.place = {"device": device(tokens)}
        self.content_at = xp.asarray(np.flatnonzero(layout.content_mask), **self.place)
        self.content = xp.astype(xp.take(tokens, self.content_at, axis=0), xp.float32, copy=False)
        self.norms = xp.linalg.vector_norm(self.content, axis=1)
        inverse = 1.0 / xp.maximum(self.norms, xp.asarray(_SMALLEST_NORM, dtype=xp.float32, **self.place))
        self.cosines = self.content @ self.content.T
        self.cosines *= inverse[:, None]
        self.cosines *= inverse[None, :]
        flat = xp.reshape(self.cosines, (-1,))
        own = xp.linalg.diagonal(self.cosines)
        # phi2 * N * (N - 1), and whether every token was finite: read together.
        self.pending = xp.stack([flat @ flat - own @ own, xp.sum(tokens * 0)])

    def finish(self, config: PruneConfig) -> PruneResult:
        """Read the similarity, then select and merge."""
        count = self.layout.content_count
        squares, finite = (float(value) for value in self.pending)
        if not finite == 0.0 or not np.isfinite(squares):
            raise InvalidInput("tokens must be finite; there is a NaN or an infinity among them.")
        similarity = min(1.0, max(0.0, squares / (count * (count - 1)))) if count > 1 else 0.0
        retention = _retention(similarity, self.text_density, config)
        kept = min(count, max(1, int(count * retention)))
        if config.strategy == "none" or kept == count:
            return self._unchanged(retention, similarity)
        candidates = Candidates(self.norms, self.cosines, self.layout, config.seed)
        chosen = SELECTORS[config.strategy](candidates, kept)
        plan = None
        content = self.xp.take(self.content, chosen, axis=0)
        if config.strategy == "rtprune":
            plan, content = self._merge(chosen, content, config)
        positions = self._positions(chosen)
        tokens = self._place(chosen, content, positions)
        return PruneResult(tokens, positions, retention, similarity, self.text_density, chosen, plan)

    def _unchanged(self, retention: float, similarity: float) -> PruneResult:
        xp = self.xp
        everything = xp.arange(self.layout.length, dtype=xp.int64, **self.place)
        content = xp.arange(self.layout.content_count, dtype=xp.int64, **self.place)
        return PruneResult(self.tokens, everything, retention, similarity, self.text_density, content, None)

    def _merge(self, chosen: Any, content: Any, config: PruneConfig) -> tuple[Any, Any]:
        """v_i + alpha * sum over pruned j of P_ij v_j, raw v_j, no renormalisation."""
        xp = self.xp
        stays = xp.zeros(self.layout.content_count, dtype=xp.bool, **self.place)
        stays[chosen] = True
        gone = xp.nonzero(~stays)[0]
        scores = xp.take(xp.take(self.cosines, chosen, axis=0), gone, axis=1)
        plan = transport_plan(
            scores,
            dustbin=config.dustbin,
            epsilon=config.epsilon,
            iterations=config.iterations,
            tolerance=config.tolerance,
        )
        moved = xp.astype(plan, xp.float32) @ xp.take(self.content, gone, axis=0)
        return plan, content + config.alpha * moved

    def _positions(self, chosen: Any) -> Any:
        """Positions of kept content, newlines and separator; of adjacent newlines the first."""
        xp = self.xp
        newline = xp.asarray(self.layout.newline_mask.copy(), **self.place)
        stays = xp.asarray(~self.layout.content_mask, **self.place)
        stays[xp.take(self.content_at, chosen)] = True
        left = xp.nonzero(stays)[0]
        is_newline = xp.take(newline, left)
        first = ~is_newline
        first[1:] |= ~is_newline[:-1]
        first[0] = True
        return left[first]

    def _place(self, chosen: Any, content: Any, positions: Any) -> Any:
        """The kept tokens in order, the merged content in its places, in the caller's dtype."""
        xp = self.xp
        place = xp.zeros(self.layout.length, dtype=xp.int64, **self.place)
        place[xp.take(self.content_at, chosen)] = xp.arange(1, len(chosen) + 1, dtype=xp.int64, **self.place)
        source = xp.take(place, positions)
        tokens = xp.take(self.tokens, positions, axis=0)
        is_content = source > 0
        tokens[is_content] = xp.astype(xp.take(content, source[is_content] - 1, axis=0), tokens.dtype)
        return tokens


def _retention(similarity: float, text_density: float, config: PruneConfig) -> float:
    """retention = 1 - phi2 * (1 - rho), or the fixed one.

    To 6 decimals, so that 0.7 sent as FP32 keeps 70 of 100, and float32 noise cannot cost a token.
    """
    if config.retention is not None:
        return round(config.retention, 6)
    return round(1.0 - similarity * (1.0 - text_density), 6)


def _check(tokens: Any, layout: TokenLayout, text_density: float) -> None:
    if not (isinstance(tokens, np.ndarray) or is_torch_array(tokens)):
        raise InvalidInput(f"tokens must be a NumPy array or a torch tensor; got {type(tokens).__name__}.")
    if "float" not in str(tokens.dtype):
        raise InvalidInput(f"tokens must be floating point; got {tokens.dtype}.")
    if len(tokens.shape) != 2 or tokens.shape[0] != layout.length or tokens.shape[1] < 1:
        raise InvalidInput(
            f"tokens must have shape ({layout.length}, D) for this layout; got {tuple(tokens.shape)}."
        )
    if not 0.0 <= text_density <= 1.0:
        raise InvalidInput(f"text_density must be from 0 to 1; got {text_density!r}.")
