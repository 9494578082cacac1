"""The PyTorch decoder engine: continuous batching, chunked prefill and bounded KV memory in one thread.

Transformers 5 has continuous batching over paged attention. It isn't used here because its requests are token
ids only (visual tokens would have to become rows of the embedding table), it numbers positions itself (the
ablation needs gaps), a token of its small-model step costs several times one of this engine's, and it would
bring transformers 5 into the serving environment, whose other parts need an older one.

Batch invariance. A request's prefill runs alone, in chunks that begin at multiples of the chunk size, so its
shapes never depend on other requests. A decode step takes all running requests; attention is computed per
request, experts' sums in the router's order, and matrix products are padded so that a row's result doesn't
depend on the number of rows. On the CPUs tried, results are equal bit for bit in FP32 and BF16, with and
without other requests. Where a matrix library chooses its order of summation by shape in other ways (GPU, other
CPUs), logits differ by rounding, and a token can differ where the two best logits lie that close.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from rtprune.decoder.engines.torch.attention import GatherAttention, Span, SpanAttention, allocate_kv
from rtprune.decoder.engines.torch.kv_memory import KvAllocator
from rtprune.decoder.engines.torch.model import TorchDecoder
from rtprune.decoder.engines.torch.weights import read_ahead
from rtprune.errors import EngineError, OcrError, Unavailable

_log = logging.getLogger(__name__)
# Bytes of weights that a token reads in a layer, below which a second thread costs more than it saves.
_SINGLE_THREAD_BYTES = 4 * 2**20


@dataclass(slots=True, eq=False, kw_only=True)
class _Request(EngineRequest):
    """A request and where it stands. Belongs to the engine's thread once it is submitted."""

    prompt: NDArray[np.int32]  # (n,)
    visual: NDArray[np.float32]  # (tokens, hidden), none once the prompt is read
    positions: NDArray[np.int64]  # (n,)
    position: int = field(init=False)  # of the newest token
    start: int = field(init=False, default=-1)  # of its run of KV memory
    length: int = field(init=False, default=0)  # positions written there
    generated: int = field(init=False, default=0)
    token: int = field(init=False, default=-1)  # the newest, not in the KV memory yet

    def __post_init__(self) -> None:
        EngineRequest.__post_init__(self)
        self.position = int(self.positions[-1]) + 1


class TorchEngine:
    """See `Engine`. A step: one prefill chunk of the oldest newcomer, one token for every running request."""

    def __init__(
        self,
        model: TorchDecoder,
        *,
        max_running: int,
        kv_tokens: int,
        prefill_chunk: int,
        threads: int = 0,
    ) -> None:
        """kv_tokens: positions of KV memory, 16 or more (else EngineError). prefill_chunk: positions read in one step.

        max_running: requests at once. threads: of PyTorch on a CPU, 0 chooses (see Settings).
        """
        config = model.config
        self._model = model
        self._memory = KvAllocator(min(kv_tokens, max_running * (config.max_position_embeddings + 16)))
        self._chunk = prefill_chunk
        self._threads = threads or default_threads(model)
        self._info = EngineInfo(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            context_length=config.max_position_embeddings,
            max_running=max_running,
            kv_tokens=self._memory.total,
        )
        self._kv = allocate_kv(
            config.num_hidden_layers,
            config.num_key_value_heads,
            self._memory.total,
            config.head_dim,
            model.kv_dtype,
            model.device,
        )
        self._numbers = itertools.count(1)
        self._wake = threading.Condition()
        # Under the condition's lock: what other threads ask for.
        self._waiting: deque[_Request] = deque()
        self._cancelled: set[RequestId] = set()
        self._closing = False
        # The engine's thread alone:
        self._prefilling: deque[_Request] = deque()
        self._decoding: list[_Request] = []
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # PyTorch aborts the process when it ends in the middle of a step

    @property
    def info(self) -> EngineInfo:
        """See `Engine`."""
        return self._info

    def submit(
        self,
        prompt: PromptTokens,
        visual: NDArray[np.float32],
        positions: NDArray[np.integer[Any]] | None,
        sampling: Sampling,
        on_output: OutputCallback,
    ) -> RequestId:
        """See `Engine`."""
        check_request(self._info, prompt, visual, positions, sampling)
        numbered = np.arange(len(prompt)) if positions is None else positions
        request = _Request(
            id=RequestId(next(self._numbers)),
            sampling=sampling,
            on_output=on_output,
            prompt=prompt.ids.astype(np.int32, copy=False),
            visual=visual,
            positions=numbered.astype(np.int64),
        )
        with self._wake:
            if self._closing:
                raise Unavailable("The decoder is shutting down.")
            self._waiting.append(request)
            self._wake.notify()
        return request.id

    def cancel(self, request: RequestId) -> None:
        """See `Engine`."""
        with self._wake:
            self._cancelled.add(request)
            self._wake.notify()

    def stats(self) -> EngineStats:
        """See `Engine`."""
        return EngineStats(
            running=len(self._prefilling) + len(self._decoding),
            waiting=len(self._waiting),
            kv_used=self._memory.used,
            kv_total=self._memory.total,
        )

    def close(self) -> None:
        """See `Engine`."""
        atexit.unregister(self.close)
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        sentence = "The decoder was shut down."
        try:
            if self._model.device.type == "cpu":
                torch.set_num_threads(self._threads)
            with torch.inference_mode():
                while self._wait():
                    self._step()
        except BaseException:
            _log.exception("the decoder's thread stopped")
            sentence = "The decoder stopped unexpectedly."
        finally:
            with self._wake:
                self._closing = True
                left = [*self._decoding, *self._prefilling, *self._waiting]
                self._waiting.clear()
            for request in left:
                self._end(request, "error", error=sentence)
            self._kv = torch.empty(0)

    def _wait(self) -> bool:
        """Sleep until there is something to do; take over what others asked for. False: close."""
        with self._wake:
            while not (self._waiting or self._prefilling or self._decoding or self._closing):
                self._cancelled.clear()
                self._wake.wait()
            cancelled, self._cancelled = self._cancelled, set()
            dropped = [request for request in self._waiting if request.id in cancelled]
            for request in dropped:
                self._waiting.remove(request)
            admitted = self._admit()
            if self._closing:
                return False
        if cancelled:
            dropped += [r for r in (*self._prefilling, *self._decoding) if r.id in cancelled]
        for request in dropped:
            self._end(request, "cancelled")
        for request in admitted:
            request.started = time.monotonic()
            self._send(request, Output(started=request.started))
        return True

    def _admit(self) -> list[_Request]:
        """First come, first served: who doesn't fit yet holds up those behind, so that nobody starves."""
        admitted = []
        while self._waiting and len(self._prefilling) + len(self._decoding) < self._info.max_running:
            request = self._waiting[0]
            start = self._memory.allocate(request.prompt.shape[0] + request.sampling.max_tokens)
            if start is None:
                break
            request.start = start
            self._prefilling.append(self._waiting.popleft())
            admitted.append(request)
        return admitted

    def _step(self) -> None:
        if self._prefilling:
            self._do([self._prefilling[0]], self._prefill)
        if self._decoding:
            self._do(list(self._decoding), self._decode)

    def _do(self, requests: list[_Request], work: Callable[[list[_Request]], list[int | None]]) -> None:
        """Compute the next token of each request and hand it out.

        When that fails, try each request alone and end those that fail again.
        """
        try:
            tokens = work(requests)
        except Exception as error:
            if len(requests) > 1:
                for request in requests:
                    self._do([request], work)
            else:
                self._fail(requests[0], error)
            return
        for request, token in zip(requests, tokens, strict=False):  # none, while a prompt has chunks left
            try:
                self._take(request, token)
            except Exception as error:
                self._fail(request, error)

    def _fail(self, request: _Request, error: Exception) -> None:
        _log.error("request %d failed", request.id, exc_info=error)
        sentence = str(error) if isinstance(error, OcrError) else "The decoder failed on this page."
        self._end(request, "error", error=sentence)

    def _prefill(self, requests: list[_Request]) -> list[int | None]:
        """Read one chunk of a newcomer's prompt; after the last one, return its first token."""
        (request,) = requests
        done = request.length
        end = min(done + self._chunk, request.prompt.shape[0])
        embedded = self._model.embed(request.prompt[done:end], request.visual)
        device = self._model.device
        positions = torch.from_numpy(request.positions[done:end]).to(device)
        slots = torch.arange(request.start + done, request.start + end, device=device)
        attention = SpanAttention(self._kv, [Span(request.start, end, end - done)])
        hidden = self._model.forward(embedded, positions, slots, self._kv, attention)
        request.length = end
        if end < request.prompt.shape[0]:
            return []
        tokens = self._choose(requests, self._model.logits(hidden[end - done - 1 : end - done]))
        self._prefilling.remove(request)
        self._decoding.append(request)
        request.visual = request.visual[:0]
        return tokens

    def _decode(self, requests: list[_Request]) -> list[int | None]:
        """The next token of each request."""
        device = self._model.device
        ids = np.array([request.token for request in requests], np.int32)
        positions = torch.tensor([request.position for request in requests], device=device)
        slots = torch.tensor([request.start + request.length for request in requests], device=device)
        spans = [Span(request.start, request.length + 1, 1) for request in requests]
        embedded = self._model.embed(ids, requests[0].visual)
        attention = GatherAttention if device.type == "cuda" else SpanAttention
        hidden = self._model.forward(embedded, positions, slots, self._kv, attention(self._kv, spans))
        tokens = self._choose(requests, self._model.logits(hidden))
        for request in requests:
            request.length += 1
            request.position += 1
        return tokens

    def _choose(self, requests: list[_Request], logits: torch.Tensor) -> list[int | None]:
        """Best allowed token of each row; None where the logits are not finite. Writes into `logits`."""
        for row, request in enumerate(requests):
            banned = request.rule.banned() if request.rule is not None else None
            if banned:
                logits[row, banned] = -math.inf
        if logits.device.type == "cpu":
            scores = logits.numpy()  # NumPy's argmax is several times faster than PyTorch's on a CPU
            tokens = scores[: len(requests)].argmax(1).tolist()
            best = [float(scores[row, token]) for row, token in enumerate(tokens)]
        else:
            values, indices = logits[: len(requests)].max(1)
            tokens, best = indices.tolist(), values.tolist()
        return [t if math.isfinite(score) else None for t, score in zip(tokens, best, strict=True)]

    def _take(self, request: _Request, token: int | None) -> None:
        """Hand a request its next token and end it where that was the last."""
        if token is None:
            self._end(request, "error", error="The decoder's logits are not finite numbers for this page.")
            return
        if token == request.sampling.end_id:
            self._end(request, "stop")
            return
        request.token = token
        request.generated += 1
        if request.rule is not None:
            request.rule.push(token)
        if request.generated == request.sampling.max_tokens:
            self._end(request, "length", (token,))
        else:
            self._send(request, Output((token,), started=request.started))

    def _end(
        self, request: _Request, reason: EngineReason, tokens: tuple[int, ...] = (), error: str = ""
    ) -> None:
        """Free a request's memory first, then call back a last time."""
        if request in self._decoding:
            self._decoding.remove(request)
        elif request in self._prefilling:
            self._prefilling.remove(request)
        if request.start >= 0:
            self._memory.free(request.start)
            request.start = -1
        self._send(request, Output(tokens, reason, error, request.started))

    def _send(self, request: _Request, output: Output) -> None:
        if not request.send(output):
            self.cancel(request.id)


def default_threads(model: TorchDecoder) -> int:
    """One thread a core that this process may use; one in all where a layer is too small to share."""
    if model.layer_bytes < _SINGLE_THREAD_BYTES:
        return 1
    return len(os.sched_getaffinity(0))


def open_torch_engine(
    folder: Path,
    *,
    precision: str,
    device: str,
    max_running: int,
    kv_mib: int,
    prefill_chunk: int,
    threads: int = 0,
) -> TorchEngine:
    """Load the decoder's weights from `folder` and start the engine.

    precision: fp32 or bf16. device: auto, cpu or cuda. kv_mib: MiB of KV memory. prefill_chunk: positions.

    Raises:
        EngineError: another precision, no GPU though one is asked for, weights that aren't a decoder's, or a `kv_mib`
            that holds fewer than 16 positions.
    """
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if precision not in types:
        raise EngineError(f"The PyTorch decoder runs in fp32 or bf16, not {precision}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("The decoder should run on a GPU, but PyTorch sees none.")
    if device == "cpu":
        read_ahead(folder)
    model = TorchDecoder(folder, types[precision], torch.device(device))
    return TorchEngine(
        model,
        max_running=max_running,
        kv_tokens=kv_mib * 2**20 // model.kv_bytes,
        prefill_chunk=prefill_chunk,
        threads=threads,
    )
