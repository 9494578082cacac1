"""Writes the decoder for a CPU: its weights under their own names, in files that are mapped, not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.checkpoint import Checkpoint
from export.family import DECODER_PREFIXES
from export.job import AUTO_FP32_BYTES, Job
from export.progress import bar

FOLDER = "decoder"
CODE = ("decoder.py", "checkpoint.py")


def chosen_precision(job: Job, checkpoint: Checkpoint) -> str:
    """fp32 or bf16; `auto` is FP32, which a CPU computes fastest, as long as the weights stay small in it."""
    if job.decoder_precision != "auto":
        return job.decoder_precision
    return "fp32" if 4 * checkpoint.parameters(*DECODER_PREFIXES) <= AUTO_FP32_BYTES else "bf16"


def bytes_needed(job: Job, checkpoint: Checkpoint) -> int:
    """Bytes of the weights in their precision, and 1 MB for what lies beside them."""
    size = 4 if chosen_precision(job, checkpoint) == "fp32" else 2
    return size * checkpoint.parameters(*DECODER_PREFIXES) + 1_000_000


def write_decoder(checkpoint: Checkpoint, precision: str, out: Path) -> dict[str, Any]:
    """Write config.json and the weights in fp32 or bf16, shard by shard; returns the facts for the manifest.

    Raises InvalidInput for a value that isn't finite.
    """
    import torch

    from export.checkpoint import save_shards

    shapes = {name: checkpoint.shape(name) for name in sorted(checkpoint.names(*DECODER_PREFIXES))}
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    with bar("decoder weights", dtype.itemsize * checkpoint.parameters(*DECODER_PREFIXES), "B") as shown:
        # Mapped pages count as resident; mapping again is cheap.
        save_shards(out, shapes, dtype, checkpoint.read, shown, after_shard=checkpoint.close)
    (out / "config.json").write_text(json.dumps(checkpoint.config, indent=2) + "\n", encoding="utf-8")
    return {"precision": precision}
