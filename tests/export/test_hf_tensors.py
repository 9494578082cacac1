"""The list of DeepSeek-OCR's tensors: the published counts, and the names that transformers writes."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from export.family import Architecture
from export.hf_tensors import CONFIG, PARAMETERS, TENSORS, tensors
from training.config import checkpoint_config
from training.model import checkpoint_weights, new_model


def test_the_published_counts() -> None:
    shapes = tensors(Architecture.model_validate(CONFIG))
    assert len(shapes) == TENSORS == 2_710
    assert sum(prod(shape) for shape in shapes.values()) == PARAMETERS == 3_336_106_240


def test_the_reference_checkpoint_has_these_tensors() -> None:
    """The same code in other sizes, against the names and shapes that transformers' classes save."""
    model = new_model(0)
    weights = checkpoint_weights(model, torch.bfloat16)
    text: Any = model.config.text_config
    shapes = tensors(Architecture.model_validate(checkpoint_config(text.vocab_size)))
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == shapes


def test_the_reference_configuration_has_the_published_fields() -> None:
    def fields(config: dict[str, Any]) -> dict[str, Any]:
        return {k: fields(v) if isinstance(v, dict) else None for k, v in config.items()}

    small, published = fields(checkpoint_config(300)), fields(CONFIG)
    small["vision_config"]["width"]["sam_vit_b"].pop("out_chans")
    assert small == published
