"""The vision step: ONNX graphs of all input sides over one file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.job import Job
from export.progress import bar
from export.sources import Sources
from export.store import code_and_versions

CODE = ("vision.py", "vision_graph.py", "onnx_graph.py", "position_tables.py")
WEIGHTS = "vision.weights"
BYTES_A_WEIGHT = {"fp32": 4, "fp16": 2, "bf16": 2}


def graph_name(side: int) -> str:
    """Name of the graph of one input side."""
    return f"vision-{side}.onnx"


class VisionGraphs:
    """Graphs that ONNX Runtime runs on a CPU, or that TensorRT plans are built from."""

    keeps_partial = False

    def __init__(self, target: str) -> None:
        self.folder = "vision" if target == "cpu" else "graphs"

    def title(self, job: Job) -> str:
        """What the user reads while it runs."""
        return f"vision graphs ({', '.join(map(str, job.sides))} px, {job.vision_precision})"

    def key(self, job: Job, sources: Sources) -> dict[str, Any]:
        """Everything that the graphs depend on."""
        return {
            "sources": sources.hashes,
            "sides": job.sides,
            "precision": job.vision_precision,
            "target": job.target,
            "code": code_and_versions(CODE, ("torch", "onnx")),
        }

    def bytes_needed(self, job: Job, sources: Sources) -> int:
        """The weights once, and position tables for each side, a tenth at most."""
        parameters = sources.checkpoint.parameters(
            "model.sam_model.", "model.vision_model.", "model.projector."
        )
        return int(1.1 * parameters * BYTES_A_WEIGHT[job.vision_precision]) + 50_000_000

    def run(self, job: Job, sources: Sources, out: Path) -> dict[str, Any]:
        """Write the graphs and their weights. Raises InvalidInput for a weight beyond the precision's range."""
        import torch

        from export.onnx_graph import WeightFile
        from export.vision_graph import GraphSettings, write_vision_graph

        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[job.vision_precision]
        settings = GraphSettings.for_cpu() if job.target == "cpu" else GraphSettings.for_gpu(dtype)
        checkpoint = sources.checkpoint
        weights = WeightFile(out / WEIGHTS)
        try:
            with bar("vision graphs", len(job.sides), "graph") as shown:
                for side in job.sides:
                    path = out / graph_name(side)
                    write_vision_graph(
                        path,
                        weights,
                        tensors=checkpoint,
                        vision=checkpoint.architecture.vision,
                        hidden_size=checkpoint.architecture.decoder.hidden_size,
                        side=side,
                        settings=settings,
                    )
                    if job.target == "gpu":
                        from export.operators import require_supported

                        require_supported(path)
                    shown.update()
        finally:
            weights.close()
        return {"sides": job.sides, "precision": job.vision_precision}
