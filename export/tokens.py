"""The step that copies the tokenizer, and the two tokens that visual tokens are laid out with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from export.family import NEWLINE, SEPARATOR
from export.job import Job
from export.sources import Sources
from export.store import code_and_versions

VISUAL_TOKENS = "visual_tokens.safetensors"
TOKENIZER = "tokenizer.json"


class Tokens:
    """tokenizer.json, `image_newline` and `view_seperator`, and the special tokens' ids."""

    folder = "tokens"
    keeps_partial = False

    def title(self, job: Job) -> str:
        """What the user reads while it runs."""
        return "tokenizer and layout tokens"

    def key(self, job: Job, sources: Sources) -> dict[str, Any]:
        """Everything that the files depend on."""
        return {"sources": sources.hashes, "code": code_and_versions(("tokens.py", "family.py"), ())}

    def bytes_needed(self, job: Job, sources: Sources) -> int:
        """The tokenizer's size and two vectors."""
        return (sources.checkpoint.folder / TOKENIZER).stat().st_size + 1_000_000

    def run(self, job: Job, sources: Sources, out: Path) -> dict[str, Any]:
        """Write the files. Raises InvalidInput for a tokenizer that isn't DeepSeek-OCR's."""
        import torch
        from safetensors.torch import save_file

        checkpoint = sources.checkpoint
        tensors = {
            name.removeprefix("model."): checkpoint.read(name).to(torch.float32)
            for name in (NEWLINE, SEPARATOR)
        }
        save_file(tensors, out / VISUAL_TOKENS)
        shutil.copyfile(checkpoint.folder / TOKENIZER, out / TOKENIZER)
        decoder = checkpoint.architecture.decoder
        return {
            "family": checkpoint.family.name,
            "special_tokens": sources.special_tokens,
            "hidden_size": decoder.hidden_size,
            "vocab_size": decoder.vocab_size,
            "context_length": decoder.max_position_embeddings,
            "sources": sources.hashes,
        }
