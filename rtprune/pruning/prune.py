"""RTPrune: how many visual tokens a page needs, which stay, and what they take over from those that go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtprune.config import PruneConfig
from rtprune.errors import InvalidInput
from rtprune.layout import TokenLayout
from rtprune.pruning.page_pruning import PagePruning


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
        """The plan's row sums, float64 (M,): how many tokens' worth each kept token took over, at most 1."""
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
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below, in words
        pages = [PagePruning(*page) for page in zip(tokens, layouts, strict=True)]
        statistics = PagePruning.read_statistics(pages)
    retentions = []
    for page, similarity, density in zip(pages, statistics, densities, strict=True):
        retentions.append(_retention(similarity, density, config))
        page.select(_kept_count(page.layout.content_count, retentions[-1]), config)
    results = []
    for page, similarity, density, retention in zip(pages, statistics, densities, retentions, strict=True):
        left, positions = page.finish(config)
        results.append(
            PruneResult(left, positions, retention, similarity, density, page.chosen, page.plan, page.layout)
        )
    return results


def _retention(similarity: float, text_density: float, config: PruneConfig) -> float:
    """Share of content tokens to keep: 1 - phi2 * (1 - rho), or the fixed one; 1 where nothing is pruned.

    phi2 comes from float32, which has 7 decimals.
    """
    if config.strategy == "none":
        return 1.0
    if config.retention is not None:
        return round(config.retention, 6)
    return round(1.0 - similarity * (1.0 - text_density), 7)


def _kept_count(count: int, retention: float) -> int:
    """int(N * retention), from 1 to N.

    The retention counts to 6 decimals, so that 0.7 sent as FP32 keeps 70 of 100.
    """
    return min(count, max(1, int(count * round(retention, 6))))


def _checked_density(text_density: float) -> float:
    if not 0.0 <= float(text_density) <= 1.0:
        raise InvalidInput(f"text_density must be from 0 to 1; got {text_density!r}.")
    return float(text_density)
