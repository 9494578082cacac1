"""Attention and experts, each way of computing them against the plain definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from rtprune.decoder.engines.torch.attention import (
    GatherAttention,
    Span,
    SpanAttention,
    interleave_halves,
    rotary_table,
)
from rtprune.decoder.engines.torch.experts import (
    DenseExperts,
    Experts,
    GroupedExperts,
    Mlp,
    VisitedExperts,
    linear,
    row_multiple,
)
from rtprune.decoder.engines.torch.weights import WeightFiles
from tests.rtprune.decoder.random_weights import write_checkpoint

SPANS = [Span(0, 7, 1), Span(32, 30, 1), Span(64, 1, 1), Span(96, 31, 1)]


@pytest.fixture
def kv() -> torch.Tensor:
    memory = torch.randn((2, 2, 2, 128, 16), generator=torch.Generator().manual_seed(0))
    memory[:, :, :, 7:32] = float("nan")  # nobody's positions
    return memory


@pytest.mark.parametrize("heads", [2, 4])
def test_both_attentions_read_exactly_their_own_positions(kv: torch.Tensor, heads: int) -> None:
    queries = torch.randn((4, heads, 16), generator=torch.Generator().manual_seed(1))
    spans, gathered = SpanAttention(kv, SPANS), GatherAttention(kv, SPANS)
    for layer in (0, 1):
        for row, span in enumerate(SPANS):
            keys, values = (
                part[:, span.start : span.start + span.length].repeat_interleave(heads // 2, 0)
                for part in kv[layer]
            )
            weights = (queries[row][:, None] @ keys.transpose(1, 2) / 4).softmax(-1)
            expected = (weights @ values)[:, 0]
            torch.testing.assert_close(spans(layer, queries)[row], expected)
            torch.testing.assert_close(gathered(layer, queries)[row], expected)


def test_a_chunk_sees_what_was_before_it_and_itself(kv: torch.Tensor) -> None:
    queries = torch.randn((9, 2, 16), generator=torch.Generator().manual_seed(2))
    both = SpanAttention(kv, [Span(32, 20, 5), Span(96, 4, 4)])(0, queries)
    for row, (start, length) in enumerate(
        [*((32, 16 + n) for n in range(5)), *((96, n + 1) for n in range(4))]
    ):
        one = SpanAttention(kv, [Span(start, length, 1)])(0, queries[row : row + 1])
        torch.testing.assert_close(both[row], one[0])


def test_rotation_of_interleaved_halves_is_rotate_half() -> None:
    drawn = torch.Generator().manual_seed(3)
    weight, x = torch.randn((32, 8), generator=drawn), torch.randn((5, 8), generator=drawn)
    table = rotary_table(50, 16, 10000.0, 1, torch.device("cpu"))
    positions = torch.tensor([0, 1, 7, 30, 49])
    angles = positions[:, None] / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    cos, sin = angles.repeat(1, 2).cos()[:, None], angles.repeat(1, 2).sin()[:, None]
    plain = F.linear(x, weight).view(5, 2, 16)
    expected = plain * cos + torch.cat((-plain[..., 8:], plain[..., :8]), -1) * sin
    turned = F.linear(x, interleave_halves(weight, 2)).view(5, 2, 8, 2)
    rotated = torch.view_as_real(torch.view_as_complex(turned) * table[positions][:, 0])
    torch.testing.assert_close(rotated.transpose(2, 3).reshape(5, 2, 16), expected)
    assert torch.equal(table[:, 2], torch.ones_like(table[:, 2]))  # values are not rotated


@pytest.mark.parametrize("kind", [DenseExperts, VisitedExperts, GroupedExperts])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_experts_compute_the_weighted_sum(
    tmp_path: Path, kind: type[Experts], dtype: torch.dtype, tolerance: float
) -> None:
    files = WeightFiles(write_checkpoint(tmp_path, seed=5, dtype=dtype))
    cpu, prefix = torch.device("cpu"), "model.layers.1.mlp"
    experts = [Mlp(files, f"{prefix}.experts.{n}", 32, 16, dtype, cpu) for n in range(4)]
    shared = Mlp(files, f"{prefix}.shared_experts", 32, 16, dtype, cpu)
    layer = kind(experts, shared)  # type: ignore[call-arg]
    drawn = torch.Generator().manual_seed(0)
    for rows in (1, 2, 5, 40):
        padded = rows + -rows % row_multiple(dtype)
        x = torch.randn((padded, 32), generator=drawn).to(dtype)
        scores, chosen = torch.randn((padded, 4), generator=drawn).softmax(-1).topk(2)
        chosen[:, 0] = torch.where(
            chosen[:, 1] == 3, chosen[:, 0], 3
        )  # expert 3 is popular, some are not chosen
        expected = shared(x).float()
        for row in range(rows):
            for weight, number in zip(scores[row], chosen[row], strict=True):
                expected[row] += weight * experts[int(number)](x[row : row + 1])[0].float()
        found = layer(x, rows, scores, chosen)
        assert found.dtype == dtype
        torch.testing.assert_close(found[:rows].float(), expected[:rows], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_padded_product_is_the_product(dtype: torch.dtype) -> None:
    x, weight = torch.randn(16, 24).to(dtype), torch.randn(24, 8).to(dtype)
    for rows in range(1, 17):
        assert torch.equal(linear(x[:rows], weight), linear(x, weight)[:rows])
