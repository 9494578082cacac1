"""Writes the reference architecture with random weights: `python -m training.create OUT --seed 0`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.model import new_model, save_checkpoint

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def main() -> None:
    """Parse the arguments and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    arguments = parser.parse_args()
    save_checkpoint(new_model(arguments.seed), arguments.out, DTYPES[arguments.dtype])


if __name__ == "__main__":
    main()
