"""RTPrune: how many visual tokens a page needs, which stay, and what they take over from those that go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from rtprune.config import PruneConfig
from rtprune.errors import InvalidInput
from rtprune.layout import TokenLayout
from rtprune.pruning.merge import merge
from rtprune.pruning.retention import Content, compare, kept_count, read_similarities, retention_ratio
from rtprune.pruning.selection import complement, select, staying
from rtprune.pruning.transport import transport_plan


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What is left of a page's visual tokens, and why. Arrays are of the caller's kind and device.

    Attributes:
        tokens: (kept, D), in the caller's dtype and the original order; where nothing goes, the input itself.
        positions: int64 (kept,), where each stood in the unpruned sequence; strictly increasing.
        retention: share of content tokens to keep, as used.
        similarity: phi2, the mean squared cosine of the content tokens.
        text_density: rho, as given.
        kept_content: int64 (M,), indices of the kept ones among the content tokens, ascending.
        plan: P, float64 (M, N - M), how much of each pruned token (column) went to each kept one (row);
            None where nothing was merged.
        layout: of the unpruned sequence.
    """

    tokens: Any
    positions: Any
    retention: float
    similarity: float
    text_density: float
    kept_content: Any
    plan: Any | None
    layout: TokenLayout

    @property
    def merge_mass(self) -> Any:
        """The plan's row sums, float64 (M,): how many tokens' worth each kept token took over, at most 1.

        Zeros where nothing was merged; of torch then in its default dtype.
        """
        if self.plan is None:
            return self.kept_content * 0.0
        return self.plan.sum(1)

    @property
    def length(self) -> int:
        """Tokens that are left: content, newlines and the separator. Before, they were `layout.length`."""
        return int(self.positions.shape[0])

    @property
    def content_count(self) -> int:
        """M, content tokens that are left. Before, they were `layout.content_count`."""
        return int(self.kept_content.shape[0])


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
            tensor nothing is read back from the device before the kept count is needed, but for the first page
            of a layout, whose masks travel there. (Checked on CPU tensors; it has not been run on a GPU.)
        layout: which of the L tokens are content, newline and separator.
        text_density: rho of the global view, 0 to 1.
        config: None = the paper's.

    Raises:
        InvalidInput: wrong shape or dtype, a token that is not finite, or a density outside 0 to 1.

    Example:
        >>> import numpy as np
        >>> layout = TokenLayout.of("tiny")
        >>> tokens = np.random.default_rng(0).normal(size=(layout.length, 32)).astype(np.float32)
        >>> result = prune(tokens, layout, text_density=0.2, config=PruneConfig(retention=0.75))
        >>> result.content_count, result.tokens.shape
        (48, (57, 32))
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
        tokens: one (L, D) array a page, all of one kind and on one device; D and dtype may differ.
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
    if not tokens:
        return []
    config = config or PruneConfig()
    densities = [_checked_density(density) for density in text_densities]
    # What a device computes is queued for all pages before any of it is read.
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below, in words
        compared = [compare(X, layout) for X, layout in zip(tokens, layouts, strict=True)]
        pages = read_similarities(compared)
    selected = []
    for (page, phi2), rho in zip(pages, densities, strict=True):
        retention = retention_ratio(phi2, rho, config)
        K = select(page, kept_count(page.layout.content_count, retention), config)
        selected.append((page, phi2, rho, retention, K, staying(page, K)))
    results = []
    for page, phi2, rho, retention, K, stays in selected:
        left, positions, P = _keep_and_merge(page, K, stays, config)
        results.append(PruneResult(left, positions, retention, phi2, rho, K, P, page.layout))
    return results


def _keep_and_merge(page: Content, K: Any, stays: Any, config: PruneConfig) -> tuple[Any, Any, Any]:
    """The tokens that are left, merged with the others, in the caller's dtype; their positions; the plan or None."""
    xp, on, count = array_namespace(page.tokens), device(page.tokens), page.layout.content_count
    if K.shape[0] == count:
        return page.tokens, xp.arange(page.layout.length, dtype=xp.int64, device=on), None
    positions = xp.nonzero(stays)[0]
    left = xp.take(page.tokens, positions, axis=0)
    if config.strategy != "rtprune":
        return left, positions, None
    Q = complement(K, count)
    S = xp.take(xp.take(page.cosines, K, axis=0), Q, axis=1)
    P = transport_plan(
        S,
        dustbin=config.dustbin,
        epsilon=config.epsilon,
        iterations=config.iterations,
        tolerance=config.tolerance,
    )
    rank = xp.cumulative_sum(xp.astype(stays, xp.int64)) - 1
    rows, V_Q = xp.take(rank, xp.take(page.at.content, K)), xp.take(page.V, Q, axis=0)
    return merge(left, rows, V_Q, P, alpha=config.alpha, scale=page.scale), positions, P


def _checked_density(text_density: float) -> float:
    if not 0.0 <= float(text_density) <= 1.0:
        raise InvalidInput(f"text_density must be from 0 to 1; got {text_density!r}.")
    return float(text_density)
