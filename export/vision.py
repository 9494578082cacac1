"""Writes the vision encoder: ONNX graphs of all input sides over one file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.checkpoint import Checkpoint
from export.family import VISION_PREFIXES
from export.job import Job
from export.progress import bar

CODE = ("vision.py", "vision_graph.py", "onnx_graph.py", "position_tables.py")
WEIGHTS = "vision.weights"
BYTES_A_WEIGHT = {"fp32": 4, "fp16": 2, "bf16": 2}


def graph_name(side: int) -> str:
    """Name of the graph of one input side in px."""
    return f"vision-{side}.onnx"


def bytes_needed(job: Job, checkpoint: Checkpoint) -> int:
    """Bytes of the weights once, of position tables for each side, a tenth at most, and 50 MB for the graphs."""
    parameters = checkpoint.parameters(*VISION_PREFIXES)
    return int(1.1 * parameters * BYTES_A_WEIGHT[job.vision_precision]) + 50_000_000


def write_graphs(job: Job, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
    """Write the graphs that ONNX Runtime runs on a CPU, or that TensorRT plans are built from, and their weights.

    Raises:
        InvalidInput: a weight beyond the precision's range.
        EngineError: a graph that TensorRT's parser would refuse.
    """
    import torch

    from export.onnx_graph import WeightFile
    from export.vision_graph import GraphSettings, write_vision_graph

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[job.vision_precision]
    settings = GraphSettings.for_cpu() if job.target == "cpu" else GraphSettings.for_gpu(dtype)
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
    return {"precision": job.vision_precision}
