"""The decoder step for a CPU: the decoder's weights under their own names, in a file that is mapped, not read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from export.family import DECODER_PREFIXES
from export.job import AUTO_FP32_BYTES, Job
from export.progress import bar
from export.sources import Sources
from export.store import code_and_versions

WEIGHTS = "model.safetensors"
CODE = ("decoder.py", "safetensors_writer.py")


def chosen_precision(job: Job, sources: Sources) -> str:
    """fp32 or bf16; `auto` is FP32, which a CPU computes fastest, as long as the weights stay small in it."""
    if job.decoder_precision != "auto":
        return job.decoder_precision
    size = 4 * sources.checkpoint.parameters(*DECODER_PREFIXES)
    return "fp32" if size <= AUTO_FP32_BYTES else "bf16"


class CpuDecoder:
    """Weights and configuration of the PyTorch engine."""

    folder = "decoder"
    keeps_partial = False

    def title(self, job: Job) -> str:
        """What the user reads while it runs."""
        return f"decoder weights for PyTorch ({job.decoder_precision})"

    def key(self, job: Job, sources: Sources) -> dict[str, Any]:
        """Everything that the weights depend on."""
        return {
            "sources": sources.hashes,
            "precision": chosen_precision(job, sources),
            "code": code_and_versions(CODE, ()),
        }

    def bytes_needed(self, job: Job, sources: Sources) -> int:
        """The weights in their precision."""
        parameters = sources.checkpoint.parameters(*DECODER_PREFIXES)
        return parameters * (4 if chosen_precision(job, sources) == "fp32" else 2) + 1_000_000

    def run(self, job: Job, sources: Sources, out: Path) -> dict[str, Any]:
        """Write config.json and the weights, tensor by tensor."""
        import torch

        from export.safetensors_writer import TensorSpec, write_safetensors

        checkpoint = sources.checkpoint
        precision = chosen_precision(job, sources)
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        names = [name for name in checkpoint.keys() if name.startswith(DECODER_PREFIXES)]  # noqa: SIM118
        specs = {name: TensorSpec(dtype, checkpoint.shape(name)) for name in sorted(names)}

        def parts(name: str) -> Iterable[torch.Tensor]:
            return (checkpoint.read(name).to(dtype),)

        with bar("decoder weights", sum(spec.bytes for spec in specs.values()), "B") as shown:

            def on_tensor(_name: str, written: int) -> None:
                shown.update(written)
                checkpoint.close()  # mapped pages count as resident; mapping again is cheap

            write_safetensors(out / WEIGHTS, specs, parts, metadata={"format": "pt"}, on_tensor=on_tensor)
        (out / "config.json").write_text(json.dumps(checkpoint.config, indent=2) + "\n", encoding="utf-8")
        return {"precision": precision}
