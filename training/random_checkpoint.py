"""Writes a checkpoint of random weights in DeepSeek-OCR's format, of any size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from export.checkpoint import save_shards
from export.family import Architecture
from export.hf_tensors import tensors
from export.progress import bar


def write_random_checkpoint(
    folder: Path, config: Mapping[str, Any], seed: int = 0, prefixes: tuple[str, ...] = ("",)
) -> tuple[int, int]:
    """Write config.json, the index and shards in bfloat16; returns the numbers of tensors and parameters.

    config: a config.json of DeepSeek-OCR. prefixes: of the names of the tensors to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = tensors(Architecture.model_validate(config))
    shapes = {name: shape for name, shape in known.items() if name.startswith(prefixes)}
    generator = torch.Generator().manual_seed(seed)

    def tensor(name: str) -> torch.Tensor:
        mean, deviation = weight_statistics(name, shapes[name])
        return torch.randn(shapes[name], generator=generator).mul_(deviation).add_(mean).bfloat16()

    parameters = sum(map(prod, shapes.values()))
    with bar("random weights", 2 * parameters, "B") as shown:
        save_shards(folder, shapes, torch.bfloat16, tensor, shown)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return len(shapes), parameters


def weight_statistics(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation that keep activations of order one, as training leaves them."""
    if "norm" in name or ".neck.1." in name or ".neck.3." in name:  # the neck's norms are numbered
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)
    if name.endswith("bias"):
        return 0.0, 0.02
    if len(shape) == 1 or ("patch" not in name and ("embed" in name or "rel_pos" in name)):
        return 0.0, 0.05
    return 0.0, prod(shape[1:]) ** -0.5
