"""The TensorRT-LLM engine's own part: order, cancel, n-gram rule, ends. Over a simulated executor.

What every engine must do is in tests/engines."""

from __future__ import annotations

import queue
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rtprune.decoder.engines.base import Output, PromptTokens, RequestId, Sampling
from rtprune.decoder.engines.trtllm import TrtllmEngine
from rtprune.errors import EngineError, InvalidInput, Unavailable
from tests.rtprune.decoder.engines.simulated_executor import (
    BLOCK,
    END,
    HIDDEN,
    VOCAB,
    score,
    started,
    write_config,
)
from tests.rtprune.decoder.test_ngram import brute_force

NO_VISUAL = np.zeros((0, HIDDEN), np.float32)


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


def test_tokens_with_and_without_the_rule_in_one_batch(tmp_path: Path) -> None:
    samplings = [
        Sampling(60, END),
        Sampling(60, END, 3, 20),
        Sampling(60, END, 3, 20, frozenset(range(2, 8))),
        Sampling(60, END, 1, 5),
        Sampling(60, END, 2, 50),
        Sampling(7, END, 4, 9),
    ]
    prompts = [[5, 6, 7], [5, 6, 7], [9], [4, 4], [5, 6, 7], [30, 31]]
    with started(tmp_path) as (engine, executor):
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


def test_the_end_id_stops_and_is_not_passed_on(tmp_path: Path) -> None:
    end = expected([5], Sampling(6, END))[3]
    with started(tmp_path) as (engine, _):
        tokens, last = Call(engine, [5], Sampling(50, end)).end()
    assert last.finish_reason == "stop"
    assert tokens == expected([5], Sampling(50, end))
    assert end not in tokens


def test_first_come_first_served_and_never_more_than_fit(tmp_path: Path) -> None:
    with started(tmp_path, max_running=2) as (engine, executor):
        executor.steps.clear()
        calls = [Call(engine, [3 + each], Sampling(5, END)) for each in range(7)]
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (2, 5)
        executor.steps.set()
        for call in calls:
            assert call.end()[1].finish_reason in ("length", "stop")
        assert executor.order == [call.number for call in calls]
        assert executor.most_at_once == 2
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.kv_total) == (0, 0, 100 * BLOCK)


def test_cancel_running_waiting_and_ended(tmp_path: Path) -> None:
    with started(tmp_path, max_running=1) as (engine, executor):
        executor.steps.clear()
        running, waiting, last = (Call(engine, [5], Sampling(300, END)) for _ in range(3))
        engine.cancel(waiting.number)
        assert waiting.end() == ([], Output(finish_reason="cancelled"))
        assert engine.stats().waiting == 1
        executor.steps.set()
        running.outputs.get(timeout=60)
        engine.cancel(running.number)
        assert running.end()[1].finish_reason == "cancelled"
        engine.cancel(running.number)
        engine.cancel(RequestId(10**6))
        assert last.end()[1].finish_reason == "length"
        for call in (running, waiting, last):
            assert call.outputs.empty()


def test_a_request_that_fails_ends_alone(tmp_path: Path) -> None:
    with started(tmp_path) as (engine, executor):
        first = Call(engine, [5], Sampling(100, END))
        executor.fail.add(first.number + 1)
        executor.refuse.add(first.number + 2)
        failed, refused, fine = (Call(engine, [5], Sampling(20, END)) for _ in range(3))
        assert failed.end()[1].error == "The decoder failed on this page."
        assert "maximum sequence length exceeded" in refused.end()[1].error
        assert fine.end()[1].finish_reason == "length"
        assert first.end()[1].finish_reason == "length"
        assert engine.stats().running == 0


def test_an_executor_that_breaks_ends_every_request(tmp_path: Path) -> None:
    with started(tmp_path, max_running=1) as (engine, executor):
        executor.steps.clear()
        calls = [Call(engine, [5], Sampling(100, END)) for _ in range(3)]
        executor.broken = True
        for call in calls:
            output = call.end()[1]
            assert (output.finish_reason, output.error) == ("error", "The decoder failed.")
        with pytest.raises(Unavailable):
            Call(engine, [5], Sampling(5, END))


def test_close_ends_every_request_once(tmp_path: Path) -> None:
    with started(tmp_path, max_running=1) as (engine, executor):
        executor.steps.clear()
        calls = [Call(engine, [5], Sampling(390, END)) for _ in range(3)]
        engine.close()
        engine.close()
        for call in calls:
            output = call.end()[1]
            assert (output.finish_reason, output.error) == ("error", "The decoder was closed.")
            assert call.outputs.empty()


def test_visual_tokens_become_the_prompt_table(tmp_path: Path) -> None:
    visual = np.arange(3 * HIDDEN, dtype=np.float32).reshape(3, HIDDEN)
    done: queue.SimpleQueue[Output] = queue.SimpleQueue()
    with started(tmp_path) as (engine, executor):
        executor.steps.clear()
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
    tmp_path: Path, length: int, visual: int, positions: NDArray[np.int64] | None, sentence: str
) -> None:
    with started(tmp_path) as (engine, _), pytest.raises(InvalidInput, match=sentence):
        engine.submit(
            PromptTokens(np.full(length, 5, np.int32)),
            np.zeros((visual, HIDDEN), np.float32),
            positions,
            Sampling(3, END),
            lambda output: None,
        )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pretrained_config": {}, "build_config": {}}'])
def test_a_folder_without_an_engine_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(EngineError, match=r"config\.json isn't the description"):
        TrtllmEngine(tmp_path, max_running=1, kv_fraction=0.5, longest=1.0)


def test_without_tensorrt_llm_there_is_a_sentence(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(EngineError, match="needs TensorRT-LLM"):
        TrtllmEngine(tmp_path, max_running=1, kv_fraction=0.5, longest=1.0)
