"""The PyTorch decoder computes what transformers' `unlimited_ocr` with full attention computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import decoder_check
from rtprune.decoder.engines.torch.attention import Span, SpanAttention, allocate_kv
from rtprune.decoder.engines.torch.engine import TorchEngine
from rtprune.decoder.engines.torch.model import TorchDecoder
from tests.engines.calls import Ask
from tests.engines.conftest import start_torch
from tests.rtprune.decoder.engines.transformers_decoder import TransformersDecoder
from tests.rtprune.decoder.random_weights import write_checkpoint

pytestmark = pytest.mark.slow("runs transformers' generate beside the engine")

CPU = torch.device("cpu")
REFERENCE: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 384,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 8192,
}
# The published shapes of a layer; three layers and a small vocabulary, so that both models fit in memory.
FULL_SIZE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 1280,
    "num_hidden_layers": 3,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "intermediate_size": 6848,
    "moe_intermediate_size": 896,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "max_position_embeddings": 8192,
}


def teacher_forced(
    model: TorchDecoder, one: Ask, after: list[int], chunk: int, positions: NDArray[np.int64] | None = None
) -> torch.Tensor:
    return decoder_check.teacher_forced(model, one.ids, one.visual, after, chunk, positions)


def shaped(config: dict[str, Any], seed: int, text: int, visual: int, max_tokens: int) -> Ask:
    drawn = np.random.default_rng(seed)
    vocabulary = config["vocab_size"]
    ids = [0, *range(vocabulary, vocabulary + visual), *drawn.integers(3, vocabulary, text)]
    features = drawn.normal(size=(visual, config["hidden_size"])).astype(np.float32)
    return Ask(np.array(ids, np.int32), features, max_tokens, end_id=-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("reference"), seed=1, **REFERENCE)


@pytest.fixture(scope="module")
def reference(folder: Path) -> TransformersDecoder:
    return TransformersDecoder.load(folder, REFERENCE, torch.float32)


@pytest.fixture
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = start_torch(folder, max_running=16, kv_mib=64, prefill_chunk=128)
    yield engine
    engine.close()


def test_greedy_output_of_a_mixed_batch_equals_generate(
    engine: TorchEngine, reference: TransformersDecoder
) -> None:
    drawn = np.random.default_rng(5)
    asks = [
        shaped(REFERENCE, n, *(int(drawn.integers(*r)) for r in ((1, 40), (0, 300), (5, 60))))
        for n in range(16)
    ]
    expected = [reference.generate(each) for each in asks]
    assert all(len(set(tokens)) > 3 for tokens in expected)
    alone = [each.submit(engine).tokens() for each in asks]
    assert alone == expected
    calls = [each.submit(engine) for each in asks]
    assert [call.tokens() for call in calls] == expected
    order = list(drawn.permutation(16))
    late = []
    for number in order:  # one joins whenever another has its first token
        late.append(asks[number].submit(engine).first_token())
    assert [call.tokens() for call in late] == [expected[number] for number in order]


def test_the_ngram_rule_equals_the_windowed_processor(
    engine: TorchEngine, reference: TransformersDecoder
) -> None:
    from transformers.models.unlimited_ocr.generation_unlimited_ocr import (
        UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor,
    )

    free = shaped(REFERENCE, 3, 10, 0, 80)
    ruled = Ask(free.ids, free.visual, 80, end_id=-1, ngram=2, window=30)
    processor = UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor(2, 30)
    expected = reference.generate(free, logits_processor=[processor])
    assert ruled.submit(engine).tokens() == expected
    assert expected != reference.generate(free)


@pytest.mark.parametrize("chunk", [16, 100, 512])
def test_logits_equal_transformers(folder: Path, reference: TransformersDecoder, chunk: int) -> None:
    one = shaped(REFERENCE, 7, 27, 273, 1)
    after = [int(token) for token in np.random.default_rng(1).integers(3, 1024, 50)]
    ours = teacher_forced(TorchDecoder(folder, torch.float32, CPU), one, after, chunk)
    torch.testing.assert_close(ours, reference.logits(one, after), atol=1e-4, rtol=0)


def test_positions_with_gaps_equal_transformers_position_ids(
    folder: Path, reference: TransformersDecoder
) -> None:
    one = shaped(REFERENCE, 8, 10, 100, 1)
    after = [5, 6, 7, 8]
    drawn = np.sort(np.random.default_rng(2).choice(np.arange(1, 400), 100, replace=False))
    positions = np.concatenate([[0], drawn, np.arange(401, 415)]).astype(np.int64)
    ours = teacher_forced(TorchDecoder(folder, torch.float32, CPU), one, after, 64, positions)
    torch.testing.assert_close(ours, reference.logits(one, after, positions), atol=1e-4, rtol=0)
    assert not torch.allclose(ours, reference.logits(one, after), atol=1e-2)


@pytest.mark.parametrize("dense_bytes", [0, 2**30])
def test_grouped_heads_and_every_kind_of_experts_equal_transformers(tmp_path: Path, dense_bytes: int) -> None:
    config = {**REFERENCE, "num_attention_heads": 8, "num_key_value_heads": 2}
    folder = write_checkpoint(tmp_path, seed=2, **config)
    one = shaped(config, 9, 20, 50, 1)
    after = [9, 8, 7]
    ours = teacher_forced(TorchDecoder(folder, torch.float32, CPU, dense_bytes), one, after, 32)
    expected = TransformersDecoder.load(folder, config, torch.float32).logits(one, after)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dense_bytes", [0, 2**30])
def test_a_row_is_the_same_to_the_bit_however_many_go_together(
    folder: Path, dtype: torch.dtype, dense_bytes: int
) -> None:
    """Bit equality is this machine's matrix library's; what is promised everywhere is tested on tokens."""
    model = TorchDecoder(folder, dtype, CPU, dense_bytes)
    kv = allocate_kv(4, 4, 16 * 64, 32, model.kv_dtype, CPU)
    with torch.inference_mode():
        kv.normal_(generator=torch.Generator().manual_seed(0))
        spans = [Span(64 * n, 20 + n, 1) for n in range(16)]

        def step(rows: list[int]) -> torch.Tensor:
            ids = np.array([10 + n for n in rows], np.int32)
            positions = torch.tensor([19 + n for n in rows])
            slots = torch.tensor([64 * n + 19 + n for n in rows])
            attention = SpanAttention(kv, [spans[n] for n in rows])
            none = np.zeros((0, 128), np.float32)
            hidden = model.forward(model.embed(ids, none), positions, slots, kv, attention)
            return model.logits(hidden)[: len(rows)]

        together = step(list(range(16)))
        for rows in ([3], [0, 15], [7, 2, 11], list(range(5)), list(range(15, 2, -1))):
            assert torch.equal(step(rows), together[rows])


def compare_bf16(folder: Path, config: dict[str, Any]) -> tuple[float, float, float, float]:
    """Median error of our BF16 logits and of transformers', both against FP32; over the positions whose router
    margins are above BF16's rounding, the largest difference of the two; the share of the other positions.
    """
    one = shaped(config, 4, 27, 273, 1)
    after = [int(token) for token in np.random.default_rng(6).integers(3, config["vocab_size"], 50)]
    exact = TransformersDecoder.load(folder, config, torch.float32).logits(one, after)
    reference = TransformersDecoder.load(folder, config, torch.bfloat16)
    margins: list[torch.Tensor] = []
    k = config["num_experts_per_tok"]

    def watch(_module: Any, _inputs: Any, output: Any) -> None:
        scores = output[0].softmax(-1).topk(k + 1).values[len(one.ids) - 1 :]
        margins.append((scores[:, k - 1] - scores[:, k]) / scores[:, k])

    for layer in reference.model.model.language_model.layers[1:]:
        layer.mlp.gate.register_forward_hook(watch)
    theirs = reference.logits(one, after)
    clear = torch.stack(margins).amin(0) > 2**-6  # BF16 has 8 bits, and errors add up over the layers
    ours = teacher_forced(TorchDecoder(folder, torch.bfloat16, CPU), one, after, 256)

    def error(logits: torch.Tensor) -> float:
        return float((logits - exact).abs().amax(1).median())

    apart = (ours - theirs).abs().amax(1)
    return error(ours), error(theirs), float(apart[clear].max()), float(1 - clear.float().mean())


def test_bf16_is_as_near_to_fp32_as_transformers_bf16(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=1, dtype=torch.bfloat16, **REFERENCE)
    ours, theirs, apart, left_out = compare_bf16(folder, REFERENCE)
    print(f"BF16 error {ours:.3f}, transformers' {theirs:.3f}, apart {apart:.3f}, left out {left_out:.0%}")
    assert ours <= 1.2 * theirs
    assert apart <= 4 * theirs
    assert left_out < 0.5


@pytest.mark.long
def test_full_size_shapes_in_bf16_are_as_near_to_fp32_as_transformers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=3, dtype=torch.bfloat16, **FULL_SIZE)
    ours, theirs, apart, left_out = compare_bf16(folder, FULL_SIZE)
    print(f"BF16 error {ours:.3f}, transformers' {theirs:.3f}, apart {apart:.3f}, left out {left_out:.0%}")
    assert ours <= 1.2 * theirs
    assert apart <= 4 * theirs


@pytest.mark.long
def test_full_size_shapes_equal_transformers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=3, **FULL_SIZE)
    one = shaped(FULL_SIZE, 4, 27, 273, 1)
    after = [int(token) for token in np.random.default_rng(6).integers(3, 4096, 50)]
    ours = teacher_forced(TorchDecoder(folder, torch.float32, CPU), one, after, 256)
    expected = TransformersDecoder.load(folder, FULL_SIZE, torch.float32).logits(one, after)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
