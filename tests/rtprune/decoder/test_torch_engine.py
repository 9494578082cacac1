"""The PyTorch engine: requests join, leave, fail and are refused without touching one another."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rtprune.decoder.engines.base import Output, PromptTokens, Sampling
from rtprune.decoder.engines.torch.engine import TorchEngine
from rtprune.decoder.engines.torch.model import TorchDecoder
from rtprune.errors import EngineError, InvalidInput, Unavailable
from tests.rtprune.decoder.engine_calls import PATIENCE, Ask, ask, start
from tests.rtprune.decoder.random_weights import TINY, random_tensors, write_checkpoint

POISON = 7  # its embedding is not a number, in the checkpoint of `poisoned`


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = start(folder)
    yield engine
    engine.close()


def test_a_request_gets_as_many_tokens_as_it_may_have(engine: TorchEngine) -> None:
    call = ask(engine, max_tokens=5).submit(engine)
    assert len(call.tokens()) == 5
    assert call.end().finish_reason == "length"
    assert engine.stats().kv_used == engine.stats().running == engine.stats().waiting == 0


def test_the_end_id_ends_a_request_and_is_not_part_of_it(engine: TorchEngine) -> None:
    tokens = ask(engine, max_tokens=10).submit(engine).tokens()
    end_id = tokens[6]
    call = ask(engine, max_tokens=10, end_id=end_id).submit(engine)
    assert call.tokens() == tokens[: tokens.index(end_id)]
    assert call.end().finish_reason == "stop"


def test_results_do_not_depend_on_other_requests(engine: TorchEngine) -> None:
    asks = [ask(engine, seed, 3 + seed, (seed * 5) % 40, 5 + seed) for seed in range(12)]
    alone = [each.submit(engine).tokens() for each in asks]
    together = [each.submit(engine) for each in asks]
    assert [call.tokens() for call in together] == alone
    backwards = [each.submit(engine) for each in reversed(asks)]
    assert [call.tokens() for call in backwards] == alone[::-1]


def test_prompt_chunks_only_change_rounding(folder: Path) -> None:
    """A prompt in chunks of 16 and in one: the same tokens from a model whose best logits lie well apart."""
    results = []
    for chunk in (16, 64, 256):
        engine = start(folder, prefill_chunk=chunk)
        results.append([ask(engine, seed, 50, 20, 20).submit(engine).tokens() for seed in range(4)])
        engine.close()
    assert results[0] == results[1] == results[2]


def test_more_requests_than_run_at_once_wait_their_turn(engine: TorchEngine) -> None:
    calls = [ask(engine, seed, max_tokens=6).submit(engine) for seed in range(20)]
    assert all(len(call.tokens()) == 6 for call in calls)
    begun = [call.end().started for call in calls]
    assert begun == sorted(begun)


def test_a_long_request_at_the_head_is_not_overtaken(folder: Path) -> None:
    """Memory for 256 positions: the second request doesn't fit beside the first, the third would."""
    model = TorchDecoder(folder, torch.float32, torch.device("cpu"))
    engine = TorchEngine(model, max_running=4, kv_tokens=256, prefill_chunk=16, threads=1)
    calls = [ask(engine, n, max_tokens=n).submit(engine) for n in (100, 200, 2)]
    started = [call.end().started for call in calls]
    assert started == sorted(started)
    assert len(set(started)) == 3
    engine.close()


def test_cancel_ends_a_running_and_a_waiting_request(engine: TorchEngine) -> None:
    running = [ask(engine, seed, max_tokens=200).submit(engine).first_token() for seed in range(4)]
    waiting = ask(engine, 9, max_tokens=200).submit(engine)
    waiting.cancel()
    assert waiting.end().finish_reason == "cancelled"
    assert waiting.end().started == 0.0
    for call in running:
        call.cancel()
    assert {call.end().finish_reason for call in running} == {"cancelled"}
    running[0].cancel()  # long gone
    assert len(ask(engine, max_tokens=3).submit(engine).tokens()) == 3
    assert engine.stats().kv_used == 0


def test_a_listener_may_cancel(engine: TorchEngine) -> None:
    ended = threading.Event()
    seen: list[Output] = []
    number = []
    known = threading.Event()

    def listener(output: Output) -> None:
        seen.append(output)
        if output.tokens and not output.finish_reason:
            known.wait(PATIENCE)
            engine.cancel(number[0])
        if output.finish_reason:
            ended.set()

    one = ask(engine, max_tokens=100)
    number.append(engine.submit(PromptTokens(one.ids), one.visual, None, Sampling(100, -1), listener))
    known.set()
    assert ended.wait(PATIENCE)
    assert [output.finish_reason for output in seen if output.finish_reason] == ["cancelled"]


def test_a_listener_that_raises_loses_only_its_own_request(engine: TorchEngine) -> None:
    def broken(output: Output) -> None:
        raise RuntimeError("no reader")

    one = ask(engine, max_tokens=100)
    other = ask(engine, 5, max_tokens=50).submit(engine)
    engine.submit(PromptTokens(one.ids), one.visual, None, Sampling(100, -1), broken)
    assert len(other.tokens()) == 50
    assert len(ask(engine, 6, max_tokens=5).submit(engine).tokens()) == 5
    assert engine.stats().running == 0


def test_not_finite_logits_end_that_request_alone(tmp_path: Path) -> None:
    table = random_tensors(TINY, 0)["model.embed_tokens.weight"]
    table[POISON] = float("nan")
    engine = start(write_checkpoint(tmp_path, seed=0, edit={"model.embed_tokens.weight": table}))
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

    def fails(embedded, positions, places, kv, attention):  # type: ignore[no-untyped-def]
        if int(positions.max()) == broken_length:
            raise RuntimeError("out of luck")
        return compute(embedded, positions, places, kv, attention)

    sound = [ask(engine, seed, 5, 0, 25) for seed in range(3)]
    alone = [each.submit(engine).tokens() for each in sound]
    monkeypatch.setattr(engine._model, "forward", fails)
    bad = ask(engine, 9, 30, 0, 40).submit(engine).first_token()
    calls = [each.submit(engine) for each in sound]
    assert bad.end().finish_reason == "error"
    assert "out of luck" not in bad.end().error
    assert [call.tokens() for call in calls] == alone
    assert engine.stats().kv_used == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ids": np.zeros(0, np.int32)}, "one run of token ids"),
        ({"ids": np.array([0, 416], np.int32)}, "0..415, got 0..416"),
        ({"ids": np.array([0, -1], np.int32)}, "got -1..0"),
        ({"visual": np.zeros((2, 31), np.float32)}, r"\(tokens, 32\), got \(2, 31\)"),
        ({"visual": np.full((1, 32), np.inf, np.float32)}, "not finite"),
        ({"max_tokens": 0}, "At least 1"),
        ({"max_tokens": 253}, "256 positions"),
        ({"positions": np.array([0, 5, 5, 9])}, "ascending"),
        ({"positions": np.array([0, 1])}, "for each prompt token"),
        ({"positions": np.array([0, 1, 2, 250]), "max_tokens": 6}, "ends at position 250"),
    ],
)
def test_what_can_never_run_is_refused_at_once(
    engine: TorchEngine, change: dict[str, object], sentence: str
) -> None:
    good = {"ids": np.array([0, 3, 4, 5], np.int32), "visual": np.zeros((0, 32), np.float32), "max_tokens": 5}
    with pytest.raises(InvalidInput, match=sentence):
        Ask(**{**good, **change}).submit(engine)  # type: ignore[arg-type]


def test_a_request_beyond_the_kv_memory_is_refused_at_once(tmp_path: Path) -> None:
    engine = start(write_checkpoint(tmp_path, seed=0, max_position_embeddings=65536), kv_mib=1)
    room = engine.info.kv_tokens
    with pytest.raises(InvalidInput, match=f"{room} positions"):
        ask(engine, max_tokens=room).submit(engine)
    engine.close()


def test_the_ngram_rule_holds_in_what_is_generated(engine: TorchEngine) -> None:
    free = ask(engine, 3, max_tokens=120).submit(engine).tokens()
    window, size = 40, 2
    grams = [tuple(free[i : i + size]) for i in range(len(free) - size + 1)]
    assert len(set(grams)) < len(grams)  # left alone, it repeats
    tokens = ask(engine, 3, max_tokens=120, ngram=size, window=window).submit(engine).tokens()
    assert len(tokens) == 120
    for end in range(size, len(tokens) + 1):
        seen = tokens[max(0, end - 1 - window) : end - 1]
        assert tuple(tokens[end - size : end]) not in {
            tuple(seen[i : i + size]) for i in range(len(seen) - size + 1)
        }


def test_positions_with_gaps_change_the_result_and_plain_ones_do_not(engine: TorchEngine) -> None:
    plain = ask(engine, 2, 6, 10, 20)
    numbered = ask(engine, 2, 6, 10, 20, positions=np.arange(17))
    gaps = ask(engine, 2, 6, 10, 20, positions=np.r_[np.arange(1), np.arange(1, 111, 11), 120:126])
    tokens = plain.submit(engine).tokens()
    assert numbered.submit(engine).tokens() == tokens
    assert gaps.submit(engine).tokens() != tokens


def test_close_ends_everything_and_refuses_more(folder: Path) -> None:
    engine = start(folder)
    calls = [ask(engine, seed, max_tokens=200).submit(engine) for seed in range(10)]
    calls[0].first_token()
    engine.close()
    assert {call.end().finish_reason for call in calls} == {"error"}
    assert all("shut down" in call.end().error for call in calls)
    with pytest.raises(Unavailable, match="shutting down"):
        ask(engine).submit(engine)
    engine.close()


def test_wrong_precisions_and_missing_gpus_are_said(folder: Path) -> None:
    with pytest.raises(EngineError, match="fp32 or bf16, not int8"):
        start(folder, precision="int8")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="sees none"):
            start(folder, device="cuda")


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
