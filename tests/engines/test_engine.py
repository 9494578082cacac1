"""What every decoder engine must do: requests join, leave, are refused and end once, without touching one another."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtprune.decoder.engines.base import Engine, EngineInfo, Output, RequestId
from rtprune.errors import InvalidInput, Unavailable
from tests.engines.calls import PATIENCE, Ask, Call, ask
from tests.engines.conftest import CONTEXT, EngineCase

LONG = 3000  # tokens: a request that doesn't end before a test lets it


def assert_idle(engine: Engine, case: EngineCase) -> None:
    """Nothing runs, waits or holds memory: at once, or where the engine is told of it later, after a moment."""
    until = time.monotonic() + (0 if case.frees_first else PATIENCE)
    while (stats := engine.stats()).running or stats.waiting or stats.kv_used:
        assert time.monotonic() < until, stats
        time.sleep(0.005)


@dataclass
class HeldCall(Call):
    """A request whose first token holds the engine's thread until it is let go."""

    def __post_init__(self) -> None:
        self.held, self.go = threading.Event(), threading.Event()

    def on_output(self, output: Output) -> None:
        """What the engine calls."""
        if output.tokens and not self.held.is_set():
            self.held.set()
            assert self.go.wait(PATIENCE)
        super().on_output(output)


def hold(engine: Engine) -> HeldCall:
    """Submit a request and keep the engine in its first callback."""
    call = HeldCall(engine)
    ask(engine, max_tokens=LONG).submit(engine, call)
    assert call.held.wait(PATIENCE)
    return call


def test_a_request_gets_as_many_tokens_as_it_may_have(case: EngineCase, engine: Engine) -> None:
    call = ask(engine, max_tokens=5).submit(engine)
    assert len(call.tokens()) == 5
    assert call.end().finish_reason == "length"
    assert engine.stats().running == engine.stats().waiting == 0
    assert_idle(engine, case)


def test_the_end_id_ends_a_request_and_is_not_part_of_it(engine: Engine) -> None:
    tokens = ask(engine, max_tokens=10).submit(engine).tokens()
    end_id = tokens[6]
    call = ask(engine, max_tokens=10, end_id=end_id).submit(engine)
    assert call.tokens() == tokens[: tokens.index(end_id)]
    assert call.end().finish_reason == "stop"


def test_results_do_not_depend_on_other_requests(engine: Engine) -> None:
    asks = [ask(engine, seed, 3 + seed, (seed * 5) % 40, 5 + seed) for seed in range(12)]
    alone = [each.submit(engine).tokens() for each in asks]
    together = [each.submit(engine) for each in asks]
    assert [call.tokens() for call in together] == alone
    backwards = [each.submit(engine) for each in reversed(asks)]
    assert [call.tokens() for call in backwards] == alone[::-1]


def test_the_rule_of_one_request_changes_no_other(engine: Engine) -> None:
    plain = ask(engine, 3, max_tokens=60)
    asks = [plain, replace(plain, ngram=2, window=40), replace(plain, ngram=1, window=5), plain]
    alone = [each.submit(engine).tokens() for each in asks]
    assert alone[0] == alone[3] != alone[1]
    together = [each.submit(engine) for each in asks]
    assert [call.tokens() for call in together] == alone


def test_more_requests_than_run_at_once_wait_their_turn(engine: Engine) -> None:
    calls = [ask(engine, seed, max_tokens=6).submit(engine) for seed in range(20)]
    assert all(len(call.tokens()) == 6 for call in calls)
    begun = [call.end().started for call in calls]
    assert begun[0] > 0
    assert begun == sorted(begun)


def test_no_more_run_than_may(case: EngineCase, tmp_path: Path) -> None:
    with case.start(tmp_path, 2) as engine:
        held = hold(engine)
        calls = [ask(engine, seed, max_tokens=6).submit(engine) for seed in range(7)]
        assert engine.stats().running <= 2
        assert engine.stats().running + engine.stats().waiting == 8
        held.cancel()
        held.go.set()
        assert all(len(call.tokens()) == 6 for call in calls)
        held.end()
        assert_idle(engine, case)


def test_cancel_ends_a_running_and_a_waiting_request(case: EngineCase, engine: Engine) -> None:
    running = [ask(engine, seed, max_tokens=LONG).submit(engine).first_token() for seed in range(4)]
    waiting = ask(engine, 9, max_tokens=LONG).submit(engine)
    waiting.cancel()
    assert waiting.end() == Output(finish_reason="cancelled")
    assert waiting.end().started == 0.0
    for call in running:
        call.cancel()
    assert {call.end().finish_reason for call in running} == {"cancelled"}
    assert all(call.end().started > 0 for call in running)
    running[0].cancel()  # long gone
    engine.cancel(RequestId(10**6))  # never there
    assert len(ask(engine, max_tokens=3).submit(engine).tokens()) == 3
    assert all(call.outputs.empty() for call in (*running, waiting))
    assert_idle(engine, case)


def test_a_waiting_request_that_is_cancelled_leaves_the_queue(case: EngineCase, tmp_path: Path) -> None:
    with case.start(tmp_path, 1) as engine:
        held = hold(engine)
        first, second = (ask(engine, seed, max_tokens=3).submit(engine) for seed in range(2))
        assert (engine.stats().running, engine.stats().waiting) == (1, 2)
        first.cancel()
        held.cancel()
        held.go.set()
        assert first.tokens() == []
        assert first.end() == Output(finish_reason="cancelled")
        assert len(second.tokens()) == 3
        assert all(call.outputs.empty() for call in (first, second))


def test_a_callback_may_cancel(engine: Engine) -> None:
    ended = threading.Event()
    seen: list[Output] = []

    class Cancelling(Call):
        def on_output(self, output: Output) -> None:
            seen.append(output)
            if output.tokens and not output.finish_reason:
                known.wait(PATIENCE)
                self.cancel()
            if output.finish_reason:
                ended.set()

    known = threading.Event()
    ask(engine, max_tokens=LONG).submit(engine, Cancelling(engine))
    known.set()
    assert ended.wait(PATIENCE)
    assert [output.finish_reason for output in seen if output.finish_reason] == ["cancelled"]


def test_a_callback_that_raises_loses_only_its_own_request(case: EngineCase, engine: Engine) -> None:
    class Broken(Call):
        def on_output(self, output: Output) -> None:
            raise RuntimeError("no reader")

    other = ask(engine, 5, max_tokens=50).submit(engine)
    ask(engine, max_tokens=LONG).submit(engine, Broken(engine))
    assert len(other.tokens()) == 50
    assert len(ask(engine, 6, max_tokens=5).submit(engine).tokens()) == 5
    assert_idle(engine, case)


def unusable(info: EngineInfo, what: str) -> tuple[dict[str, Any], str]:
    """What to change in a good request, and the sentence that this gets."""
    ids, last = np.array([0, 3, 4, 5], np.int32), info.vocab_size - 1
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "no prompt": ({"ids": np.zeros(0, np.int32)}, "one run of token ids"),
        "id too high": ({"ids": np.array([0, last + 1], np.int32)}, rf"0\.\.{last}, got 0\.\.{last + 1}"),
        "id too low": ({"ids": np.array([0, -1], np.int32)}, r"got -1\.\.0"),
        "visual shape": (
            {"visual": np.zeros((2, info.hidden_size - 1), np.float32)},
            rf"\(tokens, {info.hidden_size}\), got \(2, {info.hidden_size - 1}\)",
        ),
        "visual values": ({"visual": np.full((1, info.hidden_size), np.inf, np.float32)}, "not finite"),
        "no output": ({"max_tokens": 0}, "At least 1"),
        "too long": ({"max_tokens": info.context_length - 3}, f"{info.context_length} positions"),
        "positions equal": ({"positions": np.array([0, 5, 5, 9])}, "ascending"),
        "positions missing": ({"positions": np.array([0, 1])}, "for each prompt token"),
        "positions late": (
            {"positions": np.array([0, 1, 2, info.context_length - 6]), "max_tokens": 6},
            f"ends at position {info.context_length - 6}",
        ),
    }
    change, sentence = changes[what]
    good = {"ids": ids, "visual": np.zeros((0, info.hidden_size), np.float32), "max_tokens": 5}
    return {**good, **change}, sentence


@pytest.mark.parametrize(
    "what",
    [
        "no prompt",
        "id too high",
        "id too low",
        "visual shape",
        "visual values",
        "no output",
        "too long",
        "positions equal",
        "positions missing",
        "positions late",
    ],
)
def test_what_can_never_run_is_refused_at_once(case: EngineCase, engine: Engine, what: str) -> None:
    request, sentence = unusable(engine.info, what)
    if "positions" in request and not case.takes_positions:
        sentence = "Positions with gaps"
    with pytest.raises(InvalidInput, match=sentence):
        Ask(**request).submit(engine)
    assert_idle(engine, case)


def test_the_ngram_rule_holds_in_what_is_generated(engine: Engine) -> None:
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


def test_positions_with_gaps_change_the_result_or_are_refused(case: EngineCase, engine: Engine) -> None:
    plain = ask(engine, 2, 6, 10, 20)
    numbered = replace(plain, positions=np.arange(17))
    gaps = replace(plain, positions=np.r_[np.arange(1), np.arange(1, 111, 11), 120:126])
    if case.takes_positions:
        tokens = plain.submit(engine).tokens()
        assert numbered.submit(engine).tokens() == tokens
        assert gaps.submit(engine).tokens() != tokens
    else:
        with pytest.raises(InvalidInput, match="Positions with gaps"):
            gaps.submit(engine)


def test_close_ends_everything_once_and_refuses_more(case: EngineCase, tmp_path: Path) -> None:
    with case.start(tmp_path, 2) as engine:
        calls = [ask(engine, seed, max_tokens=CONTEXT - 9).submit(engine) for seed in range(10)]
        calls[0].first_token()
        engine.close()
        for call in calls:
            assert (call.end().finish_reason, call.end().error) == ("error", case.closed)
        with pytest.raises(Unavailable, match=case.refused):
            ask(engine).submit(engine)
        engine.close()
        assert all(call.outputs.empty() for call in calls)
        assert engine.stats().running == engine.stats().waiting == 0
