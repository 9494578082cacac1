"""Reference outputs for the GPU machine, which has no transformers: tokens of images, answers to prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.job import Job
from export.progress import bar
from export.resources import require_memory
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


CODE = ("references.py", "torch_reference.py")


def bytes_needed(job: Job, checkpoint: Checkpoint) -> int:
    """Bytes of the images and their tokens, and 10 MB for the prompts."""
    hidden = checkpoint.architecture.decoder.hidden_size
    return 10_000_000 + IMAGES * sum(3 * side**2 + 4 * hidden * (side // 64) ** 2 for side in job.sides)


def write_references(job: Job, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
    """Compute what `verify` on a GPU machine compares plans and engine with: transformers in FP32.

    VISION: `images.SIDE`, uint8 (IMAGES, side, side, 3), and `tokens.SIDE`, float32 (IMAGES, (side / 64)^2, hidden).
    DECODER, for each number of PROMPTS: `ids.N`, `visual.N` float32 (L, hidden), and what `greedy` returns.
    Raises InvalidInput when FP32 doesn't fit into memory, or transformers finds a weight missing.
    """
    from safetensors.numpy import save_file

    from export.torch_reference import content_tokens, load_model, sample_images

    require_memory(4 * checkpoint.parameters("") + 2_000_000_000, "Computing the reference outputs in FP32")
    model = load_model(checkpoint)
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
            for name, value in _reference(checkpoint, model, prompt, images[number]).items():
                decoder[f"{name}.{number}"] = value
            shown.update()
        save_file(decoder, out / DECODER)
    return {"prompts": len(PROMPTS), "sides": job.sides}


def _reference(
    checkpoint: Checkpoint, model: Any, prompt: str, image: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """One prompt's ids, visual tokens, greedy output, and at each step the second choice and its distance."""
    from tokenizers import Tokenizer

    from export.torch_reference import content_tokens
    from rtprune.decoder.prompt import PromptWriter
    from rtprune.settings import Settings
    from rtprune.vision.sequence import token_sequence

    decoder = checkpoint.architecture.decoder
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
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
    end = checkpoint.special_tokens[special_tokens.EOS]
    tokens, second, margin = greedy(model, ids, visual, end_id=end, steps=OUTPUT_TOKENS)
    return {"ids": ids, "visual": visual, "tokens": tokens, "second": second, "margin": margin}


def greedy(
    model: Any, ids: NDArray[np.int32], visual: NDArray[np.float32], *, end_id: int, steps: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Decode with transformers' `model`, always the likeliest token, until `end_id` (counted) or `steps`.

    ids: int32 (n,), visual token i as `vocab_size + i`. visual: float32 (L, hidden). Returns, (tokens,) each, the
    tokens and the second choice at each step, int32, and how far its logit was behind, float32.
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
