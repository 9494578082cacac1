"""Writes and reads a checkpoint in DeepSeek-OCR's own layout: key names, config.json, one shard.

`python -m training.model OUT --seed 0` writes the reference architecture with random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from export.checkpoint import save_shards
from export.family import Architecture, read_config, transformers_config
from export.progress import bar
from training.config import DECODER, INITIAL_DECODER, checkpoint_config
from training.tokenizer import IMAGE, build_tokenizer, save_tokenizer, token_id

SHARD = "model-00001-of-000001.safetensors"
"""Where the reference checkpoint's weights are; they fit one shard."""

UNUSED_PATCH_EMBEDDING = "model.vision_model.embeddings.patch_embedding.weight"
"""DeepSeek-OCR's checkpoint carries CLIP's own patch embedding, though the SAM map takes its place."""


def new_model(
    seed: int, attention: dict[str, str] | None = None, decoder: dict[str, int] = DECODER
) -> UnlimitedOcrForConditionalGeneration:
    """Build the reference model with random float32 weights drawn from `seed`.

    `attention` names transformers' implementation for each part of the configuration; the default is its own.
    """
    tokenizer = build_tokenizer()
    published = Architecture.model_validate(checkpoint_config(tokenizer.get_vocab_size(), decoder=decoder))
    config: Any = transformers_config(published, token_id(tokenizer, IMAGE))
    config.vision_config.sam_config.initializer_range = 0.02  # transformers' own, 1e-10, is for loading alone
    torch.manual_seed(seed)
    build: Any = UnlimitedOcrForConditionalGeneration._from_config
    model: UnlimitedOcrForConditionalGeneration = build(config, attn_implementation=attention)
    model.train(False)
    _spread(model)
    return model


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Draw matrices with deviation 1/sqrt(inputs), halved where they feed the residual stream.

    transformers' 0.02 suits widths of a thousand; at 64 and 128 it makes training start slowly.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")) or "norm" in name or parameter.ndim < 2:
            continue
        if "embed" in name and "patch_embed" not in name:
            continue
        inputs = parameter.shape[-1] if parameter.ndim <= 3 else parameter[0].numel()
        residual = any(
            part in name for part in ("down_proj", "o_proj", "out_proj", "fc2", "lin2", "attn.proj")
        )
        if "rel_pos" not in name and "lm_head" not in name and "gate.weight" not in name:
            parameter.normal_(std=inputs**-0.5 * (0.5 if residual else 1.0))


@torch.no_grad()
def add_positions(model: nn.Module, strength: float = 0.8) -> None:
    """Add a smooth code of line and column, waves of four lengths each way, to CLIP's position embedding.

    Left to itself the embedding stays a tenth of the features it is added to, and tokens with text tell nothing of
    where they stand. `strength` is the code's root mean square. The model is changed in place.
    """
    table = dict(model.named_parameters())[
        "model.vision_tower.vision_encoder.embeddings.position_embedding.weight"
    ]
    side = math.isqrt(len(table) - 1)
    at = (torch.arange(side) + 0.5) / side
    angles = 2 * math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0]) * at[:, None]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, 8)
    code = torch.cat(
        [waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], dim=2
    )  # (side, side, 16)
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(table.shape[1], code.shape[2], generator=generator)).Q.T
    spread = code.flatten(0, 1) @ directions
    table[1:] += spread * strength / spread.square().mean().sqrt()  # the first is the class token's


def checkpoint_weights(
    model: UnlimitedOcrForConditionalGeneration, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the weights under DeepSeek-OCR's key names, cast to `dtype`; the unused patch embedding is zeros."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        weights = load_file(Path(scratch) / "model.safetensors")
    config: Any = model.config
    clip = config.vision_config.encoder_config
    weights[UNUSED_PATCH_EMBEDDING] = torch.zeros(clip.hidden_size, 3, clip.patch_size, clip.patch_size)
    return {name: tensor.to(dtype).contiguous() for name, tensor in sorted(weights.items())}


def save_checkpoint(
    model: UnlimitedOcrForConditionalGeneration, directory: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write config.json, the tokenizer's files, the shard and its index into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = checkpoint_weights(model, dtype)
    hidden: int = model.lm_head.weight.shape[1]
    decoder = DECODER if hidden == DECODER["hidden_size"] else INITIAL_DECODER
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with bar("checkpoint", sum(tensor.nbytes for tensor in weights.values()), "B") as shown:
        save_shards(directory, shapes, dtype, weights.__getitem__, shown)
    vocabulary: int = model.lm_head.weight.shape[0]
    config = checkpoint_config(vocabulary, str(dtype).removeprefix("torch."), decoder)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(directory)


def load_checkpoint(
    directory: Path, dtype: torch.dtype = torch.float32
) -> tuple[UnlimitedOcrForConditionalGeneration, Tokenizer]:
    """Load a DeepSeek-OCR checkpoint of any size with transformers' classes; model and tokenizer.

    Raises InvalidInput for a config.json that is missing or of another architecture.
    """
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    _, architecture = read_config(directory)
    config = transformers_config(architecture, token_id(tokenizer, IMAGE))
    model = UnlimitedOcrForConditionalGeneration.from_pretrained(directory, config=config, dtype=dtype)
    model.train(False)
    return model, tokenizer


def main() -> None:
    """Parse the arguments and write a checkpoint with random weights."""
    parser = argparse.ArgumentParser(description="Write the reference architecture with random weights.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    save_checkpoint(new_model(arguments.seed), arguments.out, getattr(torch, arguments.dtype))


if __name__ == "__main__":
    main()
