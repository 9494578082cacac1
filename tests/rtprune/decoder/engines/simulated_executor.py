"""A stand-in for TensorRT-LLM's executor that follows the description of its bindings.

It shows whether our side keeps its books: what it accepts is generated from the description (an argument that
isn't there, or positional where it must be named, raises TypeError), its tokens follow from a fixed rule, and it
calls the logits post-processor as the executor does. What TensorRT-LLM itself does, it can't show.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rtprune.decoder.engines.trtllm import TrtllmEngine
from tests.rtprune.decoder.engines.executor_bindings import DESCRIPTION

VOCAB, HIDDEN, END, BLOCK = 32, 4, 1, 8


def score(sequence: list[int]) -> torch.Tensor:
    """Logits (1, 1, VOCAB) of the next token: a fixed function of the last one, with a period of a few tokens."""
    last = sequence[-1] % VOCAB
    best = 2 + (last * 5 + 3) % 6
    return torch.arange(VOCAB, dtype=torch.float32).sub(best).remainder(VOCAB).neg().reshape(1, 1, VOCAB)


class _Described:
    """An object whose constructor takes exactly what the description says."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        described = DESCRIPTION["classes"][type(self).__name__]
        parameters = [
            inspect.Parameter(
                argument["name"],
                inspect.Parameter.KEYWORD_ONLY
                if argument["keyword_only"]
                else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=argument.get("default", inspect.Parameter.empty),
            )
            for argument in described["init"]
        ]
        self.given = inspect.Signature(parameters).bind(*positional, **named).arguments


class Executor:
    """Steps its requests in a thread, one token each."""

    latest: Executor

    def __init__(self, model_path: Any, model_type: Any, executor_config: Any) -> None:
        Executor.latest = self
        self.given = executor_config.given
        self.most_at_once = 0
        self.steps = threading.Event()  # cleared: none are taken
        self.steps.set()
        self.refuse: set[int] = set()  # client ids whose request is refused
        self.fail: set[int] = set()  # client ids that end with an error
        self.broken = False
        self.order: list[int] = []
        self._active: dict[int, SimpleNamespace] = {}
        self._ready: list[Any] = []
        self._lock = threading.Condition()
        self._stopped = False
        self._next_id = 1000
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def enqueue_request(self, request: Any) -> int:
        given = request.given
        client = given["client_id"]
        if client in self.refuse:
            raise RuntimeError("maximum sequence length exceeded")
        assert given["streaming"] is True
        with self._lock:
            self._next_id += 1
            self._active[self._next_id] = SimpleNamespace(
                client=client, given=given, tokens=list(given["input_token_ids"]), output=0, cancelled=False
            )
            self.order.append(client)
            self.most_at_once = max(self.most_at_once, len(self._active))
            return self._next_id

    def cancel_request(self, id: int | None = None) -> None:
        with self._lock:
            if id in self._active:
                self._active[id].cancelled = True

    def await_responses(self, timeout: Any = None) -> list[Any]:
        with self._lock:
            if self.broken:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if not self._ready:
                self._lock.wait(timeout.total_seconds())
            ready, self._ready = self._ready, []
            return ready

    def get_latest_iteration_stats(self) -> list[Any]:
        with self._lock:
            used = sum(-(-len(each.tokens) // BLOCK) for each in self._active.values())
        memory = SimpleNamespace(used_num_blocks=used, max_num_blocks=100, tokens_per_block=BLOCK)
        return [SimpleNamespace(kv_cache_stats=memory)]

    def shutdown(self) -> None:
        self._stopped = True
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped:
            if not self.steps.wait(0.005):
                continue
            with self._lock:
                active = list(self._active.items())
            if not active:
                time.sleep(0.001)
                continue
            time.sleep(0.0002)  # a step takes time, so that a request can be cancelled before its end
            logits = [score(each.tokens) for _, each in active]
            named = [
                index for index, (_, each) in enumerate(active) if each.given["logits_post_processor_name"]
            ]
            if named:
                self.given["logits_post_processor_config"].given["processor_batched"](
                    [active[index][0] for index in named],
                    [logits[index] for index in named],
                    [[list(active[index][1].tokens)] for index in named],
                    0,
                    [active[index][1].client for index in named],
                )
            for (number, each), scores in zip(active, logits, strict=True):
                self._step(number, each, int(scores.argmax()))

    def _step(self, number: int, each: SimpleNamespace, token: int) -> None:
        reasons = sys.modules["tensorrt_llm.bindings.executor"].FinishReason
        each.output += 1
        each.tokens.append(token)
        reason, tokens, error = reasons.NOT_FINISHED, [token], ""
        if each.client in self.fail:
            error, tokens = "NaN", []
        elif each.cancelled:
            reason, tokens = reasons.CANCELLED, []
        elif token == each.given["end_id"]:
            reason = reasons.END_ID
        elif each.output == each.given["max_tokens"]:
            reason = reasons.LENGTH
        final = bool(error) or reason != reasons.NOT_FINISHED
        result = SimpleNamespace(is_final=final, output_token_ids=[tokens], finish_reasons=[reason])
        response = SimpleNamespace(
            request_id=number,
            client_id=each.client,
            error_msg=error,
            result=result,
            has_error=lambda: bool(error),
        )
        with self._lock:
            if final:
                del self._active[number]
            self._ready.append(response)
            self._lock.notify_all()


def install(patch: pytest.MonkeyPatch) -> None:
    """Make `tensorrt_llm.bindings.executor` importable, with the stand-in in it."""
    module = ModuleType("tensorrt_llm.bindings.executor")
    for name, described in DESCRIPTION["classes"].items():
        if "values" in described:
            values = {value: f"{name}.{value}" for value in described["values"]}
            setattr(module, name, SimpleNamespace(**values))
        elif described.get("init"):
            setattr(module, name, type(name, (_Described,), {}))
    module.Request.BATCHED_POST_PROCESSOR_NAME = "batched"  # type: ignore[attr-defined]
    module.Executor = Executor  # type: ignore[attr-defined]
    package, bindings = ModuleType("tensorrt_llm"), ModuleType("tensorrt_llm.bindings")
    package.bindings, bindings.executor = bindings, module  # type: ignore[attr-defined]
    for each in (package, bindings, module):
        patch.setitem(sys.modules, each.__name__, each)


class CpuEngine(TrtllmEngine):
    """The engine without its two steps that need a GPU."""

    def _on(self, stream: int) -> AbstractContextManager[Any]:
        assert stream == 0
        return nullcontext()

    def _table(self, visual: NDArray[np.float32]) -> torch.Tensor | None:
        return torch.from_numpy(visual).to(self._dtype) if visual.shape[0] else None


def write_config(folder: Path, **limits: int) -> None:
    """Write config.json as trtllm-build does."""
    built = {
        "max_batch_size": 4,
        "max_input_len": 40,
        "max_seq_len": 400,
        "max_prompt_embedding_table_size": 80,
        **limits,
    }
    model = {"dtype": "bfloat16", "vocab_size": VOCAB, "hidden_size": HIDDEN}
    content = {"pretrained_config": model, "build_config": built}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def started(folder: Path, max_running: int = 4, **limits: int) -> Iterator[tuple[CpuEngine, Executor]]:
    """An engine over the stand-in, built with these limits."""
    write_config(folder, **limits)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        engine = CpuEngine(folder, max_running=max_running, kv_fraction=0.5, longest=60.0)
        try:
            yield engine, Executor.latest
        finally:
            Executor.latest.steps.set()
            engine.close()
