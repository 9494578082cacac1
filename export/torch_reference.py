"""What the exports are compared with: transformers' `unlimited_ocr` classes on the checkpoint's weights, in FP32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.family import NEWLINE, SEPARATOR, VISION_PREFIXES, transformers_config
from rtprune.decoder.special_tokens import IMAGE
from rtprune.errors import InvalidInput

if TYPE_CHECKING:
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import (
        UnlimitedOcrForConditionalGeneration,
        UnlimitedOcrModel,
    )


def load_vision(checkpoint: Checkpoint) -> UnlimitedOcrModel:
    """Both encoders, the projector, newline and separator in FP32; the decoder is left out.

    Raises InvalidInput when transformers finds a weight of them missing.
    """
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrModel

    config = transformers_config(checkpoint.architecture, checkpoint.special_tokens[IMAGE])
    text: Any = config.text_config
    text.num_hidden_layers, text.layer_types, text.mlp_layer_types, text.vocab_size = 0, [], [], 1
    wanted = (*VISION_PREFIXES, NEWLINE, SEPARATOR, "model.norm.")
    weights = {name: checkpoint.read(name) for name in checkpoint.names(*wanted)}
    model, loaded = quietly(
        UnlimitedOcrModel.from_pretrained,
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32,
        output_loading_info=True,
    )
    missing = set(loaded["missing_keys"]) - {"language_model.embed_tokens.weight"}
    if missing:
        raise InvalidInput(f"transformers finds no weight for {min(missing)} in {checkpoint.folder}.")
    encoder: UnlimitedOcrModel = model.eval()
    return encoder


def quietly(load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call one of transformers' loaders without its bars and its warnings about what isn't loaded."""
    from transformers.utils import logging

    log: Any = logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        return load(*arguments, **options)
    finally:
        log.set_verbosity(verbosity)
        log.enable_progress_bar()


@torch.no_grad()
def content_tokens(model: UnlimitedOcrModel, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Encode uint8 (B, side, side, 3) to float32 (B, (side / 64)^2, hidden), one image at a time to spare memory."""
    tokens = []
    for image in images:
        pixels = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
        tokens.append(model.multi_modal_projector(model.vision_tower(pixels).last_hidden_state)[0].numpy())
    return np.stack(tokens)


def sample_images(side: int, count: int) -> NDArray[np.uint8]:
    """Images for a comparison, uint8 (count, side, side, 3): lines like text on white, then noise, in turn; seeded."""
    random = np.random.default_rng(side)
    images = random.integers(0, 256, (count, side, side, 3), np.uint8)
    for image in images[::2]:
        image[:] = 255
        for top in range(side // 16, side - 16, max(side // 24, 8)):
            for left in range(side // 16, side - 16, 8):
                if random.random() < 0.7:
                    image[top : top + 6, left : left + 6] = random.integers(0, 128)
    return images


def load_model(checkpoint: Checkpoint) -> UnlimitedOcrForConditionalGeneration:
    """The whole model in FP32. Raises InvalidInput when transformers finds a weight missing."""
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

    model, loaded = quietly(
        UnlimitedOcrForConditionalGeneration.from_pretrained,
        checkpoint.folder,
        config=transformers_config(checkpoint.architecture, checkpoint.special_tokens[IMAGE]),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if loaded["missing_keys"]:
        raise InvalidInput(
            f"transformers finds no weight for {min(loaded['missing_keys'])} in {checkpoint.folder}."
        )
    whole: UnlimitedOcrForConditionalGeneration = model.eval()
    return whole
