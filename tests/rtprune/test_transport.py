"""The transport plan: its marginals, and agreement with POT's own solvers."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtprune.transport import transport_plan

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
seeds = st.integers(0, 2**32 - 1)


def cosines(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def augmented(scores: np.ndarray, dustbin: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept, pruned = scores.shape
    full = np.full((kept + 1, pruned + 1), dustbin)
    full[:kept, :pruned] = scores
    return full, np.append(np.ones(kept), pruned), np.append(np.ones(pruned), kept)


@given(shapes, seeds, st.floats(-1, 1), st.sampled_from([0.05, 0.2, 1.0, 5.0]))
def test_pot_agrees(shape: tuple[int, int], seed: int, dustbin: float, epsilon: float) -> None:
    scores = cosines(shape, seed)
    full, a, b = augmented(scores, dustbin)
    total = sum(shape)
    plan = transport_plan(scores, dustbin=dustbin, epsilon=epsilon, iterations=5000, tolerance=1e-13)
    for method in ("sinkhorn", "sinkhorn_log"):
        reference = ot.sinkhorn(
            a / total, b / total, -full, epsilon, method=method, numItermax=5000, stopThr=1e-13, warn=False
        )
        np.testing.assert_allclose(plan, total * reference[:-1, :-1], rtol=1e-6, atol=1e-6)


@given(shapes, seeds)
def test_the_marginals_hold(shape: tuple[int, int], seed: int) -> None:
    plan = transport_plan(cosines(shape, seed))
    assert (plan > 0).all()
    assert (plan.sum(0) <= 1 + 1e-9).all(), "a pruned token gives no more than itself"
    assert (plan.sum(1) <= 1 + 1e-6).all(), "a kept token takes no more than one"


@given(shapes, seeds)
def test_it_is_converged_when_it_stops(shape: tuple[int, int], seed: int) -> None:
    scores = cosines(shape, seed)
    np.testing.assert_allclose(transport_plan(scores), transport_plan(scores, tolerance=0), rtol=1e-8)


@given(shapes, seeds)
def test_torch_gives_the_same(shape: tuple[int, int], seed: int) -> None:
    scores = cosines(shape, seed)
    np.testing.assert_allclose(
        transport_plan(torch.from_numpy(scores)).numpy(), transport_plan(scores), rtol=1e-9
    )


def test_the_order_of_updates_shows_after_one_iteration() -> None:
    scores = cosines((5, 3), 1)
    full, a, b = augmented(scores, 0.2)
    kernel = np.exp(full)
    u = a / kernel.sum(1)
    v = b / (u @ kernel)
    one = transport_plan(scores, iterations=1)
    np.testing.assert_allclose(one, (u[:, None] * kernel * v)[:-1, :-1], rtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.01, 0.02])
def test_a_small_epsilon_stays_finite(epsilon: float) -> None:
    assert np.isfinite(transport_plan(cosines((30, 20), 2), epsilon=epsilon)).all()
