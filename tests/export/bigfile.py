"""A decoder checkpoint of half a gigabyte, written in a stream, and how to measure its conversion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from export.safetensors_writer import TensorSpec, write_safetensors
from export.trtllm import DecoderShape, layout
from tests.export.decoders import language_config

SIZES = language_config(
    hidden_size=1024,
    num_attention_heads=8,
    num_key_value_heads=8,
    intermediate_size=4096,
    moe_intermediate_size=1024,
    n_routed_experts=24,
    vocab_size=32000,
)


class FileSource:
    """A safetensors file, opened anew for each tensor so that what was read can leave memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.safetensors"
        self.config = json.loads((folder / "config.json").read_text())
        with safe_open(self.path, framework="pt") as file:
            keys = list(file.keys())
            self.shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}

    def keys(self) -> list[str]:
        return list(self.shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.shapes[key]

    def read(self, key: str) -> torch.Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(key)


def write_source(folder: Path) -> int:
    """Write the checkpoint with random weights in bfloat16; returns its size in bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIZES))
    targets = layout(DecoderShape.of(SIZES), torch.bfloat16)
    specs = {key: TensorSpec(torch.bfloat16, shape) for t in targets for key, shape in t.sources}
    generator = torch.Generator().manual_seed(0)

    def parts(key: str) -> Iterator[torch.Tensor]:
        left = torch.Size(specs[key].shape).numel()
        while left:
            count = min(left, 2**22)
            yield torch.randn(count, generator=generator).mul_(0.03).bfloat16()
            left -= count

    return write_safetensors(folder / "model.safetensors", specs, parts).bytes


def peak_bytes() -> int:
    """This process's largest resident size so far, mapped files included."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
