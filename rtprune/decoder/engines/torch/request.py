"""A request of the PyTorch engine and where it stands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtprune.decoder.engines.base import Listener, RequestId, Sampling
from rtprune.decoder.ngram import NgramRule


class TorchRequest:
    """Belongs to the engine's thread once it is submitted."""

    __slots__ = (
        "generated",
        "id",
        "length",
        "listener",
        "position",
        "positions",
        "prompt",
        "rule",
        "sampling",
        "start",
        "started",
        "token",
        "visual",
    )  # fmt: skip

    def __init__(
        self,
        number: RequestId,
        prompt: NDArray[np.int32],
        visual: NDArray[np.float32],
        positions: NDArray[np.int64],
        sampling: Sampling,
        listener: Listener,
    ) -> None:
        self.id = number
        self.prompt = prompt
        self.visual = visual
        self.positions = positions
        self.sampling = sampling
        self.listener = listener
        self.rule: NgramRule | None = None
        if sampling.ngram and sampling.window:
            self.rule = NgramRule(sampling.ngram, sampling.window, sampling.whitelist)
        self.start = -1  # of its run of KV memory
        self.length = 0  # positions written there
        self.generated = 0
        self.token = -1  # the newest, not in the KV memory yet
        self.position = int(positions[-1]) + 1  # of that token
        self.started = 0.0
