"""A checkpoint whose decoder has half a gigabyte, and how to measure its conversion."""

from __future__ import annotations

from pathlib import Path

from training.config import checkpoint_config
from training.random_checkpoint import write_random_checkpoint

DECODER = {
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 3,
    "intermediate_size": 4096,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 24,
    "vocab_size": 32000,
}


def write_source(folder: Path) -> int:
    """Write the checkpoint with random weights in bfloat16; returns its size in bytes."""
    config = checkpoint_config(DECODER["vocab_size"])
    config["language_config"] |= DECODER
    config["projector_config"]["n_embed"] = DECODER["hidden_size"]
    _, parameters = write_random_checkpoint(folder, config)
    return 2 * parameters


def peak_bytes() -> int:
    """This process's largest resident size so far, mapped files included."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
