"""Attention over the KV memory for rows of several requests at once, and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own abbreviation)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one request in a step: `rows` new positions at the end of `length` positions from `start`."""

    start: int
    length: int
    rows: int


class Attention(Protocol):
    """What a step's rows attend to; made once a step, called once a layer."""

    def __call__(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """queries: (rows, heads, head_dim). Returns the same shape."""
        ...


def allocate_kv(
    layers: int, kv_heads: int, positions: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """KV memory: (layers, 2 for key and value, kv_heads, positions, head_dim), a head's positions contiguous.

    Not cleared: on a CPU the system gives it memory only where it is written.
    """
    return torch.empty((layers, 2, kv_heads, positions, head_dim), dtype=dtype, device=device)


class SpanAttention:
    """Each request over exactly its own positions, read in place. `kv`: the memory that `allocate_kv` gave.

    One call a request costs less on a CPU than padding all to the longest, and makes a request's result
    independent of the others by construction.
    """

    def __init__(self, kv: torch.Tensor, spans: list[Span]) -> None:
        self._rows = [span.rows for span in spans]
        self._spans = [_keys_and_values(kv, span) for span in spans]
        self._masks = [_causal_mask(span, kv.device) for span in spans]

    def __call__(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """See `Attention`."""
        at = 2 * layer
        if len(self._rows) == queries.shape[0]:
            parts = torch.split(queries.unsqueeze(2), 1)  # a row a request: (1, heads, 1, head_dim)
        else:
            parts = tuple(part.transpose(0, 1)[None] for part in torch.split(queries, self._rows))
        results = [
            _attend(part, both[at], both[at + 1], mask)
            for part, both, mask in zip(parts, self._spans, self._masks, strict=True)
        ]
        if len(self._rows) == queries.shape[0]:
            return torch.cat(results).squeeze(2)
        return torch.cat([result[0].transpose(0, 1) for result in results])


class GatherAttention:
    """One row a request, all in one call over keys gathered to the longest: few kernels, for a GPU.

    kv: the memory that `allocate_kv` gave. spans: of one row each.
    """

    def __init__(self, kv: torch.Tensor, spans: list[Span]) -> None:
        self._kv = kv
        lengths = torch.tensor([span.length for span in spans], device=kv.device)
        starts = torch.tensor([span.start for span in spans], device=kv.device)
        offsets = torch.arange(max(span.length for span in spans), device=kv.device)
        inside = offsets < lengths[:, None]  # (requests, longest)
        # Past its end a request reads its own first position, which is finite if the request is sound.
        self._slots = (starts[:, None] + offsets * inside).reshape(-1)
        self._mask = inside[:, None, None, :]

    def __call__(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """See `Attention`."""
        requests = queries.shape[0]
        gathered = self._kv[layer].index_select(2, self._slots)
        both = torch.unflatten(gathered, 2, (requests, -1)).transpose(
            1, 2
        )  # (2, requests, kv_heads, longest, dim)
        return _attend(queries.unsqueeze(2), both[0], both[1], self._mask).squeeze(2)


def _keys_and_values(kv: torch.Tensor, span: Span) -> tuple[torch.Tensor, ...]:
    """Views of a request's keys and values, layer by layer, each (1, kv_heads, length, head_dim)."""
    return kv.narrow(3, span.start, span.length).flatten(0, 1).unsqueeze(1).unbind(0)


def _causal_mask(span: Span, device: torch.device) -> torch.Tensor | None:
    """Which positions each new row may see; None where it is all of them."""
    if span.rows == 1:
        return None
    every = torch.ones((span.rows, span.length), dtype=torch.bool, device=device)
    return every.tril(span.length - span.rows)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if q.shape[1] != k.shape[1]:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def rotary_table(
    positions: int, head_dim: int, theta: float, query_groups: int, device: torch.device
) -> torch.Tensor:
    """Complex64 (positions, query_groups + 2, 1, head_dim / 2): the rotation of queries, keys and values.

    Values are not rotated (factor 1): so one product rotates a whole query-key-value row.
    """
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * inverse
    rotation = torch.complex(angles.cos(), angles.sin())
    ones = torch.ones_like(rotation)
    return torch.stack([rotation] * (query_groups + 1) + [ones], dim=1)[:, :, None, :].contiguous()


def interleave_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a query or key projection so that rotate-half pairs (i, i + head_dim / 2) lie side by side.

    weight: (heads * head_dim, inputs), and so is what comes back. Queries and keys are reordered alike, so their
    products stay the same.
    """
    halves = torch.unflatten(weight, 0, (heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)
