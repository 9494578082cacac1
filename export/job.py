"""What one export was asked for, checked before anything is done."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rtprune.errors import InvalidInput
from rtprune.modes import MODES

Target = Literal["cpu", "gpu"]
TARGETS: tuple[Target, ...] = ("cpu", "gpu")
VISION_PRECISIONS: dict[str, tuple[str, ...]] = {"cpu": ("fp32",), "gpu": ("fp16", "bf16")}
DECODER_PRECISIONS: dict[str, tuple[str, ...]] = {
    "cpu": ("auto", "fp32", "bf16"),
    "gpu": ("bf16", "fp16", "int8"),
}
"""The first of each is the default. auto: FP32 up to AUTO_FP32_BYTES, else BF16."""
AUTO_FP32_BYTES = 2 * 10**9
FACTS = "job.json"
FACT_NAMES = ("checkpoint", "modes", "vision_precision", "decoder_precision", "vision_max_batch")


@dataclass(frozen=True, slots=True)
class Job:
    """An export. `output`: the engines folder; `staging` and `previous` lie beside it.

    vision_max_batch: images that a TensorRT plan takes at once.
    """

    checkpoint: Path
    target: Target
    modes: tuple[str, ...]
    output: Path
    vision_precision: str
    decoder_precision: str
    vision_max_batch: int = 8

    @classmethod
    def of(
        cls,
        *,
        checkpoint: Path | str,
        target: str,
        modes: str = ",".join(MODES),
        output: Path,
        vision_precision: str | None = None,
        decoder_precision: str | None = None,
        vision_max_batch: int = 8,
    ) -> Job:
        """Check what a user asked for. Raises InvalidInput with what would be right."""
        if target not in TARGETS:
            raise InvalidInput(f"There is no target {target!r}; there are {' and '.join(TARGETS)}.")
        if vision_max_batch < 1:
            raise InvalidInput(f"A vision batch needs at least 1 image, not {vision_max_batch}.")
        output = Path(os.path.abspath(output))
        if output.exists() and not output.is_dir():
            raise InvalidInput(f"{output} is a file; the engines need a folder.")
        if output.is_mount() or output == output.parent:
            raise InvalidInput(
                f"{output} is a mount point and can't be replaced in one go; name a folder in it."
            )
        return cls(
            checkpoint=Path(checkpoint).absolute(),
            target="cpu" if target == "cpu" else "gpu",
            modes=parse_modes(modes),
            output=output,
            vision_precision=_choice("vision", vision_precision, VISION_PRECISIONS[target], target),
            decoder_precision=_choice("decoder", decoder_precision, DECODER_PRECISIONS[target], target),
            vision_max_batch=vision_max_batch,
        )

    @property
    def sides(self) -> tuple[int, ...]:
        """Input sides in pixels that the modes need, ascending."""
        return tuple(sorted({side for mode in self.modes for side in MODES[mode].sides}))

    def beside(self, what: str) -> Path:
        """A path next to the engines folder: `<output>.<what>`."""
        return self.output.with_name(f"{self.output.name}.{what}")

    @property
    def staging(self) -> Path:
        """Where the steps write until everything is verified."""
        return self.beside("staging")

    @property
    def previous(self) -> Path:
        """Where the engines before these are kept."""
        return self.beside("previous")

    @property
    def lock(self) -> Path:
        """File that one export at a time holds."""
        return self.beside("lock")

    @property
    def facts(self) -> dict[str, Any]:
        """What the steps on a GPU machine, without the checkpoint, have to know of the job."""
        return {
            "checkpoint": str(self.checkpoint),
            "modes": ",".join(self.modes),
            "vision_precision": self.vision_precision,
            "decoder_precision": self.decoder_precision,
            "vision_max_batch": self.vision_max_batch,
        }


def earlier_facts(output: Path) -> dict[str, Any]:
    """The facts of the job whose files are in `output`'s staging, or in `output`. Raises InvalidInput for none."""
    for folder in (output.with_name(output.name + ".staging"), output):
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            return {name: facts[name] for name in FACT_NAMES}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise InvalidInput(
        f"There is no export at {output} to go on with; name its --checkpoint, or run the other steps first."
    )


def parse_modes(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of modes, in MODES' order. Raises InvalidInput for one that doesn't exist."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    for name in named:
        if name not in MODES:
            raise InvalidInput(f"There is no mode {name!r}; there are {', '.join(MODES)}.")
    if not named:
        raise InvalidInput(f"No mode was named; there are {', '.join(MODES)}.")
    return tuple(name for name in MODES if name in named)


def _choice(part: str, asked: str | None, allowed: Sequence[str], target: str) -> str:
    if asked is None:
        return allowed[0]
    if asked not in allowed:
        raise InvalidInput(
            f"The {part} can't be exported as {asked!r} for target {target}; possible: {', '.join(allowed)}."
        )
    return asked
