"""Entropic optimal transport with a dustbin: how the pruned tokens' content is spread over the kept ones."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device


def transport_plan(
    scores: Any,
    *,
    dustbin: float = 0.2,
    epsilon: float = 1.0,
    iterations: int = 100,
    tolerance: float = 1e-9,
) -> Any:
    """The transport plan between kept and pruned tokens, without the dustbins.

    The scores are augmented by a dustbin row, column and corner, all `dustbin`. Marginals
    a = [1 ... 1 (M times), p] and b = [1 ... 1 (p times), M]; row update first, column update last
    (RTPrune's optimal-transport merge, with the authors' dustbin and iteration order). The scaling form is
    used, u = a / (K v) and v = b / (K' u) with K = exp(S / epsilon): S lies in [-1, 1], so it is as stable as
    the log domain and costs two matrix-vector products an iteration.

    Args:
        scores: S, cosines, shape (M, p), NumPy or torch.
        dustbin: z.
        epsilon: weight of the entropy.
        iterations: at most.
        tolerance: relative change of u at which to stop; 0 = never.

    Returns:
        P, float64 (M, p).
    """
    xp = array_namespace(scores)
    kept, pruned = scores.shape
    where = {"dtype": xp.float64, "device": device(scores)}
    kernel = xp.full((kept + 1, pruned + 1), dustbin, **where)
    kernel[:kept, :pruned] = xp.astype(scores, xp.float64)
    kernel = xp.exp(kernel / epsilon)
    a, b = xp.ones(kept + 1, **where), xp.ones(pruned + 1, **where)
    a[-1], b[-1] = pruned, kept
    u, v = xp.ones(kept + 1, **where), xp.ones(pruned + 1, **where)
    # Reading a comparison back stops a GPU, so look only now and then there.
    every = 1 if str(device(scores)) == "cpu" else 10
    for step in range(1, iterations + 1):
        last, u = u, a / (kernel @ v)
        v = b / (u @ kernel)
        if tolerance and step % every == 0 and bool(xp.max(xp.abs(u / last - 1)) <= tolerance):
            break
    return u[:kept, None] * kernel[:kept, :pruned] * v[None, :pruned]
