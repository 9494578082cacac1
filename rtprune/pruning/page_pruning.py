"""One page's way through pruning, in steps that leave a device's queue alone until a number is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from rtprune.config import PruneConfig
from rtprune.errors import InvalidInput
from rtprune.layout import TokenLayout
from rtprune.pruning.selection import SELECTORS, Candidates
from rtprune.pruning.transport import transport_plan

# Norms beyond these are computed again on scaled tokens: their squares would leave the range of float32.
_SMALLEST_SAFE, _LARGEST_SAFE = 1e-12, 1e12


class PagePruning:
    """A page under way: built, then `read_statistics`, `select` and `finish`, in this order.

    Everything is computed in float32.

    Attributes:
        layout: of the unpruned sequence.
        chosen: int64 (M,), indices of the kept content tokens, ascending; after `select`.
        plan: float64 (M, N - M) or None; after `finish`.
    """

    def __init__(self, tokens: Any, layout: TokenLayout) -> None:
        _check(tokens, layout)
        self.layout = layout
        self.chosen: Any = None
        self.plan: Any | None = None
        self._tokens = tokens
        self._scale = 1.0
        self._stays: Any | None = None
        self._xp = array_namespace(tokens)
        self._place = {"device": device(tokens)}
        self._compare()

    def _compare(self) -> None:
        """Queue the norms and the cosines of all content tokens, and what is to be read of them."""
        xp = self._xp
        self._content_at, self._newline_at, self._row_of = _indices(self.layout, xp, self._place["device"])
        content = xp.take(self._tokens, self._content_at, axis=0)
        if self._scale != 1.0:
            content = xp.astype(content, xp.float64) / self._scale
        self._content = xp.astype(content, xp.float32, copy=False)  # (N, D)
        self._norms = xp.sqrt(xp.sum(self._content * self._content, axis=1))
        # A token of zeros has cosine 0 with everything, not NaN.
        inverse = xp.where(self._norms > 0, 1.0 / xp.where(self._norms > 0, self._norms, 1.0), 0.0)
        self._cosines = self._content @ self._content.T  # (N, N)
        self._cosines *= inverse[:, None]
        self._cosines *= inverse[None, :]
        every, own = xp.reshape(self._cosines, (-1,)), xp.linalg.diagonal(self._cosines)
        fixed = [xp.take(self._tokens, self._newline_at, axis=0), self._tokens[-1:, :]]
        # phi2 * N * (N - 1), the largest norm, and 0 if newlines and separator are finite.
        self._statistics = xp.stack(
            [
                every @ every - own @ own,
                xp.max(self._norms),
                xp.astype(xp.sum(xp.concat(fixed) * 0), xp.float32),
            ]
        )

    @staticmethod
    def read_statistics(pages: Sequence[PagePruning]) -> list[float]:
        """phi2 of each page, in one read from the device.

        Raises:
            InvalidInput: a token that is not finite, or pages on different devices.
        """
        if len({(page._xp, page._place["device"]) for page in pages}) > 1:
            raise InvalidInput("tokens of one batch must be of one kind, on one device.")
        read = pages[0]._xp.stack([page._statistics for page in pages]).tolist()
        return [page._similarity(*numbers) for page, numbers in zip(pages, read, strict=True)]

    def _similarity(self, squares: float, largest_norm: float, fixed: float) -> float:
        if self._scale == 1.0 and not (
            _SMALLEST_SAFE < largest_norm < _LARGEST_SAFE and math.isfinite(squares + fixed)
        ):
            # Nothing that a page holds: zeros, NaN or infinity, or a scale beyond float32's squares. A power of
            # two brings the largest entry into [1, 2) and changes no digit.
            largest = float(self._xp.max(self._xp.abs(self._tokens)))
            if not math.isfinite(largest):
                raise InvalidInput("tokens must be finite; there is a NaN or an infinity among them.")
            if largest > 0.0:
                self._scale = 2.0 ** math.floor(math.log2(largest))
                self._compare()
                squares = float(self._statistics[0])
        pairs = self.layout.content_count * (self.layout.content_count - 1)
        return min(1.0, max(0.0, squares / pairs)) if pairs else 0.0

    def select(self, kept: int, config: PruneConfig) -> None:
        """Choose `kept` content tokens, and with them newlines and separator.

        A newline stays where its row has a token left, or where it is the first: every other stands behind
        another newline.
        """
        xp, count = self._xp, self.layout.content_count
        if kept == count:
            self.chosen = xp.arange(count, dtype=xp.int64, **self._place)
            return
        candidates = Candidates(self._norms, self._cosines, self.layout, config.seed)
        self.chosen = SELECTORS[config.strategy](candidates, kept)
        row_stays = xp.zeros(self._newline_at.shape[0], dtype=xp.bool, **self._place)
        row_stays[xp.take(self._row_of, self.chosen)] = True
        row_stays[0] = True
        stays = xp.zeros(self.layout.length, dtype=xp.bool, **self._place)
        stays[self._newline_at] = row_stays
        stays[self.layout.separator] = True
        stays[xp.take(self._content_at, self.chosen)] = True
        self._stays = stays

    def finish(self, config: PruneConfig) -> tuple[Any, Any]:
        """The tokens that are left, merged with the others, in the caller's dtype, and their positions."""
        xp, count = self._xp, self.layout.content_count
        if self._stays is None:
            return self._tokens, xp.arange(self.layout.length, dtype=xp.int64, **self._place)
        positions = xp.nonzero(self._stays)[0]
        left = xp.take(self._tokens, positions, axis=0)
        if config.strategy == "rtprune":
            is_gone = xp.ones(count, dtype=xp.uint8, **self._place)
            is_gone[self.chosen] = 0
            gone = xp.argsort(is_gone, descending=True, stable=True)[: count - self.chosen.shape[0]]
            self.plan = transport_plan(
                xp.take(xp.take(self._cosines, self.chosen, axis=0), gone, axis=1),
                dustbin=config.dustbin,
                epsilon=config.epsilon,
                iterations=config.iterations,
                tolerance=config.tolerance,
            )
            left = self._merge(left, gone, config.alpha)
        return left, positions

    def _merge(self, left: Any, gone: Any, alpha: float) -> Any:
        """v_i + alpha * sum over pruned j of P_ij v_j, raw v_j, no renormalisation.

        One product over all that are left: newlines and the separator have shares of 0.
        """
        xp = self._xp
        rank = xp.cumulative_sum(xp.astype(self._stays, xp.int64)) - 1
        shares = xp.zeros((left.shape[0], gone.shape[0]), dtype=xp.float32, **self._place)
        at = xp.take(rank, xp.take(self._content_at, self.chosen))
        shares[at] = xp.astype(self.plan, xp.float32) * alpha
        moved = shares @ xp.take(self._content, gone, axis=0)
        if self._scale != 1.0 or left.dtype == xp.float64:
            moved = xp.astype(moved, xp.float64) * self._scale
        moved += left
        return xp.astype(moved, left.dtype, copy=False)


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
    xp = array_namespace(tokens)
    if not xp.isdtype(tokens.dtype, "real floating"):
        raise InvalidInput(f"tokens must be floating point; got {tokens.dtype}.")
    if len(tokens.shape) != 2 or tokens.shape[0] != layout.length or tokens.shape[1] < 1:
        raise InvalidInput(
            f"tokens must have shape ({layout.length}, D) for this layout; got {tuple(tokens.shape)}."
        )
