"""Requests to an engine, and their answers."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtprune.decoder.engines.base import Engine, Output, PromptTokens, RequestId, Sampling

PATIENCE = 60.0  # seconds after which a test gives up; nothing is judged by it


@dataclass
class Call:
    """A submitted request and what came back so far."""

    engine: Engine
    outputs: queue.SimpleQueue[Output] = field(default_factory=queue.SimpleQueue)
    received: list[Output] = field(default_factory=list)
    number: RequestId | None = None

    def cancel(self) -> None:
        """Ask the engine to end it."""
        assert self.number is not None
        self.engine.cancel(self.number)

    def on_output(self, output: Output) -> None:
        """What the engine calls."""
        self.outputs.put(output)

    def next(self) -> Output:
        """The next output."""
        output = self.outputs.get(timeout=PATIENCE)
        self.received.append(output)
        return output

    def first_token(self) -> Call:
        """Wait until it decodes."""
        while not self.next().tokens:
            assert not self.received[-1].finish_reason, self.received
        return self

    def end(self) -> Output:
        """Wait for the last output."""
        while not (self.received and self.received[-1].finish_reason):
            self.next()
        return self.received[-1]

    def tokens(self) -> list[int]:
        """All tokens, once it has ended."""
        self.end()
        return [token for output in self.received for token in output.tokens]


@dataclass(frozen=True)
class Ask:
    """What a request is made of."""

    ids: NDArray[np.int32]
    visual: NDArray[np.float32]
    max_tokens: int
    positions: NDArray[np.int64] | None = None
    ngram: int = 0
    window: int = 0
    whitelist: frozenset[int] = frozenset()
    end_id: int = 1

    def submit(self, engine: Engine, call: Call | None = None) -> Call:
        """Hand it to an engine; `call` waits for the answers."""
        call = call or Call(engine)
        sampling = Sampling(self.max_tokens, self.end_id, self.ngram, self.window, self.whitelist)
        call.number = engine.submit(
            PromptTokens(self.ids), self.visual, self.positions, sampling, call.on_output
        )
        return call


def ask(
    engine: Engine, seed: int = 0, text: int = 8, visual: int = 0, max_tokens: int = 8, **changes: Any
) -> Ask:
    """A random prompt: BOS, `visual` visual tokens, `text` text tokens; never an end id unless asked for."""
    drawn = np.random.default_rng(seed)
    vocabulary, hidden = engine.info.vocab_size, engine.info.hidden_size
    ids = [0, *range(vocabulary, vocabulary + visual), *drawn.integers(3, vocabulary, text)]
    return Ask(
        np.array(ids, np.int32),
        drawn.normal(size=(visual, hidden)).astype(np.float32),
        max_tokens,
        **{"end_id": -1, **changes},
    )
