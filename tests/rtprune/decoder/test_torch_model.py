"""The PyTorch decoder computes what transformers' `unlimited_ocr` with full attention computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rtprune.decoder.torch_attention import Span, SpanAttention, allocate_kv
from rtprune.decoder.torch_engine import TorchEngine
from rtprune.decoder.torch_model import TorchDecoder
from tests.rtprune.decoder.engine_calls import Ask, start
from tests.rtprune.decoder.random_weights import write_checkpoint

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


class Reference:
    """transformers' model with the weights of a decoder checkpoint."""

    def __init__(self, folder: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
        from safetensors.torch import load_file
        from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration

        tiny_vision = {
            "sam_config": {
                "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32,
                "global_attn_indexes": [0], "downsample_channels": [32, 32], "output_channels": 32,
            },
            "encoder_config": {
                "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2
            },
        }  # fmt: skip
        text = {
            **config,
            "layer_types": ["full_attention"] * config["num_hidden_layers"],
            "sliding_window": config["max_position_embeddings"],
            "first_k_dense_replace": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        }
        whole = UnlimitedOcrConfig(text_config=text, vision_config=tiny_vision, image_token_id=2)
        tensors = load_file(folder / "decoder.safetensors")
        self.model = UnlimitedOcrForConditionalGeneration.from_pretrained(
            None, config=whole, state_dict=tensors, dtype=dtype
        ).eval()
        self.vocab_size = config["vocab_size"]

    def embed(self, one: Ask) -> torch.Tensor:
        ids = torch.from_numpy(one.ids.astype(np.int64))
        embedded = self.model.get_input_embeddings()(ids.clamp(max=self.vocab_size - 1))
        visual = ids >= self.vocab_size
        embedded[visual] = torch.from_numpy(one.visual)[ids[visual] - self.vocab_size].to(embedded.dtype)
        return embedded[None]

    @torch.inference_mode()
    def generate(self, one: Ask, **options: Any) -> list[int]:
        embedded = self.embed(one)
        generated = self.model.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.int64),
            max_new_tokens=one.max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        return [int(token) for token in generated[0]]

    @torch.inference_mode()
    def logits(self, one: Ask, after: list[int], positions: NDArray[np.int64] | None = None) -> torch.Tensor:
        """Of the prompt's last token and of each token of `after`: (1 + after, vocabulary)."""
        tail = self.model.get_input_embeddings()(torch.tensor([after], dtype=torch.int64))
        embedded = torch.cat((self.embed(one), tail), 1)
        numbers = None if positions is None else torch.from_numpy(positions)[None]
        logits = self.model(inputs_embeds=embedded, position_ids=numbers).logits
        return logits[0, len(one.ids) - 1 :].float()


@torch.inference_mode()
def teacher_forced(
    model: TorchDecoder, one: Ask, after: list[int], chunk: int, positions: NDArray[np.int64] | None = None
) -> torch.Tensor:
    """Our logits of the same positions: the prompt in chunks, then token by token."""
    config, length = model.config, len(one.ids) + len(after)
    kv = allocate_kv(
        config.num_hidden_layers,
        config.num_key_value_heads,
        length + 32,
        config.head_dim,
        model.kv_dtype,
        CPU,
    )
    ids = np.concatenate([one.ids, np.array(after, np.int32)])
    numbers = torch.arange(length) if positions is None else torch.from_numpy(positions)
    edges = [*range(0, len(one.ids), chunk), *range(len(one.ids), length + 1)]
    found = []
    for begin, end in itertools.pairwise(edges):
        attention = SpanAttention(kv, [Span(32, end, end - begin)])
        places = torch.arange(32 + begin, 32 + end)
        hidden = model.forward(
            model.embed(ids[begin:end], one.visual), numbers[begin:end], places, kv, attention
        )
        if end >= len(one.ids):
            found.append(model.logits(hidden[end - begin - 1 : end - begin]))
    return torch.cat(found)


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
def reference(folder: Path) -> Reference:
    return Reference(folder, REFERENCE, torch.float32)


@pytest.fixture
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = start(folder, max_running=16, kv_mib=64, prefill_chunk=128)
    yield engine
    engine.close()


def test_greedy_output_of_a_mixed_batch_equals_generate(engine: TorchEngine, reference: Reference) -> None:
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


def test_the_ngram_rule_equals_the_windowed_processor(engine: TorchEngine, reference: Reference) -> None:
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
def test_logits_equal_transformers(folder: Path, reference: Reference, chunk: int) -> None:
    one = shaped(REFERENCE, 7, 27, 273, 1)
    after = [int(token) for token in np.random.default_rng(1).integers(3, 1024, 50)]
    ours = teacher_forced(TorchDecoder(folder, torch.float32, CPU), one, after, chunk)
    torch.testing.assert_close(ours, reference.logits(one, after), atol=1e-4, rtol=0)


def test_positions_with_gaps_equal_transformers_position_ids(folder: Path, reference: Reference) -> None:
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
    expected = Reference(folder, config, torch.float32).logits(one, after)
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
            places = torch.tensor([64 * n + 19 + n for n in rows])
            attention = SpanAttention(kv, [spans[n] for n in rows])
            none = np.zeros((0, 128), np.float32)
            hidden = model.forward(model.embed(ids, none), positions, places, kv, attention)
            return model.logits(hidden)[: len(rows)]

        together = step(list(range(16)))
        for rows in ([3], [0, 15], [7, 2, 11], list(range(5)), list(range(15, 2, -1))):
            assert torch.equal(step(rows), together[rows])


@pytest.mark.long
def test_full_size_shapes_equal_transformers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=3, **FULL_SIZE)
    one = shaped(FULL_SIZE, 4, 27, 273, 1)
    after = [int(token) for token in np.random.default_rng(6).integers(3, 4096, 50)]
    ours = teacher_forced(TorchDecoder(folder, torch.float32, CPU), one, after, 256)
    expected = Reference(folder, FULL_SIZE, torch.float32).logits(one, after)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
