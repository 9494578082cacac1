"""Writes the tokenizer, and the two tokens that visual tokens are laid out with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from export.checkpoint import Checkpoint
from export.family import FAMILY, NEWLINE, SEPARATOR

FOLDER = "tokens"
VISUAL_TOKENS = "visual_tokens.safetensors"
TOKENIZER = "tokenizer.json"
CODE = ("tokens.py", "family.py")


def write_tokens(checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
    """Write tokenizer.json, and `image_newline` and `view_seperator` as float32 (hidden,); returns the model's facts.

    Raises InvalidInput for a tokenizer that isn't DeepSeek-OCR's.
    """
    import torch
    from safetensors.torch import save_file

    tensors = {
        name.removeprefix("model."): checkpoint.read(name).to(torch.float32) for name in (NEWLINE, SEPARATOR)
    }
    save_file(tensors, out / VISUAL_TOKENS)
    shutil.copyfile(checkpoint.folder / TOKENIZER, out / TOKENIZER)
    decoder = checkpoint.architecture.decoder
    return {
        "family": FAMILY,
        "model": checkpoint.architecture.name or checkpoint.folder.resolve().name,
        "special_tokens": checkpoint.special_tokens,
        "hidden_size": decoder.hidden_size,
        "vocab_size": decoder.vocab_size,
        "context_length": decoder.max_position_embeddings,
        "sources": checkpoint.hashes,
    }
