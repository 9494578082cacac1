"""Writes and reads the reference checkpoint in DeepSeek-OCR's own layout: key names, config.json, tokenizer, one shard."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from export.reference.config import published_config, transformers_config
from export.reference.tokenizer import IMAGE, build_tokenizer, save_tokenizer

SHARD = "model-00001-of-000001.safetensors"
UNUSED_PATCH_EMBEDDING = "model.vision_model.embeddings.patch_embedding.weight"
"""DeepSeek-OCR's checkpoint carries CLIP's own patch embedding, though the SAM map takes its place."""


def new_model(seed: int) -> UnlimitedOcrForConditionalGeneration:
    """Build the reference model with random float32 weights drawn from `seed`."""
    tokenizer = build_tokenizer()
    config = transformers_config(published_config(tokenizer.get_vocab_size()), tokenizer.token_to_id(IMAGE))
    torch.manual_seed(seed)
    return UnlimitedOcrForConditionalGeneration(config).eval()


def published_weights(
    model: UnlimitedOcrForConditionalGeneration, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the weights under DeepSeek-OCR's key names, cast to `dtype`, with the unused patch embedding as zeros."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        weights = load_file(Path(scratch) / "model.safetensors")
    clip = model.config.vision_config.encoder_config
    weights[UNUSED_PATCH_EMBEDDING] = torch.zeros(clip.hidden_size, 3, clip.patch_size, clip.patch_size)
    return {name: tensor.to(dtype).contiguous() for name, tensor in sorted(weights.items())}


def save_checkpoint(
    model: UnlimitedOcrForConditionalGeneration, directory: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write config.json, the tokenizer's files, the shard and its index into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = published_weights(model, dtype)
    save_file(weights, directory / SHARD, metadata={"format": "pt"})
    config = published_config(model.config.text_config.vocab_size, str(dtype).removeprefix("torch."))
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(weights, SHARD)}
    _write_json(directory / "config.json", config)
    _write_json(directory / "model.safetensors.index.json", index)
    save_tokenizer(directory)


def load_checkpoint(
    directory: Path, dtype: torch.dtype = torch.float32
) -> tuple[UnlimitedOcrForConditionalGeneration, Tokenizer]:
    """Load a DeepSeek-OCR checkpoint of any size with transformers' classes; return the model and its tokenizer."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    published = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = transformers_config(published, tokenizer.token_to_id(IMAGE))
    model = UnlimitedOcrForConditionalGeneration.from_pretrained(directory, config=config, dtype=dtype)
    return model.eval(), tokenizer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
