"""The decoder above its engine, once for both: admission, text, stop rules, time limits and counts."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rtprune.decoder.deadlines import Deadlines
from rtprune.decoder.detokenizer import Detokenizer, TokenBytes
from rtprune.decoder.engines import open_engine
from rtprune.decoder.engines.base import Engine, EngineStats, Output, PromptTokens, RequestId, Sampling
from rtprune.decoder.prompt import output_room
from rtprune.decoder.repetition import RepetitionGuard
from rtprune.decoder.special_tokens import SpecialTokens
from rtprune.errors import EngineError, Unavailable
from rtprune.manifest import Manifest
from rtprune.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger(__name__)
_WARM_UP_PROMPT = 32  # tokens

FinishReason = Literal["", "stop", "length", "repetition", "cancelled", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One page's prompt and limits.

    input_ids: visual token i is `vocab_size + i`. visual: float32 (tokens, hidden). positions: None for
    contiguous, or int (n,) with gaps. ngram, window: the n-gram rule, 0 is off. deadline: in
    `time.monotonic()` seconds, waiting included; None is no limit.
    """

    id: str
    input_ids: PromptTokens
    visual: NDArray[np.float32]
    positions: NDArray[np.integer[Any]] | None
    max_tokens: int
    ngram: int
    window: int
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a request's text. Exactly one last piece, with a finish reason, ends each request.

    text: whole characters, to append. output_tokens: generated so far. text_length: characters of the whole
    text to keep; on the last piece that is after the repetition guard's cut. queue_s: seconds until the prefill
    began; first_token_s, total_s: seconds from submission. error: one sentence, with reason "error".
    """

    text: str
    finish_reason: FinishReason
    output_tokens: int
    text_length: int
    queue_s: float
    first_token_s: float
    total_s: float
    error: str = ""


class DecoderMetrics(Protocol):
    """Where gauges and counts go: one call at a time, from any thread; must be quick and must not raise."""

    def state(self, stats: EngineStats) -> None:
        """Gauges: running, waiting, KV memory."""
        ...

    def finished(self, piece: Piece) -> None:
        """A request ended: its reason, token count and seconds."""
        ...


class ActiveRequest:
    """An accepted request on its way: engine output in, pieces out. Its caller may only `cancel` it."""

    def __init__(
        self,
        service: DecoderService,
        request: GenerationRequest,
        emit: Callable[[Piece], None],
        detokenizer: Detokenizer,
        guard: RepetitionGuard | None,
    ) -> None:
        self.name = request.id
        self.engine_id: RequestId | None = None
        self.wanted: FinishReason = ""  # why it was asked to end
        self._service = service
        self._emit = emit
        self._detokenizer = detokenizer
        self._guard = guard
        self._submitted = time.monotonic()
        self._started = 0.0
        self._first_token = 0.0
        self._output_tokens = 0
        self._characters = 0
        self._answered = False

    def cancel(self) -> None:
        """End it with reason "cancelled" at the engine's next step; harmless once it has ended."""
        self.stop("cancelled")

    def stop(self, reason: FinishReason) -> None:
        """Ask the engine to end it; the first reason counts. From any thread."""
        self.wanted = self.wanted or reason
        if self.engine_id is not None:
            self._service.engine.cancel(self.engine_id)

    def receive(self, output: Output) -> None:
        """Take what a step of the engine added. On the engine's thread; the engine calls it in order."""
        if output.finish_reason:
            self._service.release(self)
        if self._answered:
            return
        try:
            piece = self._piece(output)
        except Exception:
            _log.exception("page %s: its tokens can't be turned into text", self.name)
            piece = self._measured("", "error", "The page's tokens can't be turned into text.")
        if piece.finish_reason:
            self._answered = True
            self._service.count(piece)
            if not output.finish_reason:
                self.stop(piece.finish_reason)
        if not (piece.text or piece.finish_reason):
            return
        try:
            self._emit(piece)
        except Exception:
            _log.exception("page %s: its text can't be passed on", self.name)
            self.stop("error")

    def _piece(self, output: Output) -> Piece:
        """Turn tokens into text, and the engine's reason into the page's."""
        self._started = self._started or output.started
        if not self._first_token and (output.tokens or output.finish_reason == "stop"):
            self._first_token = time.monotonic()
        self._output_tokens += len(output.tokens)
        text = self._detokenizer.push(output.tokens)
        if output.finish_reason:
            text += self._detokenizer.finish()
        self._characters += len(text)
        reason: FinishReason = output.finish_reason
        if reason == "cancelled" and self.wanted:
            reason = self.wanted
        keep = self._guard.push(text) if self._guard is not None and text else None
        if keep is not None and reason in ("", "stop", "length"):
            reason = "repetition"
            self._characters = keep
        return self._measured(text, reason, output.error if reason == "error" else "")

    def _measured(self, text: str, reason: FinishReason, error: str) -> Piece:
        now = time.monotonic()
        return Piece(
            text=text,
            finish_reason=reason,
            output_tokens=self._output_tokens,
            text_length=self._characters,
            queue_s=(self._started or now) - self._submitted,
            first_token_s=(self._first_token or now) - self._submitted,
            total_s=now - self._submitted,
            error=error,
        )


class DecoderService:
    """Takes requests for one engine and answers each with pieces of text.

    Raises EngineError for a tokenizer that isn't a byte-level one with DeepSeek-OCR's special tokens.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, settings: Settings, metrics: DecoderMetrics | None = None
    ) -> None:
        self.engine = engine
        self._info = engine.info
        self._special = SpecialTokens.of(tokenizer)
        self._token_bytes = TokenBytes(tokenizer)
        self._settings = settings
        self._metrics = metrics
        self._capacity = engine.info.max_running + settings.max_waiting
        self._lock = threading.Lock()  # of _open and of calls to the metrics
        self._open: set[ActiveRequest] = set()
        self._deadlines = Deadlines()

    def submit(self, request: GenerationRequest, emit: Callable[[Piece], None]) -> ActiveRequest:
        """Accept a request, or raise at once; emit is called from the engine's thread and must not block.

        Raises Unavailable beyond the bounds on running and waiting requests and once the engine is closed,
        InvalidInput for a prompt that doesn't fit the context or the engine.
        """
        sampling = self._sampling(request)
        guard = RepetitionGuard(self._settings) if self._settings.repetition_guard else None
        active = ActiveRequest(self, request, emit, Detokenizer(self._token_bytes), guard)
        with self._lock:
            if len(self._open) >= self._capacity:
                raise Unavailable(
                    f"The decoder is full: {len(self._open)} pages are being decoded or wait for it."
                )
            self._open.add(active)
        if request.deadline is not None:
            self._deadlines.add(request.deadline, active)
        try:
            active.engine_id = self.engine.submit(
                request.input_ids, request.visual, request.positions, sampling, active.receive
            )
        except BaseException:
            self.release(active)
            raise
        if active.wanted:  # before its number was known
            self.engine.cancel(active.engine_id)
        self._report()
        return active

    def stats(self) -> EngineStats:
        """Gauges: running and waiting requests, KV memory."""
        return self.engine.stats()

    def warm_up(self) -> None:
        """Generate a few tokens, so that the first page doesn't pay for it. Raises EngineError if that fails."""
        ids = np.full(_WARM_UP_PROMPT, self._special.bos, np.int32)
        done: queue.SimpleQueue[Output] = queue.SimpleQueue()
        sampling = Sampling(min(4, self._info.context_length - ids.size), end_id=self._special.eos)
        visual = np.zeros((0, self._info.hidden_size), np.float32)
        self.engine.submit(PromptTokens(ids), visual, None, sampling, done.put)
        while not (output := done.get()).finish_reason:
            pass
        if output.finish_reason == "error":
            raise EngineError(f"The decoder can't generate: {output.error}")

    def close(self) -> None:
        """End every request with reason "error" and close the engine."""
        self._deadlines.close()
        self.engine.close()

    def _sampling(self, request: GenerationRequest) -> Sampling:
        """What the engine is asked for: as many tokens as context and KV memory have room for."""
        length = len(request.input_ids)
        last = length - 1
        if request.positions is not None and request.positions.size:
            last = int(request.positions[-1])
        room = output_room(self._info.context_length, last, request.max_tokens)
        return Sampling(
            max_tokens=output_room(self._info.kv_tokens, length - 1, room),
            end_id=self._special.eos,
            ngram=request.ngram,
            window=request.window,
            whitelist=self._special.cells,
        )

    def release(self, active: ActiveRequest) -> None:
        """The engine is done with a request."""
        self._deadlines.remove(active)
        with self._lock:
            self._open.discard(active)
        self._report()

    def count(self, piece: Piece) -> None:
        """Pass a last piece to the metrics."""
        if self._metrics is not None:
            with self._lock:
                self._metrics.finished(piece)

    def _report(self) -> None:
        if self._metrics is not None:
            with self._lock:
                self._metrics.state(self.engine.stats())


def open_service(
    manifest: Manifest, settings: Settings, metrics: DecoderMetrics | None = None
) -> DecoderService:
    """The decoder stage, ready for requests. Raises EngineError for an engine or a tokenizer that can't serve here."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(manifest.tokenizer))
    return DecoderService(open_engine(manifest, settings), tokenizer, settings, metrics)
