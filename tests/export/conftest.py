"""The checkpoint that exports are compared with, computed by transformers once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.torch_reference import content_tokens, load_vision, sample_images

Comparison = tuple[NDArray[np.uint8], NDArray[np.float32]]


@pytest.fixture(scope="session")
def opened(random_checkpoint: Path) -> Checkpoint:
    """The random checkpoint, checked."""
    return Checkpoint.open(random_checkpoint)


@pytest.fixture(scope="session")
def expected(opened: Checkpoint) -> Callable[[int], Comparison]:
    """Three images of a side, and transformers' content tokens of them."""
    model = load_vision(opened)
    known: dict[int, Comparison] = {}

    def compute(side: int) -> Comparison:
        if side not in known:
            images = sample_images(side, 3)
            known[side] = images, content_tokens(model, images)
        return known[side]

    return compute
