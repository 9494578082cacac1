"""The transport plan: its marginals, and agreement with POT's own solvers."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtprune.pruning.transport import transport_plan

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
seeds = st.integers(0, 2**32 - 1)


def cosines(shape: tuple[int, int], seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def augmented(scores: NDArray[Any], dustbin: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    kept, pruned = scores.shape
    full = np.full((kept + 1, pruned + 1), dustbin)
    full[:kept, :pruned] = scores
    return full, np.append(np.ones(kept), pruned), np.append(np.ones(pruned), kept)


dustbins = st.floats(-1, 1)


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log"])
@given(shapes, seeds, dustbins, st.sampled_from([0.5, 1.0, 5.0]))
@settings(max_examples=40)
def test_pots_converged_plan_is_ours(
    method: str, shape: tuple[int, int], seed: int, dustbin: float, epsilon: float
) -> None:
    scores = cosines(shape, seed)
    full, a, b = augmented(scores, dustbin)
    total = sum(shape)
    plan = transport_plan(scores, dustbin=dustbin, epsilon=epsilon, tolerance=1e-12)
    reference = ot.sinkhorn(
        a / total, b / total, -full, epsilon, method=method, numItermax=1000, stopThr=1e-13, warn=False
    )
    np.testing.assert_allclose(plan, total * reference[:-1, :-1], rtol=1e-6)


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log"])
@given(shapes, seeds, dustbins, st.sampled_from([0.05, 0.2, 1.0]), st.integers(1, 12))
@settings(max_examples=40)
def test_pot_agrees_after_every_iteration(
    method: str, shape: tuple[int, int], seed: int, dustbin: float, epsilon: float, iterations: int
) -> None:
    scores = cosines(shape, seed)
    full, a, b = augmented(scores, dustbin)
    total = sum(shape)
    plan = transport_plan(scores, dustbin=dustbin, epsilon=epsilon, iterations=iterations, tolerance=0)
    # POT updates columns first, so it gets the problem transposed.
    reference = ot.sinkhorn(
        b / total, a / total, -full.T, epsilon, method=method, numItermax=iterations, stopThr=0, warn=False
    ).T
    np.testing.assert_allclose(plan, total * reference[:-1, :-1], rtol=1e-9)


@given(shapes, seeds)
def test_the_marginals_hold(shape: tuple[int, int], seed: int) -> None:
    plan = transport_plan(cosines(shape, seed))
    assert (plan > 0).all()
    assert (plan.sum(0) <= 1 + 1e-9).all(), "a pruned token gives no more than itself"
    assert (plan.sum(1) <= 1 + 1e-6).all(), "a kept token takes no more than one"


@given(shapes, seeds)
def test_the_plan_is_a_scaled_kernel_with_the_dustbins_marginals(shape: tuple[int, int], seed: int) -> None:
    scores = cosines(shape, seed)
    kernel, bin_kernel = np.exp(scores), np.exp(0.2)
    scaling = transport_plan(scores) / kernel
    u, v = scaling[:, 0] / scaling[0, 0], scaling[0]
    np.testing.assert_allclose(scaling, np.outer(u, v), rtol=1e-9)
    # What a row or a column lacks of 1 goes to its dustbin, whose own factor is the same for all of them.
    u_bin = (1 / v - u @ kernel) / bin_kernel
    v_bin = (1 / u - kernel @ v) / bin_kernel
    np.testing.assert_allclose(u_bin, u_bin[0], rtol=1e-5)
    np.testing.assert_allclose(v_bin, v_bin[0], rtol=1e-5)
    kept, pruned = shape
    assert u_bin[0] * bin_kernel * (v.sum() + v_bin[0]) == pytest.approx(pruned, rel=1e-5)
    assert v_bin[0] * bin_kernel * (u.sum() + u_bin[0]) == pytest.approx(kept, rel=1e-5)


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
