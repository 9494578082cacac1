"""Stage 2's second half: the kept tokens take over what the transport plan brings them of the pruned ones."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device


def merge(left: Any, rows: Any, V_Q: Any, plan: Any, *, alpha: float, scale: float = 1.0) -> Any:
    """v_i + alpha * sum over pruned j of P_ij v_j, raw v_j, no renormalisation (RTPrune's merge).

    One product over all that are left: newlines and the separator have shares of 0.

    Args:
        left: the tokens that stay, newlines and separator among them, (kept, D), NumPy or torch.
        rows: int64 (M,), where in `left` the kept content tokens stand.
        V_Q: the pruned content tokens over `scale`, float32 (p, D).
        plan: P, (M, p).
        alpha: weight of what is taken over.
        scale: in units of which `V_Q` is given.

    Returns:
        (kept, D), in the dtype of `left`: the product in float32, the sum in float32 (float64 where `left` is, or
        with a `scale` other than 1), cast once.
    """
    xp = array_namespace(left)
    shares = xp.zeros((left.shape[0], V_Q.shape[0]), dtype=xp.float32, device=device(left))
    shares[rows] = xp.astype(plan, xp.float32) * alpha
    moved = shares @ V_Q
    if scale != 1.0 or left.dtype == xp.float64:
        moved = xp.astype(moved, xp.float64) * scale
    moved += left
    return xp.astype(moved, left.dtype, copy=False)
