"""The PyTorch engine's own part: memory, chunks, steps that fail. What every engine must do is in tests/engines."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rtprune.decoder.engines.torch.attention import Attention
from rtprune.decoder.engines.torch.engine import TorchEngine
from rtprune.decoder.engines.torch.model import TorchDecoder
from rtprune.errors import EngineError, InvalidInput
from tests.engines.calls import Ask, ask
from tests.engines.conftest import start_torch
from tests.rtprune.decoder.random_weights import TINY, random_tensors, write_checkpoint

POISON = 7  # its embedding is not a number, in the checkpoint of `poisoned`


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = start_torch(folder)
    yield engine
    engine.close()


def test_memory_is_free_again_before_a_request_ends(engine: TorchEngine) -> None:
    assert len(ask(engine, max_tokens=5).submit(engine).tokens()) == 5
    assert engine.stats().kv_used == engine.stats().running == engine.stats().waiting == 0
    call = ask(engine, max_tokens=200).submit(engine).first_token()
    call.cancel()
    assert call.end().finish_reason == "cancelled"
    assert engine.stats().kv_used == engine.stats().running == engine.stats().waiting == 0


def test_prompt_chunks_only_change_rounding(folder: Path) -> None:
    """A prompt in chunks of 16 and in one: the same tokens from a model whose best logits lie well apart."""
    results = []
    for chunk in (16, 64, 256):
        engine = start_torch(folder, prefill_chunk=chunk)
        results.append([ask(engine, seed, 50, 20, 20).submit(engine).tokens() for seed in range(4)])
        engine.close()
    assert results[0] == results[1] == results[2]


def test_a_long_request_at_the_head_is_not_overtaken(folder: Path) -> None:
    """Memory for 256 positions: the second request doesn't fit beside the first, the third would."""
    model = TorchDecoder(folder, torch.float32, torch.device("cpu"))
    engine = TorchEngine(model, max_running=4, kv_tokens=256, prefill_chunk=16, threads=1)
    calls = [ask(engine, n, max_tokens=n).submit(engine) for n in (100, 200, 2)]
    started = [call.end().started for call in calls]
    assert started == sorted(started)
    assert len(set(started)) == 3
    engine.close()


def test_not_finite_logits_end_that_request_alone(tmp_path: Path) -> None:
    table = random_tensors(TINY, 0)["model.embed_tokens.weight"]
    table[POISON] = float("nan")
    engine = start_torch(write_checkpoint(tmp_path, seed=0, edit={"model.embed_tokens.weight": table}))
    sound = [ask(engine, seed, 6, 4, 20) for seed in range(3)]
    alone = [each.submit(engine).tokens() for each in sound]
    calls = [each.submit(engine) for each in sound]
    bad = Ask(np.array([0, 5, POISON, 9], np.int32), np.zeros((0, 32), np.float32), 20).submit(engine)
    assert bad.end().finish_reason == "error"
    assert "not finite" in bad.end().error
    assert [call.tokens() for call in calls] == alone
    for each, tokens in zip(sound, alone, strict=True):  # in the memory that held the bad values
        assert each.submit(engine).tokens() == tokens
    engine.close()


def test_a_failing_step_ends_the_request_that_makes_it_fail(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = engine._model.forward
    broken_length = 37

    def fails(
        embedded: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        kv: torch.Tensor,
        attention: Attention,
    ) -> torch.Tensor:
        if int(positions.max()) == broken_length:
            raise RuntimeError("out of luck")
        return compute(embedded, positions, slots, kv, attention)

    sound = [ask(engine, seed, 5, 0, 25) for seed in range(3)]
    alone = [each.submit(engine).tokens() for each in sound]
    monkeypatch.setattr(engine._model, "forward", fails)
    bad = ask(engine, 9, 30, 0, 40).submit(engine).first_token()
    calls = [each.submit(engine) for each in sound]
    assert bad.end().finish_reason == "error"
    assert "out of luck" not in bad.end().error
    assert [call.tokens() for call in calls] == alone
    assert engine.stats().kv_used == 0


def test_a_request_beyond_the_kv_memory_is_refused_at_once(tmp_path: Path) -> None:
    engine = start_torch(write_checkpoint(tmp_path, seed=0, max_position_embeddings=65536), kv_mib=1)
    room = engine.info.kv_tokens
    with pytest.raises(InvalidInput, match=f"{room} positions"):
        ask(engine, max_tokens=room).submit(engine)
    engine.close()


def test_wrong_precisions_and_missing_gpus_are_said(folder: Path) -> None:
    with pytest.raises(EngineError, match="fp32 or bf16, not int8"):
        start_torch(folder, precision="int8")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="sees none"):
            start_torch(folder, device="cuda")


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.long)])
def test_many_short_requests_leave_memory_where_it_was(engine: TorchEngine, count: int) -> None:
    def go(first: int, number: int) -> None:
        for begin in range(first, first + number, 50):
            seeds = range(begin, begin + 50)
            calls = [ask(engine, seed, 4, 3, 3, ngram=2, window=8).submit(engine) for seed in seeds]
            assert all(len(call.tokens()) == 3 for call in calls)

    go(0, 300)
    before = resident()
    go(300, count)
    assert resident() - before < 8 * 2**20
    assert engine.stats().kv_used == 0


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
