"""The TensorRT-LLM decoder engine: 1.2.1's executor through its Python bindings, in one thin file.

The executor batches in flight, pages the KV memory and steps in a C++ thread of its own. Here is what it leaves
open: first come, first served before it, the n-gram rule on its logits, and answers as `Engine` wants them.

What follows from the executor: positions are contiguous (RoPE in its attention plugin takes no others); KV block
reuse stays off, because visual tokens of different pages have the same ids; and at each step the bindings copy the
whole token list of every request that has the n-gram rule, of which only the newest token is read here.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtprune.decoder.engines.base import (
    EngineInfo,
    EngineReason,
    EngineRequest,
    EngineStats,
    Output,
    OutputCallback,
    PromptTokens,
    RequestId,
    Sampling,
    check_request,
)
from rtprune.errors import EngineError, InvalidInput, Unavailable

if TYPE_CHECKING:
    import torch
    from tensorrt_llm.bindings import executor as trtllm

_log = logging.getLogger(__name__)
_POLL = timedelta(milliseconds=20)  # wait for answers; also what a cancelled request waits for, if it waits


@dataclass(slots=True, eq=False, kw_only=True)
class _Request(EngineRequest):
    """A request and where it stands."""

    prompt: PromptTokens
    table: torch.Tensor | None  # kept alive here: the executor holds only its address
    executor_id: int | None = field(init=False, default=None)  # None while it waits here
    read: int = field(init=False)  # tokens of the sequence that the n-gram rule has seen

    def __post_init__(self) -> None:
        EngineRequest.__post_init__(self)
        self.read = len(self.prompt)


class TrtllmEngine:
    """See `Engine`. At most `max_running` requests are in the executor; the others wait here."""

    def __init__(self, folder: Path, *, max_running: int, kv_fraction: float, longest: float) -> None:
        """Load the engine that trtllm-build wrote into `folder`.

        kv_fraction: share of the GPU memory left that KV memory may take. longest: seconds after which the
        executor ends a request by itself, should nobody else. Raises EngineError.
        """
        build, dtype, vocab_size, hidden_size = _read_config(folder)
        try:
            import torch
            from tensorrt_llm.bindings import executor as trtllm
        except ImportError as error:
            raise EngineError(f"The decoder needs TensorRT-LLM, which can't be imported: {error}.") from error
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._longest = timedelta(seconds=longest)
        running = min(max_running, build["max_batch_size"])
        self._max_input = build["max_input_len"]
        self._max_visual = build["max_prompt_embedding_table_size"] // build["max_batch_size"]
        self._info = EngineInfo(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            context_length=build["max_seq_len"],
            max_running=running,
            kv_tokens=running * build["max_seq_len"],
        )
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # of the four below and of calls that add to the executor
        self._requests: dict[RequestId, _Request] = {}
        self._waiting: deque[_Request] = deque()
        self._ended: list[tuple[_Request, Output]] = []  # without the executor; the thread calls back
        self._closed = self._shut_down = False
        self._kv = (0, 0)  # used and total positions
        config = trtllm.ExecutorConfig(
            max_beam_width=1,
            scheduler_config=trtllm.SchedulerConfig(
                capacity_scheduler_policy=trtllm.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
            ),
            kv_cache_config=trtllm.KvCacheConfig(
                enable_block_reuse=False,
                max_tokens=self._info.kv_tokens,
                free_gpu_memory_fraction=kv_fraction,
            ),
            enable_chunked_context=True,
            normalize_log_probs=False,
            iter_stats_max_iterations=1,
            max_batch_size=running,
            logits_post_processor_config=trtllm.LogitsPostProcessorConfig(processor_batched=self._ban),
        )
        try:
            self._executor: trtllm.Executor = trtllm.Executor(
                model_path=folder, model_type=trtllm.ModelType.DECODER_ONLY, executor_config=config
            )
        except Exception as error:
            raise EngineError(f"TensorRT-LLM can't load the engine in {folder}: {error}") from error
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo:
        """See `Engine`. The executor takes less KV memory where the GPU has less; `stats` says how much."""
        return self._info

    def submit(
        self,
        prompt: PromptTokens,
        visual: NDArray[np.float32],
        positions: NDArray[np.integer[Any]] | None,
        sampling: Sampling,
        on_output: OutputCallback,
    ) -> RequestId:
        """See `Engine`. Refuses positions, and prompts longer than the build's limits, too (InvalidInput)."""
        if positions is not None:
            raise InvalidInput(
                "Positions with gaps are for the PyTorch decoder; this one numbers them itself."
            )
        check_request(self._info, prompt, visual, None, sampling)
        if len(prompt) > self._max_input or visual.shape[0] > self._max_visual:
            raise InvalidInput(
                f"A prompt of {len(prompt)} tokens, {visual.shape[0]} of them visual, is more than the decoder was "
                f"built for ({self._max_input} and {self._max_visual})."
            )
        request = _Request(
            id=RequestId(next(self._numbers)),
            sampling=sampling,
            on_output=on_output,
            prompt=prompt,
            table=self._table(visual),
        )
        with self._lock:
            if self._closed:
                raise Unavailable("The decoder is closed.")
            self._requests[request.id] = request
            self._waiting.append(request)
            self._admit()
        return request.id

    def cancel(self, request: RequestId) -> None:
        """See `Engine`."""
        with self._lock:
            found = self._requests.get(request)
            if found is None:
                return
            if found.executor_id is not None:
                self._executor.cancel_request(found.executor_id)
            else:
                self._waiting.remove(found)
                del self._requests[request]
                self._ended.append((found, Output(finish_reason="cancelled")))

    def stats(self) -> EngineStats:
        """See `Engine`."""
        with self._lock:
            waiting = len(self._waiting)
            running = len(self._requests) - waiting
        used, total = self._kv
        return EngineStats(
            running=running, waiting=waiting, kv_used=used, kv_total=total or self._info.kv_tokens
        )

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._closed = True
            if self._shut_down:
                return
            self._shut_down = True
            running = [each.executor_id for each in self._requests.values() if each.executor_id is not None]
        self._thread.join()  # it ends every request
        for number in running:
            self._executor.cancel_request(number)  # the executor ends only when its requests have
        self._executor.shutdown()

    def _table(self, visual: NDArray[np.float32]) -> torch.Tensor | None:
        """The visual tokens on the GPU in the engine's type, or None if there are none."""
        if not visual.shape[0]:
            return None
        import torch

        table = torch.from_numpy(np.ascontiguousarray(visual)).to(device="cuda", dtype=self._dtype)
        torch.cuda.current_stream().synchronize()  # the executor reads it on a stream of its own
        return table

    def _admit(self) -> None:
        """Hand waiting requests to the executor while there is room. Needs the lock."""
        while self._waiting and len(self._requests) - len(self._waiting) < self._info.max_running:
            request = self._waiting.popleft()
            request.started = time.monotonic()
            try:
                request.executor_id = self._executor.enqueue_request(self._executor_request(request))
            except Exception as error:
                _log.exception("request %d: TensorRT-LLM doesn't take it", request.id)
                del self._requests[request.id]
                sentence = f"TensorRT-LLM refuses the request: {error}"
                self._ended.append((request, Output(finish_reason="error", error=sentence)))

    def _executor_request(self, request: _Request) -> trtllm.Request:
        from tensorrt_llm.bindings import executor as trtllm

        sampling, tuning = request.sampling, None
        if request.table is not None:
            tuning = trtllm.PromptTuningConfig(embedding_table=request.table)
        return trtllm.Request(
            input_token_ids=request.prompt.ids.tolist(),
            max_tokens=sampling.max_tokens,
            streaming=True,
            sampling_config=trtllm.SamplingConfig(beam_width=1, top_k=1),
            output_config=trtllm.OutputConfig(exclude_input_from_output=True),
            end_id=sampling.end_id,
            pad_id=sampling.end_id,
            prompt_tuning_config=tuning,
            logits_post_processor_name=trtllm.Request.BATCHED_POST_PROCESSOR_NAME if request.rule else None,
            client_id=request.id,
            allotted_time_ms=self._longest,
        )

    def _ban(
        self,
        request_ids: list[int],
        logits: list[torch.Tensor],
        tokens: list[list[list[int]]],
        stream: int,
        client_ids: list[int | None],
    ) -> None:
        """Forbid what the n-gram rule bans. The executor's thread calls it before each token is chosen.

        logits: (1, 1, vocab) a request. tokens: a request's beams, each with the prompt.
        """
        with self._on(stream):
            for client_id, scores, beams in zip(client_ids, logits, tokens, strict=True):
                request = self._requests.get(RequestId(client_id or 0))
                if request is None or request.rule is None:
                    continue
                sequence = beams[0]
                for token in sequence[request.read :]:
                    request.rule.push(token)
                request.read = len(sequence)
                banned = request.rule.banned()
                if banned:
                    scores[..., banned] = float("-inf")

    def _on(self, stream: int) -> AbstractContextManager[Any]:
        """Work on the executor's CUDA stream."""
        import torch

        external = torch.cuda.ExternalStream(stream)  # type: ignore[no-untyped-call]
        context: AbstractContextManager[Any] = torch.cuda.stream(external)
        return context

    def _run(self) -> None:
        """Pass the executor's answers on until the engine is closed or the executor fails."""
        sentence = "The decoder was closed."
        try:
            while not self._closed:
                for response in self._executor.await_responses(timeout=_POLL):
                    self._receive(response)
                self._read_stats()
                with self._lock:
                    self._admit()
                    ended, self._ended = self._ended, []
                for request, output in ended:
                    self._send(request, output)
        except Exception:
            _log.exception("TensorRT-LLM's executor failed")
            sentence = "The decoder failed."
        with self._lock:
            self._closed = True
            failed = Output(finish_reason="error", error=sentence)
            ended = self._ended + [(request, failed) for request in self._requests.values()]
            self._requests, self._ended = {}, []
            self._waiting.clear()
        for request, output in ended:
            self._send(request, output)

    def _receive(self, response: trtllm.Response) -> None:
        request = self._requests.get(RequestId(response.client_id or 0))
        if request is None:
            return
        if response.has_error():
            _log.error("request %d: %s", request.id, response.error_msg)
            self._end(request, (), "error", "The decoder failed on this page.")
            return
        result = response.result
        # The end id may or may not be among the tokens; what comes after it is padding.
        tokens = tuple(
            itertools.takewhile(lambda each: each != request.sampling.end_id, result.output_token_ids[0])
        )
        if result.is_final:
            reason = self._reason(result.finish_reasons[0])
            self._end(request, tokens, reason, "The decoder ended this page." if reason == "error" else "")
        elif tokens:
            self._send(request, Output(tokens, started=request.started))

    def _reason(self, reason: trtllm.FinishReason) -> EngineReason:
        from tensorrt_llm.bindings import executor as trtllm

        if reason == trtllm.FinishReason.END_ID:
            return "stop"
        if reason == trtllm.FinishReason.LENGTH:
            return "length"
        return "cancelled" if reason == trtllm.FinishReason.CANCELLED else "error"

    def _end(self, request: _Request, tokens: tuple[int, ...], reason: EngineReason, error: str) -> None:
        with self._lock:
            del self._requests[request.id]
        self._send(request, Output(tokens, reason, error, request.started))

    def _send(self, request: _Request, output: Output) -> None:
        if not request.send(output):
            self.cancel(request.id)

    def _read_stats(self) -> None:
        for stats in self._executor.get_latest_iteration_stats():
            memory = stats.kv_cache_stats
            if memory is not None:
                self._kv = (
                    memory.used_num_blocks * memory.tokens_per_block,
                    memory.max_num_blocks * memory.tokens_per_block,
                )


def _read_config(folder: Path) -> tuple[dict[str, int], str, int, int]:
    """Limits, type, vocabulary and hidden size out of the config.json that trtllm-build wrote."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model, built = content["pretrained_config"], content["build_config"]
        limits = ("max_batch_size", "max_input_len", "max_seq_len", "max_prompt_embedding_table_size")
        build = {name: int(built[name]) for name in limits}
        return build, str(model["dtype"]), int(model["vocab_size"]), int(model["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} isn't the description of a TensorRT-LLM engine: {error!r}.") from error
