"""The vision engine's interface, its tensors' names, and the check of what it is given."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rtprune.errors import EngineError

INPUT = "images"
OUTPUT = "tokens"
"""Names of the input and output of every graph and plan that export writes."""


class VisionEngine(Protocol):
    """The encoder for one input side: SAM, CLIP and the projector."""

    @property
    def side(self) -> int:
        """Pixels per side of an input."""
        ...

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode RGB images, uint8 (B, side, side, 3), to content tokens, float32 (B, (side / 64)^2, hidden).

        B is 1 or more. Called from one thread. Raises EngineError when the engine fails.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory; it isn't used after that."""
        ...


def check_images(images: NDArray[np.uint8], side: int) -> None:
    """Raise EngineError for a batch that isn't uint8 (B, side, side, 3) with B of 1 or more; `side` in px."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3) or not len(images):
        raise EngineError(
            f"The {side} px encoder takes uint8 images of shape (B, {side}, {side}, 3), "
            f"got {images.dtype} {tuple(images.shape)}."
        )
