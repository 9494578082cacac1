"""The decoder above its engine: admission, text, stop rules, time limits and counts, once for both engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rtprune.decoder.engine import Engine, EngineStats, PromptTokens
from rtprune.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
    text to keep; on the last piece that is after the repetition guard's cut. queue_s: until the prefill began;
    first_token_s, total_s: from submission. error: one sentence, with reason "error".
    """

    text: str
    finish_reason: FinishReason
    output_tokens: int
    text_length: int
    queue_s: float
    first_token_s: float
    total_s: float
    error: str = ""


class Ticket(Protocol):
    """An accepted request."""

    def cancel(self) -> None:
        """End it with reason "cancelled" at the engine's next step; harmless once it has ended."""
        ...


class DecoderMetrics(Protocol):
    """Where gauges and counts go. Called from the engine's thread: must be quick and must not raise."""

    def state(self, stats: EngineStats) -> None:
        """Gauges: running, waiting, KV memory."""
        ...

    def finished(self, piece: Piece) -> None:
        """A request ended: its reason, token count and seconds."""
        ...


class DecoderService:
    """Takes requests for one engine and answers each with pieces of text."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, settings: Settings, metrics: DecoderMetrics | None = None
    ) -> None:
        raise NotImplementedError

    def submit(self, request: GenerationRequest, emit: Callable[[Piece], None]) -> Ticket:
        """Accept a request, or raise at once; emit is called from the engine's thread and must not block.

        Raises Unavailable beyond the bounds on running and waiting requests, InvalidInput for a prompt that
        doesn't fit the context or the engine.
        """
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Gauges: running and waiting requests, KV memory."""
        raise NotImplementedError

    def close(self) -> None:
        """End every request with reason "error" and close the engine."""
        raise NotImplementedError
