"""The decoder engines that the conformance suite is run with. A new engine is one more case here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rtprune.decoder.engines.base import Engine
from rtprune.decoder.engines.torch.engine import TorchEngine, open_torch_engine
from rtprune.decoder.engines.torch.model import TorchDecoder
from tests.rtprune.decoder.engines.simulated_executor import started
from tests.rtprune.decoder.random_weights import write_checkpoint

CONTEXT = 4096  # positions: room for a request that is still running when a test wants it to


def start_torch(folder: Path, **changes: Any) -> TorchEngine:
    """The PyTorch engine in FP32 on the CPU, with small limits."""
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


@contextlib.contextmanager
def torch_engine(folder: Path, max_running: int, kv_tokens: int) -> Iterator[Engine]:
    """Random weights of a tiny model."""
    if not (folder / "config.json").exists():
        write_checkpoint(folder, seed=4, max_position_embeddings=CONTEXT)
    model = TorchDecoder(folder, torch.float32, torch.device("cpu"))
    engine = TorchEngine(model, max_running=max_running, kv_tokens=kv_tokens, prefill_chunk=16, threads=1)
    yield engine
    engine.close()


@contextlib.contextmanager
def trtllm_engine(folder: Path, max_running: int, kv_tokens: int) -> Iterator[Engine]:
    """TensorRT-LLM's executor simulated; KV memory is that executor's business."""
    limits = {"max_input_len": 128, "max_seq_len": CONTEXT, "max_prompt_embedding_table_size": 4 * 64}
    with started(folder, max_running, **limits) as (engine, executor):
        yield engine
    assert executor.most_at_once <= max_running


@dataclass(frozen=True)
class EngineCase:
    """How to start an engine, and what it may say or do in its own way.

    open: takes a folder of its own, how many requests run at once at most, and positions of KV memory.
    """

    open: Callable[[Path, int, int], AbstractContextManager[Engine]]
    takes_positions: bool  # with gaps
    frees_first: bool  # gives memory back before a request's last output
    closed: str  # sentence of the requests that closing ends
    refused: str  # sentence of a request that comes later

    def start(
        self, folder: Path, max_running: int, kv_tokens: int = 4 * CONTEXT
    ) -> AbstractContextManager[Engine]:
        """Run an engine until the block ends."""
        return self.open(folder, max_running, kv_tokens)


CASES = {
    "torch": EngineCase(
        torch_engine, True, True, "The decoder was shut down.", "The decoder is shutting down."
    ),
    "trtllm": EngineCase(trtllm_engine, False, False, "The decoder was closed.", "The decoder is closed."),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> EngineCase:
    """Each engine in turn."""
    found: EngineCase = request.param
    return found


@pytest.fixture
def engine(case: EngineCase, tmp_path: Path) -> Iterator[Engine]:
    """An engine that runs four requests at once."""
    with case.start(tmp_path, 4) as engine:
        yield engine
