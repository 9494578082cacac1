"""Reference outputs for the GPU machine, which has no transformers: tokens of images, answers to prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.job import Job
from export.progress import bar
from export.resources import require_memory
from export.sources import Sources
from export.store import code_and_versions
from rtprune.decoder import special_tokens

if TYPE_CHECKING:
    import torch

FOLDER = "references"
VISION, DECODER = "vision.safetensors", "decoder.safetensors"
IMAGES = 2  # a size
OUTPUT_TOKENS = 32
PROMPTS = (
    "<image>\n<|grounding|>Convert the document to markdown.",
    "<image>\nFree OCR.",
    "<image>\n<|grounding|>OCR this image.",
    "<image>\nParse the figure.",
    "<image>\nDescribe this image in detail.",
    "<image>\nLocate <|ref|>title<|/ref|> in the image.",
    "Free OCR.\n<image>",
    "<image>\nConvert the table to HTML.",
)
"""Eight prompts: those that DeepSeek-OCR documents, one with text before the image, one more."""


class References:
    """What `verify` on a GPU machine compares plans and engine with: transformers in FP32."""

    folder = FOLDER
    keeps_partial = False

    def title(self, job: Job) -> str:
        """What the user reads while it runs."""
        return f"reference outputs ({len(job.sides)} sizes, {len(PROMPTS)} prompts)"

    def key(self, job: Job, sources: Sources) -> dict[str, Any]:
        """Everything that the outputs depend on."""
        code = code_and_versions(("references.py", "torch_reference.py"), ("torch", "transformers"))
        return {"sources": sources.hashes, "sides": job.sides, "code": code}

    def bytes_needed(self, job: Job, sources: Sources) -> int:
        """Images and tokens."""
        hidden = sources.checkpoint.architecture.decoder.hidden_size
        return 10_000_000 + IMAGES * sum(3 * side**2 + 4 * hidden * (side // 64) ** 2 for side in job.sides)

    def run(self, job: Job, sources: Sources, out: Path) -> dict[str, Any]:
        """Compute both files. Raises InvalidInput when FP32 doesn't fit into memory."""
        from safetensors.numpy import save_file

        from export.torch_reference import content_tokens, load_model, sample_images

        parameters = sources.checkpoint.parameters("")
        require_memory(4 * parameters + 2_000_000_000, "Computing the reference outputs in FP32")
        model = load_model(sources.checkpoint, sources.special_tokens[special_tokens.IMAGE])
        vision: dict[str, NDArray[Any]] = {}
        with bar("reference outputs", len(job.sides) + len(PROMPTS), "") as shown:
            for side in job.sides:
                images = sample_images(side, IMAGES)
                vision |= {f"images.{side}": images, f"tokens.{side}": content_tokens(model.model, images)}
                shown.update()
            save_file(vision, out / VISION)
            decoder: dict[str, NDArray[Any]] = {}
            images = sample_images(job.sides[0], len(PROMPTS))
            for number, prompt in enumerate(PROMPTS):
                for name, value in _reference(sources, model, prompt, images[number]).items():
                    decoder[f"{name}.{number}"] = value
                shown.update()
            save_file(decoder, out / DECODER)
        return {"prompts": len(PROMPTS), "sides": job.sides}


def _reference(
    sources: Sources, model: Any, prompt: str, image: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """One prompt's ids, visual tokens, greedy output, and at each step the second choice and its distance."""
    from tokenizers import Tokenizer

    from export.torch_reference import content_tokens
    from rtprune.decoder.prompt import PromptWriter
    from rtprune.settings import Settings
    from rtprune.vision.sequence import token_sequence

    decoder = sources.checkpoint.architecture.decoder
    tokenizer = Tokenizer.from_file(str(sources.checkpoint.folder / "tokenizer.json"))
    writer = PromptWriter(
        tokenizer,
        vocab_size=decoder.vocab_size,
        context_length=decoder.max_position_embeddings,
        settings=Settings(),
    )
    visual = token_sequence(
        content_tokens(model.model, image[None])[0],
        np.empty((0, 0, decoder.hidden_size), np.float32),
        (0, 0),
        newline=model.model.image_newline.detach().numpy(),
        separator=model.model.view_separator.detach().numpy(),
    )
    ids = writer.ids(prompt, len(visual))
    end = sources.special_tokens[special_tokens.EOS]
    tokens, second, margin = greedy(model, ids, visual, end_id=end, steps=OUTPUT_TOKENS)
    return {"ids": ids, "visual": visual, "tokens": tokens, "second": second, "margin": margin}


def greedy(
    model: Any, ids: NDArray[np.int32], visual: NDArray[np.float32], *, end_id: int, steps: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Decode with transformers' `model`, always the likeliest token, until `end_id` (counted) or `steps`.

    ids: int32 (n,), visual token i as `vocab_size + i`. Returns the tokens, the second choice at each step, and
    how far its logit was behind.
    """
    import torch

    vocabulary = model.config.text_config.vocab_size
    prompt = torch.from_numpy(ids.astype(np.int64))
    is_visual = prompt >= vocabulary
    with torch.no_grad():
        embedded: torch.Tensor = model.get_input_embeddings()(prompt.where(~is_visual, 0))
        embedded[is_visual] = torch.from_numpy(visual)[prompt[is_visual] - vocabulary].to(embedded.dtype)
        step, cache = embedded[None], None
        chosen: list[tuple[int, int, float]] = []
        while len(chosen) < steps and not (chosen and chosen[-1][0] == end_id):
            out = model.model.language_model(inputs_embeds=step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = model.lm_head(out.last_hidden_state[0, -1]).float().topk(2)
            first, second = (int(i) for i in best.indices)
            chosen.append((first, second, float(best.values[0] - best.values[1])))
            step = model.get_input_embeddings()(torch.tensor([[first]]))
    tokens, seconds, margins = zip(*chosen, strict=True)
    return np.array(tokens, np.int32), np.array(seconds, np.int32), np.array(margins, np.float32)
