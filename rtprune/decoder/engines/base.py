"""The decoder engine's interface: what a request is, what comes back, and what every engine must do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

from rtprune.decoder.ngram import NgramRule
from rtprune.errors import InvalidInput

_log = logging.getLogger(__name__)

EngineReason = Literal["", "stop", "length", "cancelled", "error"]
RequestId = NewType("RequestId", int)


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as one run of ids: a text token's own id, or `vocab_size + i` for visual token i.

    `ids`: int32 (n,). The same contract as TensorRT-LLM's prompt embedding table.
    """

    ids: NDArray[np.int32]

    def __len__(self) -> int:
        return int(self.ids.shape[0])


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to go on from the prompt: greedily, until `end_id` or `max_tokens` (the end id not counted).

    ngram, window: no n-gram of `ngram` tokens twice within the last `window` generated tokens; 0 is off.
    whitelist: ids the rule never bans.
    """

    max_tokens: int
    end_id: int
    ngram: int = 0
    window: int = 0
    whitelist: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Output:
    """What one step of the engine added to a request.

    tokens: the new ids, without the end id. finish_reason: empty until the last output, which every
    accepted request gets exactly once. error: one sentence, with reason "error".
    started: when its prefill began, in `time.monotonic()` seconds, 0.0 if it never did.
    """

    tokens: tuple[int, ...] = ()
    finish_reason: EngineReason = ""
    error: str = ""
    started: float = 0.0


OutputCallback = Callable[[Output], None]


@dataclass(slots=True, eq=False, kw_only=True)
class EngineRequest:
    """What every engine keeps of a request it has accepted; an engine adds its own fields.

    rule: the n-gram rule over this request's output, None where it is off. started: see `Output`.
    """

    id: RequestId
    sampling: Sampling
    on_output: OutputCallback
    rule: NgramRule | None = field(init=False, default=None)
    started: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if self.sampling.ngram and self.sampling.window:
            self.rule = NgramRule(self.sampling.ngram, self.sampling.window, self.sampling.whitelist)

    def send(self, output: Output) -> bool:
        """Call back; False if that raised and the request should be cancelled, because nobody reads it."""
        try:
            self.on_output(output)
        except Exception:
            _log.exception("the callback of request %d failed", self.id)
            return bool(output.finish_reason)
        return True


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine was built for. `hidden_size`: channels of a visual token. `max_running`: requests at once.

    `context_length`: positions of prompt and output together. `kv_tokens`: positions of its KV memory, all requests
    together.
    """

    vocab_size: int
    hidden_size: int
    context_length: int
    max_running: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment's gauges. KV numbers are positions (tokens), reserved ones counted as used; the others are requests."""

    running: int
    waiting: int
    kv_used: int
    kv_total: int


class Engine(Protocol):
    """Requests join and leave the running batch between steps; one thread of the engine's steps it."""

    @property
    def info(self) -> EngineInfo:
        """What the engine was built for."""
        ...

    def submit(
        self,
        prompt: PromptTokens,
        visual: NDArray[np.float32],
        positions: NDArray[np.integer[Any]] | None,
        sampling: Sampling,
        on_output: OutputCallback,
    ) -> RequestId:
        """Queue a request, first come first served; returns at once.

        visual: float32 (tokens, hidden). positions: None for 0, 1, 2, ... or int (n,), ascending, with the
        gaps that pruning left (PyTorch engine only); generated tokens go on after the last one.
        on_output is called from the engine's thread, must not block, and may call `cancel`.
        Raises InvalidInput for what the engine can never run, Unavailable once it is closed.
        """
        ...

    def cancel(self, request: RequestId) -> None:
        """End a request at the next step with reason "cancelled"; one that has ended is left alone."""
        ...

    def stats(self) -> EngineStats:
        """Gauges of this moment, from any thread."""
        ...

    def close(self) -> None:
        """End every request with reason "error", free the memory and stop the thread."""
        ...


def check_request(
    info: EngineInfo,
    prompt: PromptTokens,
    visual: NDArray[np.float32],
    positions: NDArray[np.integer[Any]] | None,
    sampling: Sampling,
) -> None:
    """Raise InvalidInput, with one sentence, for a request that no engine built like `info` can run.

    visual: (tokens, hidden), all finite. positions: None or integers (n,), at least 0 and strictly ascending. The
    output tokens must fit after the last position, and with the prompt into the KV memory.
    """
    ids = prompt.ids
    length = len(prompt)
    if ids.ndim != 1 or length == 0:
        raise InvalidInput(f"The prompt must be one run of token ids, got shape {tuple(ids.shape)}.")
    if visual.ndim != 2 or (visual.shape[0] and visual.shape[1] != info.hidden_size):
        raise InvalidInput(
            f"Visual tokens must have shape (tokens, {info.hidden_size}), got {tuple(visual.shape)}."
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= info.vocab_size + visual.shape[0]:
        raise InvalidInput(
            f"Token ids must lie in 0..{info.vocab_size + visual.shape[0] - 1}, got {low}..{high}."
        )
    if visual.size and not bool(np.isfinite(visual).all()):
        raise InvalidInput("Visual tokens contain values that are not finite.")
    if sampling.max_tokens < 1:
        raise InvalidInput(f"At least 1 output token must be allowed, got {sampling.max_tokens}.")
    last = length - 1
    if positions is not None:
        if positions.shape != ids.shape or np.any(np.diff(positions) <= 0) or positions[0] < 0:
            raise InvalidInput("Positions must be one ascending number >= 0 for each prompt token.")
        last = int(positions[-1])
    if last + 1 + sampling.max_tokens > info.context_length:
        raise InvalidInput(
            f"The prompt ends at position {last} and {sampling.max_tokens} output tokens don't fit after it: "
            f"the context has {info.context_length} positions."
        )
    if length + sampling.max_tokens > info.kv_tokens:
        raise InvalidInput(
            f"A prompt of {length} tokens with {sampling.max_tokens} output tokens needs more than the "
            f"KV memory's {info.kv_tokens} positions."
        )
