"""Runs the vision encoder's ONNX graph with ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rtprune.errors import EngineError
from rtprune.vision.engines.base import INPUT, OUTPUT, check_images

if TYPE_CHECKING:
    import onnxruntime

    from rtprune.manifest import Manifest, VisionEntry
    from rtprune.settings import Settings


def new_session(path: Path, threads: int, *, in_place: bool = False) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU. Raises EngineError when ONNX Runtime can't.

    threads: 0 for one per core that this process may use. in_place: read weights where their file is mapped,
        which all sessions share, instead of keeping a copy in the order that the processor likes best.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the cores that the decoder, in another process, needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if in_place:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types aren't public
        raise EngineError(f"{path} can't be opened by ONNX Runtime: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text; ONNX Runtime appends its own stack to some."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class OnnxRuntimeEngine:
    """One session for one input side, in px.

    Images run one after the other: on a CPU a larger batch isn't faster, and the scores of its global
    attention take as many times the memory.
    """

    def __init__(self, session: onnxruntime.InferenceSession, side: int) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._side = side

    @classmethod
    def open(cls, manifest: Manifest, entry: VisionEntry, settings: Settings) -> OnnxRuntimeEngine:
        """Open the entry's graph. Raises EngineError when ONNX Runtime or the graph isn't usable."""
        weights = sum(file.bytes for file in entry.companions)
        in_place = weights > settings.vision_copied_mib * 2**20
        return cls(
            new_session(manifest.path(entry.file), settings.vision_threads, in_place=in_place), entry.side
        )

    @property
    def side(self) -> int:
        """Pixels per side of an input."""
        return self._side

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode uint8 (B, side, side, 3) to float32 (B, (side / 64)^2, hidden). Raises EngineError."""
        check_images(images, self._side)
        if self._session is None:
            raise EngineError(f"The {self._side} px encoder is closed.")
        try:
            parts = [self._session.run([OUTPUT], {INPUT: image[None]})[0] for image in images]
        except Exception as error:
            raise EngineError(f"The {self._side} px encoder failed: {first_line(error)}") from error
        tokens: NDArray[np.float32] = np.concatenate(parts).astype(np.float32, copy=False)
        return tokens

    def close(self) -> None:
        """Free the session."""
        self._session = None
