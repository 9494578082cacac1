"""Mixture of experts for the PyTorch decoder: one router, three ways to visit the experts it selects."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own abbreviation)

from rtprune.decoder.engines.torch.weights import DecoderConfig, WeightFiles

# Below this size all experts of a layer together cost less than picking some of them: about a core's cache.
DENSE_BYTES = 8 * 2**20


def row_multiple(dtype: torch.dtype) -> int:
    """Rows that a matrix product must be padded to, so that a row's result doesn't depend on their number.

    CPU matrix libraries sum a product of one to three FP32 rows in another order than one of four and more,
    and with two threads they split odd counts unevenly; BF16 differs only for a single long row.
    """
    return 4 if dtype == torch.float32 else 2


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x @ weight`, (rows, inputs) by (inputs, outputs) of one type; results don't depend on the number of rows."""
    rows = x.shape[0]
    pad = -rows % row_multiple(x.dtype)
    return torch.mm(F.pad(x, (0, 0, 0, pad)), weight)[:rows] if pad else torch.mm(x, weight)


class Mlp:
    """SwiGLU: down(silu(gate(x)) * up(x)), its weights used where they lie: views of shape (inputs, outputs).

    Raises EngineError for weights that are missing or aren't of `hidden` and `inner` channels.
    """

    def __init__(
        self,
        files: WeightFiles,
        prefix: str,
        hidden: int,
        inner: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def weight(name: str, shape: tuple[int, int]) -> torch.Tensor:
            return files.get(f"{prefix}.{name}_proj.weight", shape, dtype).to(device).t()

        self.gate = weight("gate", (inner, hidden))
        self.up = weight("up", (inner, hidden))
        self.down = weight("down", (hidden, inner))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (rows, hidden), rows padded by the caller."""
        inner = F.silu(torch.mm(x, self.gate)).mul_(torch.mm(x, self.up))
        return torch.mm(inner, self.down)


class Experts(Protocol):
    """Routed and shared experts of one layer."""

    def __call__(
        self, x: torch.Tensor, rows: int, scores: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the chosen experts, weighted, and the shared ones.

        x: (padded rows, hidden), of which the first `rows` count. scores: float32 (padded rows, k).
        chosen: int64 (padded rows, k). Returns (padded rows, hidden).
        """
        ...


class DenseExperts:
    """Computes every expert and gives the ones not chosen the weight 0: for small models."""

    def __init__(self, experts: list[Mlp], shared: Mlp) -> None:
        every = [*experts, shared]
        self._up = torch.cat([mlp.gate for mlp in every] + [mlp.up for mlp in every], dim=1).contiguous()
        self._down = torch.cat([mlp.down for mlp in every]).contiguous()
        self._count = len(experts)
        self._routed = len(experts) * experts[0].gate.shape[1]
        self._inner = self._down.shape[0]

    def __call__(
        self, x: torch.Tensor, rows: int, scores: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """See `Experts`."""
        factors = scores.new_zeros((x.shape[0], self._count)).scatter_(1, chosen, scores).to(x.dtype)
        both = torch.mm(x, self._up)
        inner = F.silu(both[:, : self._inner]).mul_(both[:, self._inner :])
        torch.unflatten(inner[:, : self._routed], 1, (self._count, -1)).mul_(factors[:, :, None])
        return torch.mm(inner, self._down)


class VisitedExperts:
    """Visits each chosen expert once, where its weights lie in memory, with the rows that chose it.

    No weight is gathered or copied: for a few rows the time is that of reading the chosen experts' weights.
    """

    def __init__(self, experts: list[Mlp], shared: Mlp) -> None:
        self._experts = experts
        self._shared = shared

    def __call__(
        self, x: torch.Tensor, rows: int, scores: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """See `Experts`."""
        chosen, scores = chosen[:rows], scores[:rows]
        flat, order = chosen.reshape(-1).sort(stable=True)
        counts = torch.bincount(flat, minlength=len(self._experts)).tolist()
        gathered = x[order // chosen.shape[1]]  # (rows * k, hidden), expert by expert
        results = torch.empty_like(gathered)
        start = 0
        for mlp, count in zip(self._experts, counts, strict=True):
            if count:
                part = gathered[start : start + count]
                inner = F.silu(linear(part, mlp.gate)).mul_(linear(part, mlp.up))
                results[start : start + count] = linear(inner, mlp.down)
                start += count
        return _combine(results, order, scores, self._shared(x))


class GroupedExperts:
    """One grouped matrix product over all experts, for a GPU: no answer of the router goes to the host."""

    def __init__(self, experts: list[Mlp], shared: Mlp) -> None:
        self._up = torch.stack([torch.cat((mlp.gate.t(), mlp.up.t())) for mlp in experts]).transpose(1, 2)
        self._down = torch.stack([mlp.down.t() for mlp in experts]).transpose(1, 2)
        self._ids = torch.arange(len(experts), device=self._up.device)
        self._shared = shared

    def __call__(
        self, x: torch.Tensor, rows: int, scores: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """See `Experts`."""
        chosen, scores = chosen[:rows], scores[:rows]
        flat, order = chosen.reshape(-1).sort(stable=True)
        ends = torch.searchsorted(flat, self._ids, right=True, out_int32=True)
        both = F.grouped_mm(x[order // chosen.shape[1]], self._up, offs=ends)
        inner = both.shape[1] // 2
        results = F.grouped_mm(F.silu(both[:, :inner]).mul_(both[:, inner:]), self._down, offs=ends)
        return _combine(results, order, scores, self._shared(x))


def _combine(
    results: torch.Tensor, order: torch.Tensor, scores: torch.Tensor, shared: torch.Tensor
) -> torch.Tensor:
    """Add each row's k results, sorted by expert, to `shared`: in the router's order and in FP32.

    So a row's sum doesn't depend on which other rows chose the same experts.
    """
    rows, k = scores.shape
    unsorted = torch.empty_like(results)
    unsorted[order] = results
    routed = (unsorted.view(rows, k, -1).float() * scores[:, :, None]).sum(1)
    shared[:rows] += routed
    return shared


class MoeLayer:
    """Router and experts: softmax in FP32, the k highest scores as they are, not made to sum to 1.

    DeepSeek-OCR's layers after the dense ones. dense_bytes: size of the routed experts up to which all are computed.
    Raises EngineError for weights that are missing or of another shape.
    """

    def __init__(
        self,
        files: WeightFiles,
        prefix: str,
        config: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        dense_bytes: int = DENSE_BYTES,
    ) -> None:
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self._router = (
            files.get(f"{prefix}.gate.weight", (config.n_routed_experts, hidden), torch.float32)
            .to(device)
            .t()
        )
        self._k = config.num_experts_per_tok
        self._scale = config.routed_scaling_factor
        experts = [
            Mlp(files, f"{prefix}.experts.{index}", hidden, inner, dtype, device)
            for index in range(config.n_routed_experts)
        ]
        shared = Mlp(
            files, f"{prefix}.shared_experts", hidden, inner * config.n_shared_experts, dtype, device
        )
        size = 3 * len(experts) * hidden * inner * dtype.itemsize
        self.experts: Experts
        if size <= dense_bytes:
            self.experts = DenseExperts(experts, shared)
        elif device.type == "cuda" and dtype == torch.bfloat16:
            self.experts = GroupedExperts(experts, shared)
        else:
            self.experts = VisitedExperts(experts, shared)

    def __call__(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """x: (padded rows, hidden), of which the first `rows` count."""
        scores, chosen = torch.mm(x.float(), self._router).softmax(-1).topk(self._k)
        if self._scale != 1.0:
            scores = scores * self._scale
        return self.experts(x, rows, scores, chosen)
