"""The parameters of pruning, with the paper's values as defaults, checked where they are built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

from rtprune.errors import InvalidInput

Strategy = Literal["rtprune", "norm", "random", "uniform", "divprune", "none"]
Padding = Literal["zero", "replicate"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """How to prune. The defaults are RTPrune's (arXiv 2605.00392 and the behaviour of its authors' code).

    Attributes:
        retention: share of content tokens to keep, 0 < r <= 1, used to 6 decimals; None = dynamic.
        epsilon: weight of the entropy in the transport, in units of the cosine; 1 = no temperature.
        dustbin: score z of the transport's dustbin row, column and corner.
        alpha: weight of the transported tokens in the merge; 0 = selection alone.
        iterations: Sinkhorn iterations at most.
        tolerance: largest relative change of the row scaling at which Sinkhorn stops early.
        edge_threshold: Sobel magnitude tau above which a pixel is an edge, luma in [-1, 1].
        padding: what a patch sees beyond its border: zeros (faithful) or its own last pixels.
        strategy: which content tokens stay; only "rtprune" merges.
        seed: of the random strategy.

    Raises:
        InvalidInput: a value of another kind, or outside its range.
    """

    retention: float | None = None
    epsilon: float = 1.0
    dustbin: float = 0.2
    alpha: float = 0.1
    iterations: int = 100
    tolerance: float = 1e-9
    edge_threshold: float = 0.2
    padding: Padding = "zero"
    strategy: Strategy = "rtprune"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.retention is not None:
            _check("retention", self.retention, 5e-7, 1.0, "above 0 and at most 1, to 6 decimals")
        # Below 0.01 exp(S / epsilon) leaves the range of float64 and its reciprocal.
        _check("epsilon", self.epsilon, 0.01, math.inf, "at least 0.01")
        _check("dustbin", self.dustbin, -1.0, 1.0, "from -1 to 1, like a cosine")
        _check("alpha", self.alpha, 0.0, math.inf, "at least 0")
        _check("iterations", self.iterations, 1, math.inf, "a whole number above 0", whole=True)
        _check("tolerance", self.tolerance, 0.0, math.inf, "at least 0")
        _check("edge_threshold", self.edge_threshold, 0.0, math.inf, "at least 0")
        _check("seed", self.seed, 0, math.inf, "a whole number, at least 0", whole=True)
        if self.padding not in get_args(Padding):
            raise InvalidInput(f"padding must be zero or replicate; got {self.padding!r}.")
        if self.strategy not in STRATEGIES:
            raise InvalidInput(f"strategy must be one of {', '.join(STRATEGIES)}; got {self.strategy!r}.")


def _check(name: str, value: object, low: float, high: float, rule: str, *, whole: bool = False) -> None:
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise InvalidInput(f"{name} must be {rule}; got {value!r}.")
