"""Any order of submit, cancel and waiting: no request is lost, none ends twice, all KV memory comes back."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from rtprune.decoder.engines.base import Engine, Output, PromptTokens, RequestId, Sampling
from tests.engines.calls import PATIENCE, Ask, ask
from tests.engines.conftest import EngineCase
from tests.engines.test_engine import assert_idle

pytestmark = pytest.mark.slow("drives every engine through random histories")


class Watched:
    """A request, checked as its outputs come."""

    def __init__(self, engine: Engine, one: Ask, cancel_at: int) -> None:
        self.engine = engine
        self.one = one
        self.cancel_at = cancel_at  # this many tokens, from inside the callback; 0 is never
        self.tokens: list[int] = []
        self.reasons: list[str] = []
        self.late: list[Output] = []
        self.ended = threading.Event()
        self.known = threading.Event()
        self.number: RequestId | None = None
        self.cancelled = False

    def submit(self) -> None:
        sampling = Sampling(self.one.max_tokens, self.one.end_id, self.one.ngram, self.one.window)
        self.number = self.engine.submit(
            PromptTokens(self.one.ids), self.one.visual, self.one.positions, sampling, self.on_output
        )
        self.known.set()

    def on_output(self, output: Output) -> None:
        if self.reasons:
            self.late.append(output)
        self.tokens += output.tokens
        if output.finish_reason:
            self.reasons.append(output.finish_reason)
            self.ended.set()
        elif self.cancel_at and len(self.tokens) >= self.cancel_at:
            self.known.wait(PATIENCE)
            self.cancel()

    def cancel(self) -> None:
        self.cancelled = True
        assert self.number is not None
        self.engine.cancel(self.number)


class EngineMachine(RuleBasedStateMachine):
    """Three running at most and memory for about five small requests."""

    case: EngineCase
    folder: Path
    requests: Bundle[Watched] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self._started = ExitStack()
        self.engine = self._started.enter_context(self.case.start(self.folder, 3, 320))
        self.every: list[Watched] = []

    @rule(
        target=requests,
        seed=st.integers(0, 50),
        text=st.integers(1, 40),
        visual=st.integers(0, 40),
        max_tokens=st.integers(1, 30),
        cancel_at=st.sampled_from([0, 0, 0, 1, 5]),
        ngram=st.sampled_from([0, 2]),
    )
    def submit(
        self, seed: int, text: int, visual: int, max_tokens: int, cancel_at: int, ngram: int
    ) -> Watched:
        one = ask(self.engine, seed, text, visual, max_tokens, ngram=ngram, window=10, end_id=seed % 7 + 3)
        request = Watched(self.engine, one, cancel_at)
        self.every.append(request)
        request.submit()
        return request

    @rule(request=requests)
    def cancel(self, request: Watched) -> None:
        request.cancel()

    @rule(request=consumes(requests), again=st.booleans())
    def wait(self, request: Watched, again: bool) -> None:
        assert request.ended.wait(PATIENCE)
        if again:
            request.cancel()

    @rule(target=requests, number=st.integers(2, 8))
    def burst(self, number: int) -> MultipleResults[Watched]:
        made = [Watched(self.engine, ask(self.engine, n, n, n, 3), 0) for n in range(1, number + 1)]
        for request in made:
            self.every.append(request)
            request.submit()
        return multiple(*made)

    @invariant()
    def gauges_are_within_bounds(self) -> None:
        stats = self.engine.stats()
        assert 0 <= stats.running <= 3
        assert 0 <= stats.kv_used <= stats.kv_total
        assert 0 <= stats.waiting <= len(self.every)

    def teardown(self) -> None:
        for request in self.every:
            assert request.ended.wait(PATIENCE)
        assert_idle(self.engine)
        self._started.close()
        for request in self.every:
            (reason,) = request.reasons
            assert not request.late
            assert reason != "error"
            assert reason != "cancelled" or request.cancelled
            assert (reason == "length") == (len(request.tokens) == request.one.max_tokens)
        assert self.engine.stats().kv_used == 0


def test_no_request_is_lost_or_answered_twice(case: EngineCase, tmp_path: Path) -> None:
    machine = type("Machine", (EngineMachine,), {"case": case, "folder": tmp_path})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25))
