"""The TensorRT-LLM engine's own part: order, cancel, n-gram rule, ends. Over a simulated executor."""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from simulated_executor import BLOCK, END, HIDDEN, VOCAB, Executor, install, score
from test_ngram import brute_force

from rtprune.decoder.engines.base import Output, PromptTokens, RequestId, Sampling
from rtprune.decoder.engines.trtllm import TrtllmEngine
from rtprune.errors import EngineError, InvalidInput, Unavailable

NO_VISUAL = np.zeros((0, HIDDEN), np.float32)
CONFIG = {
    "pretrained_config": {"dtype": "bfloat16", "vocab_size": VOCAB, "hidden_size": HIDDEN},
    "build_config": {
        "max_batch_size": 4,
        "max_input_len": 40,
        "max_seq_len": 400,
        "max_prompt_embedding_table_size": 80,
    },
}


class CpuEngine(TrtllmEngine):
    """The engine without its two steps that need a GPU."""

    def _on(self, stream: int) -> contextlib.AbstractContextManager[Any]:
        assert stream == 0
        return contextlib.nullcontext()

    def _table(self, visual: NDArray[np.float32]) -> torch.Tensor | None:
        return torch.from_numpy(visual).to(self._dtype) if visual.shape[0] else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@contextlib.contextmanager
def started(folder: Path, max_running: int = 4) -> Iterator[tuple[CpuEngine, Executor]]:
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        engine = CpuEngine(folder, max_running=max_running, kv_fraction=0.5, longest=60.0)
        try:
            yield engine, Executor.latest
        finally:
            Executor.latest.slow.set()
            engine.close()


class Call:
    """A request and its answers."""

    def __init__(self, engine: TrtllmEngine, prompt: list[int], sampling: Sampling) -> None:
        self.outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        self.engine = engine
        ids = PromptTokens(np.array(prompt, np.int32))
        self.number: RequestId = engine.submit(ids, NO_VISUAL, None, sampling, self.outputs.put)

    def end(self) -> tuple[list[int], Output]:
        tokens: list[int] = []
        while True:
            output = self.outputs.get(timeout=60)
            tokens += output.tokens
            if output.finish_reason:
                return tokens, output


def expected(prompt: list[int], sampling: Sampling) -> list[int]:
    """What the rule of `score` gives, with a brute-force n-gram rule."""
    tokens: list[int] = []
    while len(tokens) < sampling.max_tokens:
        scores = score([*prompt, *tokens])
        if sampling.ngram:
            banned = brute_force(tokens, sampling.ngram, sampling.window, sampling.whitelist)
            scores[..., sorted(banned)] = float("-inf")
        token = int(scores.argmax())
        if token == sampling.end_id:
            break
        tokens.append(token)
    return tokens


def test_tokens_with_and_without_the_rule_in_one_batch(folder: Path) -> None:
    samplings = [
        Sampling(60, END),
        Sampling(60, END, 3, 20),
        Sampling(60, END, 3, 20, frozenset(range(2, 8))),
        Sampling(60, END, 1, 5),
        Sampling(60, END, 2, 50),
        Sampling(7, END, 4, 9),
    ]
    prompts = [[5, 6, 7], [5, 6, 7], [9], [4, 4], [5, 6, 7], [30, 31]]
    with started(folder) as (engine, executor):
        calls = [Call(engine, prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
        for call, prompt, sampling in zip(calls, prompts, samplings, strict=True):
            tokens, last = call.end()
            assert tokens == expected(prompt, sampling)
            assert last.finish_reason == ("length" if len(tokens) == sampling.max_tokens else "stop")
            assert last.started > 0
        assert executor.given["kv_cache_config"].given["enable_block_reuse"] is False
    # The simulated model goes round in circles, so the rule changes what it says.
    assert expected(prompts[0], samplings[0]) != expected(prompts[1], samplings[1])
    assert any(
        END not in expected(prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)
    )


def test_the_end_id_stops_and_is_not_passed_on(folder: Path) -> None:
    end = expected([5], Sampling(6, END))[3]
    with started(folder) as (engine, _):
        tokens, last = Call(engine, [5], Sampling(50, end)).end()
    assert last.finish_reason == "stop"
    assert tokens == expected([5], Sampling(50, end))
    assert end not in tokens


def test_first_come_first_served_and_never_more_than_fit(folder: Path) -> None:
    with started(folder, max_running=2) as (engine, executor):
        executor.slow.clear()
        calls = [Call(engine, [3 + each], Sampling(5, END)) for each in range(7)]
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (2, 5)
        executor.slow.set()
        for call in calls:
            assert call.end()[1].finish_reason in ("length", "stop")
        assert executor.order == [call.number for call in calls]
        assert executor.most_at_once == 2
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.kv_total) == (0, 0, 100 * BLOCK)


def test_cancel_running_waiting_and_ended(folder: Path) -> None:
    with started(folder, max_running=1) as (engine, executor):
        executor.slow.clear()
        running, waiting, last = (Call(engine, [5], Sampling(300, END)) for _ in range(3))
        engine.cancel(waiting.number)
        assert waiting.end() == ([], Output(finish_reason="cancelled"))
        assert engine.stats().waiting == 1
        executor.slow.set()
        running.outputs.get(timeout=60)
        engine.cancel(running.number)
        assert running.end()[1].finish_reason == "cancelled"
        engine.cancel(running.number)
        engine.cancel(RequestId(10**6))
        assert last.end()[1].finish_reason == "length"
        for call in (running, waiting, last):
            assert call.outputs.empty()


def test_a_request_that_fails_ends_alone(folder: Path) -> None:
    with started(folder) as (engine, executor):
        first = Call(engine, [5], Sampling(100, END))
        executor.fail.add(first.number + 1)
        executor.refuse.add(first.number + 2)
        failed, refused, fine = (Call(engine, [5], Sampling(20, END)) for _ in range(3))
        assert failed.end()[1].error == "The decoder failed on this page."
        assert "maximum sequence length exceeded" in refused.end()[1].error
        assert fine.end()[1].finish_reason == "length"
        assert first.end()[1].finish_reason == "length"
        assert engine.stats().running == 0


def test_an_executor_that_breaks_ends_every_request(folder: Path) -> None:
    with started(folder, max_running=1) as (engine, executor):
        executor.slow.clear()
        calls = [Call(engine, [5], Sampling(100, END)) for _ in range(3)]
        executor.broken = True
        for call in calls:
            output = call.end()[1]
            assert (output.finish_reason, output.error) == ("error", "The decoder failed.")
        with pytest.raises(Unavailable):
            Call(engine, [5], Sampling(5, END))


def test_close_ends_every_request_once(folder: Path) -> None:
    with started(folder, max_running=1) as (engine, executor):
        executor.slow.clear()
        calls = [Call(engine, [5], Sampling(390, END)) for _ in range(3)]
        engine.close()
        engine.close()
        for call in calls:
            output = call.end()[1]
            assert (output.finish_reason, output.error) == ("error", "The decoder was closed.")
            assert call.outputs.empty()


def test_a_listener_that_raises_loses_only_its_own_request(folder: Path) -> None:
    def raises(output: Output) -> None:
        raise RuntimeError("no")

    with started(folder) as (engine, _):
        engine.submit(PromptTokens(np.array([5], np.int32)), NO_VISUAL, None, Sampling(300, END), raises)
        assert Call(engine, [5], Sampling(20, END)).end()[1].finish_reason == "length"


def test_visual_tokens_become_the_prompt_table(folder: Path) -> None:
    visual = np.arange(3 * HIDDEN, dtype=np.float32).reshape(3, HIDDEN)
    done: queue.SimpleQueue[Output] = queue.SimpleQueue()
    with started(folder) as (engine, executor):
        executor.slow.clear()
        ids = PromptTokens(np.array([0, VOCAB, VOCAB + 1, VOCAB + 2, 5], np.int32))
        engine.submit(ids, visual, None, Sampling(3, END), done.put)
        ((_, request),) = executor._active.items()
        table = request.given["prompt_tuning_config"].given["embedding_table"]
        assert table.dtype is torch.bfloat16
        assert table.float().numpy().tolist() == visual.tolist()
        assert request.given["input_token_ids"] == [0, VOCAB, VOCAB + 1, VOCAB + 2, 5]
        assert request.given["allotted_time_ms"].total_seconds() == 60


@pytest.mark.parametrize(
    ("length", "visual", "positions", "sentence"),
    [
        (41, 0, None, "A prompt of 41 tokens"),
        (30, 21, None, "21 of them visual"),
        (5, 0, np.arange(5), "Positions with gaps"),
    ],
)
def test_what_it_was_not_built_for_is_refused(
    folder: Path, length: int, visual: int, positions: NDArray[np.int64] | None, sentence: str
) -> None:
    with started(folder) as (engine, _), pytest.raises(InvalidInput, match=sentence):
        engine.submit(
            PromptTokens(np.full(length, 5, np.int32)),
            np.zeros((visual, HIDDEN), np.float32),
            positions,
            Sampling(3, END),
            lambda output: None,
        )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.integers(0, 4)), max_size=12), st.integers(1, 4)
)
def test_no_request_is_lost_or_answered_twice(
    folder: Path, requests: list[tuple[int, bool, int]], max_running: int
) -> None:
    with started(folder, max_running) as (engine, executor):
        calls = []
        for number, (tokens, ruled, cancels) in enumerate(requests):
            calls.append(Call(engine, [2 + number], Sampling(tokens, END, *((2, 9) if ruled else ()))))
            if cancels < len(calls):
                engine.cancel(calls[cancels].number)
        for call in calls:
            assert call.end()[1].finish_reason in ("stop", "length", "cancelled")
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert executor.most_at_once <= max_running
        assert all(call.outputs.empty() for call in calls)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pretrained_config": {}, "build_config": {}}'])
def test_a_folder_without_an_engine_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(EngineError, match=r"config\.json isn't the description"):
        TrtllmEngine(tmp_path, max_running=1, kv_fraction=0.5, longest=1.0)


def test_without_tensorrt_llm_there_is_a_sentence(folder: Path) -> None:
    with pytest.raises(EngineError, match="needs TensorRT-LLM"):
        TrtllmEngine(folder, max_running=1, kv_fraction=0.5, longest=1.0)
