"""Starts PyTorch engines and waits for their answers."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtprune.decoder.engines.base import Output, PromptTokens, RequestId, Sampling
from rtprune.decoder.engines.torch.engine import TorchEngine, open_torch_engine

PATIENCE = 60.0  # seconds after which a test gives up; nothing is judged by it


def start(folder: Path, **changes: Any) -> TorchEngine:
    """An FP32 engine on the CPU with small limits."""
    options: dict[str, Any] = {
        "precision": "fp32",
        "device": "cpu",
        "max_running": 4,
        "kv_mib": 8,
        "prefill_chunk": 16,
        "threads": 1,
        **changes,
    }
    return open_torch_engine(folder, **options)


@dataclass
class Call:
    """A submitted request and what came back so far."""

    engine: TorchEngine
    outputs: queue.SimpleQueue[Output] = field(default_factory=queue.SimpleQueue)
    received: list[Output] = field(default_factory=list)
    number: RequestId | None = None

    def cancel(self) -> None:
        """Ask the engine to end it."""
        assert self.number is not None
        self.engine.cancel(self.number)

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

    def submit(self, engine: TorchEngine) -> Call:
        """Hand it to an engine."""
        call = Call(engine)
        sampling = Sampling(self.max_tokens, self.end_id, self.ngram, self.window, self.whitelist)
        call.number = engine.submit(
            PromptTokens(self.ids), self.visual, self.positions, sampling, call.outputs.put
        )
        return call


def ask(
    engine: TorchEngine, seed: int = 0, text: int = 8, visual: int = 0, max_tokens: int = 8, **changes: Any
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
