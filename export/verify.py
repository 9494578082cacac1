"""Proves on the CPU that what was written computes what the checkpoint does, before it is put in use."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.family import DECODER_PREFIXES, NEWLINE, PATCH, SEPARATOR, VISION_PREFIXES
from export.progress import bar, say
from export.resources import require_memory
from rtprune.errors import EngineError
from rtprune.manifest import Manifest, VisionEntry

TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}
"""Largest relative error by precision; BF16 rounds 8 times as coarsely as FP16."""
CODE = ("verify.py", "torch_reference.py")


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: its relative error and the limit that it had to stay under."""

    name: str
    error: float
    limit: float

    def __str__(self) -> str:
        return f"{self.name}: relative error {self.error:.1e}, below {self.limit:.0e}"


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest, over images (axis 0), of ||found - expected|| / ||expected||; infinite for values not finite.

    Both are of one shape, (images, ...).
    """
    axes = tuple(range(1, expected.ndim))
    difference = np.sqrt(np.square(found.astype(np.float64) - expected).sum(axis=axes))
    size = np.sqrt(np.square(expected.astype(np.float64)).sum(axis=axes))
    worst = float(np.max(difference / size))
    return worst if np.isfinite(worst) else float("inf")


def memory_needed(manifest: Manifest, checkpoint: Checkpoint) -> int:
    """Bytes that the comparison takes: both models, and PyTorch's scores of one global attention, held four times."""
    heads = checkpoint.architecture.vision.width.sam.heads
    positions = (max(manifest.sides) // PATCH) ** 2
    scores = 4 * heads * positions * positions
    return 2 * 4 * checkpoint.parameters(*VISION_PREFIXES) + 4 * scores + 500_000_000


def verify_cpu(folder: Path, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Compare the engines in `folder` with the checkpoint; returns the checks for the report.

    Raises:
        EngineError: a file has changed, an error is above its limit, or a weight differs.
        InvalidInput: too little memory, or a weight that transformers doesn't find.
    """
    manifest = Manifest.load(folder)
    require_memory(memory_needed(manifest, checkpoint), "Verifying")
    manifest.verify_hashes()
    return passed(
        _vision(manifest, checkpoint), _layout_tokens(manifest, checkpoint), _decoder(manifest, checkpoint)
    )


def passed(*comparisons: Generator[Check]) -> list[dict[str, Any]]:
    """Run comparisons; their checks for the report. Raises EngineError at the first one that isn't below its limit."""
    found = []
    for comparison in comparisons:
        with contextlib.closing(comparison):
            for check in comparison:
                if not check.error < check.limit:
                    raise EngineError(
                        f"{check.name}: the relative error is {check.error:.1e}, and it must stay below "
                        f"{check.limit:.0e}."
                    )
                say(f"verified {check}")
                found.append(asdict(check))
    return found


def _vision(manifest: Manifest, checkpoint: Checkpoint) -> Generator[Check]:
    from export.torch_reference import load_vision, sample_images

    model = load_vision(checkpoint)
    with bar("vision against PyTorch", len(manifest.vision), "size") as shown:
        for entry in manifest.vision:
            images = sample_images(entry.side, 2)
            error = compare_vision(manifest, entry, model, images)
            shown.update()
            yield Check(f"vision {entry.side} px, {entry.precision}", error, TOLERANCE[entry.precision])


def compare_vision(manifest: Manifest, entry: VisionEntry, model: Any, images: NDArray[np.uint8]) -> float:
    """The relative error of an entry's graph for the first image, alone and behind the others in one batch.

    images: uint8 (n, side, side, 3). `model` is transformers'; it computes one image, because it takes most of a
    verification's time. Raises EngineError for a graph that ONNX Runtime can't open.
    """
    from export.torch_reference import content_tokens
    from rtprune.vision.engines.base import INPUT, OUTPUT
    from rtprune.vision.engines.onnxruntime import new_session

    expected = content_tokens(model, images[:1])
    session = new_session(manifest.path(entry.file), 0)
    alone = session.run([OUTPUT], {INPUT: images[:1]})[0]
    behind = session.run([OUTPUT], {INPUT: images[::-1]})[0][-1:]
    return max(relative_error(alone, expected), relative_error(behind, expected))


def _layout_tokens(manifest: Manifest, checkpoint: Checkpoint) -> Generator[Check]:
    from rtprune.vision.encoder import load_visual_tokens

    found = np.stack(load_visual_tokens(manifest))
    expected = np.stack([checkpoint.read(name).float().numpy() for name in (NEWLINE, SEPARATOR)])
    yield Check("newline and separator", relative_error(found, expected), TOLERANCE["fp32"])


def _decoder(manifest: Manifest, checkpoint: Checkpoint) -> Generator[Check]:
    """Every weight of the decoder, read back and compared with the checkpoint's value in the same precision."""
    import torch

    from rtprune.decoder.engines.torch.weights import WeightFiles

    entry = manifest.decoder
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[entry.precision]
    files = WeightFiles(manifest.folder / entry.folder)
    names = checkpoint.names(*DECODER_PREFIXES)
    with bar("decoder weights", len(names), "tensor") as shown:
        for name in names:
            written = files.get(name, checkpoint.shape(name), dtype)
            if not torch.equal(written, checkpoint.read(name).to(dtype)):
                raise EngineError(f"The decoder's weight {name} differs from the checkpoint's.")
            shown.update()
    yield Check(f"{len(names)} decoder weights, {entry.precision}", 0.0, TOLERANCE[entry.precision])
