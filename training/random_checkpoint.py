"""Writes a checkpoint of random weights in DeepSeek-OCR's format, of any size, tensor by tensor."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from export.hf_tensors import tensors
from export.safetensors_writer import TensorSpec, write_safetensors

SHARD = "model-00001-of-000001.safetensors"
PIECE = 2**22  # values made at a time


def write_random_checkpoint(folder: Path, config: Mapping[str, Any], seed: int = 0) -> tuple[int, int]:
    """Write config.json, the index and one shard in bfloat16; returns the numbers of tensors and parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = {name: TensorSpec(torch.bfloat16, shape) for name, shape in tensors(config).items()}
    generator = torch.Generator().manual_seed(seed)

    def parts(name: str) -> Iterator[torch.Tensor]:
        mean, deviation = weight_statistics(name, specs[name].shape)
        left = prod(specs[name].shape)
        while left:
            count = min(left, PIECE)
            yield torch.randn(count, generator=generator).mul_(deviation).add_(mean).bfloat16()
            left -= count

    size = sum(spec.bytes for spec in specs.values())
    with tqdm(total=size, unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar:
        write_safetensors(
            folder / SHARD,
            specs,
            parts,
            metadata={"format": "pt"},
            on_tensor=lambda _, written: bar.update(written),
        )
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(specs, SHARD)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return len(specs), sum(prod(spec.shape) for spec in specs.values())


def weight_statistics(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation that keep activations of order one, as training leaves them."""
    if "norm" in name or ".neck.1." in name or ".neck.3." in name:  # the neck's norms are numbered
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)
    if name.endswith("bias"):
        return 0.0, 0.02
    if len(shape) == 1 or ("patch" not in name and ("embed" in name or "rel_pos" in name)):
        return 0.0, 0.05
    return 0.0, prod(shape[1:]) ** -0.5
