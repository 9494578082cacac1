"""Opens the vision engine that the manifest names for an input side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtprune.errors import EngineError
from rtprune.vision.engines.base import VisionEngine

if TYPE_CHECKING:
    from rtprune.manifest import Manifest, VisionEntry
    from rtprune.settings import Settings


def open_engine(manifest: Manifest, entry: VisionEntry, settings: Settings) -> VisionEngine:
    """Open the engine of one side. Raises EngineError when its file can't be used here."""
    if entry.engine == "onnxruntime":
        from rtprune.vision.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine.open(manifest, entry, settings)
    if entry.engine == "tensorrt":
        from rtprune.vision.engines.tensorrt import TensorRTEngine

        engine: VisionEngine = TensorRTEngine.open(manifest, entry, settings)
        return engine
    raise EngineError(f"There is no vision engine of the kind {entry.engine!r}.")
