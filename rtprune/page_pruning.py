"""One page's way through pruning, in steps that leave a device's queue alone until a number is needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from rtprune.config import PruneConfig
from rtprune.errors import InvalidInput
from rtprune.layout import TokenLayout
from rtprune.selection import SELECTORS, Candidates
from rtprune.transport import transport_plan


class PagePruning:
    """A page under way: built, then `read_statistics`, `select_and_merge` and `gather`, in this order.

    Everything is computed in float32, on tokens scaled by a power of two so that the largest entry lies in
    [1, 2): no norm overflows or vanishes, and no digit changes.

    Attributes:
        layout: of the unpruned sequence.
        chosen: int64 (M,), indices of the kept content tokens, ascending; after `select_and_merge`.
        plan: float64 (M, N - M) or None; after `select_and_merge`.
    """

    def __init__(self, tokens: Any, layout: TokenLayout) -> None:
        _check(tokens, layout)
        self.tokens, self.layout = tokens, layout
        self.chosen: Any = None
        self.plan: Any | None = None
        self._merged: Any | None = None
        self._xp = xp = array_namespace(tokens)
        self._place = {"device": device(tokens)}
        self._content_at, self._newline_at, self._row_of = _indices(layout, xp, device(tokens))
        # float64 is scaled before it is narrowed, half precision after it is widened.
        self._working = xp.float64 if tokens.dtype == xp.float64 else xp.float32
        largest = xp.astype(xp.max(xp.abs(tokens)), xp.float64)
        some = xp.isfinite(largest) & (largest > 0)
        self._scale = xp.astype(
            xp.where(some, 2.0 ** xp.floor(xp.log2(xp.where(some, largest, 1.0))), 1.0), self._working
        )
        content = xp.astype(xp.take(tokens, self._content_at, axis=0), self._working)
        content /= self._scale
        self._content = xp.astype(content, xp.float32, copy=False)  # (N, D)
        self._norms = xp.linalg.vector_norm(self._content, axis=1)
        # A token of zeros has cosine 0 with everything, not NaN.
        inverse = xp.where(self._norms > 0, 1.0 / xp.where(self._norms > 0, self._norms, 1.0), 0.0)
        self._cosines = self._content @ self._content.T  # (N, N)
        self._cosines *= inverse[:, None]
        self._cosines *= inverse[None, :]
        every, own = xp.reshape(self._cosines, (-1,)), xp.linalg.diagonal(self._cosines)
        # phi2 * N * (N - 1), and the largest entry, which shows whether every token was finite.
        self._statistics = xp.stack([xp.astype(every @ every - own @ own, xp.float64), largest])

    @staticmethod
    def read_statistics(pages: Sequence[PagePruning]) -> list[float]:
        """phi2 of each page, in one read from the device.

        Raises:
            InvalidInput: a token that is not finite, or pages on different devices.
        """
        if len({(page._xp, page._place["device"]) for page in pages}) > 1:
            raise InvalidInput("tokens of one batch must be of one kind, on one device.")
        read = pages[0]._xp.stack([page._statistics for page in pages]).tolist()
        similarities = []
        for page, (squares, largest) in zip(pages, read, strict=True):
            if not np.isfinite(largest) or not np.isfinite(squares):
                raise InvalidInput("tokens must be finite; there is a NaN or an infinity among them.")
            pairs = page.layout.content_count * (page.layout.content_count - 1)
            similarities.append(min(1.0, max(0.0, squares / pairs)) if pairs else 0.0)
        return similarities

    def select_and_merge(self, kept: int, config: PruneConfig) -> None:
        """Choose `kept` content tokens, and give them what the transport plan brings of the others."""
        xp, count = self._xp, self.layout.content_count
        if kept == count:
            self.chosen = xp.arange(count, dtype=xp.int64, **self._place)
            return
        candidates = Candidates(self._norms, self._cosines, self.layout, config.seed)
        self.chosen = SELECTORS[config.strategy](candidates, kept)
        if config.strategy != "rtprune":
            return
        stays = xp.zeros(count, dtype=xp.uint8, **self._place)
        stays[self.chosen] = 1
        gone = xp.argsort(stays, stable=True)[: count - kept]
        self.plan = transport_plan(
            xp.take(xp.take(self._cosines, self.chosen, axis=0), gone, axis=1),
            dustbin=config.dustbin,
            epsilon=config.epsilon,
            iterations=config.iterations,
            tolerance=config.tolerance,
        )
        # v_i + alpha * sum over pruned j of P_ij v_j, raw v_j, no renormalisation.
        self._merged = xp.astype(self.plan, xp.float32) @ xp.take(self._content, gone, axis=0)
        self._merged *= config.alpha
        self._merged += xp.take(self._content, self.chosen, axis=0)

    def gather(self) -> tuple[Any, Any]:
        """The tokens that are left, in the caller's dtype, and their positions.

        A newline stays where its row has a token left, or where it is the first: every other stands behind
        another newline.
        """
        xp = self._xp
        if self.chosen.shape[0] == self.layout.content_count:
            return self.tokens, xp.arange(self.layout.length, dtype=xp.int64, **self._place)
        row_stays = xp.zeros(self._newline_at.shape[0], dtype=xp.bool, **self._place)
        row_stays[xp.take(self._row_of, self.chosen)] = True
        row_stays[0] = True
        stays = xp.zeros(self.layout.length, dtype=xp.bool, **self._place)
        stays[self._newline_at] = row_stays
        stays[self.layout.separator] = True
        chosen_at = xp.take(self._content_at, self.chosen)
        stays[chosen_at] = True
        positions = xp.nonzero(stays)[0]
        tokens = xp.take(self.tokens, positions, axis=0)
        if self._merged is not None:
            merged = xp.astype(self._merged, self._working, copy=False) * self._scale
            rank = xp.cumulative_sum(xp.astype(stays, xp.int64)) - 1
            tokens[xp.take(rank, chosen_at)] = xp.astype(merged, tokens.dtype, copy=False)
        return tokens, positions


@lru_cache(maxsize=128)
def _indices(layout: TokenLayout, xp: Any, place: Any) -> tuple[Any, Any, Any]:
    """On a device: positions of content tokens (N,) and of newlines (rows,), and each content token's row (N,)."""
    newline_at = np.flatnonzero(layout.newline_mask)
    content_at = np.flatnonzero(layout.content_mask)
    row_of = np.searchsorted(newline_at, content_at)
    content, newline, row = (xp.asarray(part, device=place) for part in (content_at, newline_at, row_of))
    return content, newline, row


def _check(tokens: Any, layout: TokenLayout) -> None:
    if not (is_numpy_array(tokens) or is_torch_array(tokens)):
        raise InvalidInput(f"tokens must be a NumPy array or a torch tensor; got {type(tokens).__name__}.")
    if "float" not in str(tokens.dtype):
        raise InvalidInput(f"tokens must be floating point; got {tokens.dtype}.")
    if len(tokens.shape) != 2 or tokens.shape[0] != layout.length or tokens.shape[1] < 1:
        raise InvalidInput(
            f"tokens must have shape ({layout.length}, D) for this layout; got {tuple(tokens.shape)}."
        )
