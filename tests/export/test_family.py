"""The family's configuration against transformers' classes, and special tokens found by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from export.family import Architecture, read_config, special_token_ids, transformers_config
from export.hf_tensors import CONFIG, PARAMETERS, tensors
from rtprune.errors import InvalidInput


def test_the_published_configuration_is_transformers_model_to_the_parameter() -> None:
    architecture = Architecture.model_validate(CONFIG)
    with torch.device("meta"):
        model = UnlimitedOcrForConditionalGeneration(transformers_config(architecture, 128815))
    unused = 1024 * 3 * 14 * 14  # CLIP's patch embedding, which transformers leaves out
    assert sum(p.numel() for p in model.parameters()) + unused == PARAMETERS
    text: Any = model.config.text_config
    assert set(text.layer_types) == {"full_attention"}
    assert text.rope_parameters["rope_theta"] == 10000.0
    assert text.max_position_embeddings == 8192
    assert text.mlp_layer_types == ["dense"] + ["sparse"] * 11


def test_the_family_knows_every_tensor(random_checkpoint: Path) -> None:
    _, architecture = read_config(random_checkpoint)
    shapes = tensors(architecture)
    assert shapes["model.projector.layers.weight"] == (160, 256)
    assert len(shapes) == 348


def test_special_tokens_by_name(random_checkpoint: Path) -> None:
    ids = special_token_ids(random_checkpoint / "tokenizer.json", 1000)
    assert ids["<｜begin▁of▁sentence｜>"] == 0
    assert {"<image>", "<|grounding|>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<td>", "</td>"} <= set(
        ids
    )


def test_tokenizers_that_do_not_fit_are_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InvalidInput, match="There is no"):
        special_token_ids(path, 1000)
    path.write_text("{}")
    with pytest.raises(InvalidInput, match="isn't a tokenizer"):
        special_token_ids(path, 1000)
    shutil.copy(random_checkpoint / "tokenizer.json", path)
    with pytest.raises(InvalidInput, match="the decoder's vocabulary ends at 99"):
        special_token_ids(path, 100)
    content = json.loads(path.read_text())
    for added in content["added_tokens"]:
        if added["content"] == "<image>":
            added["content"] = "<picture>"
    vocabulary = content["model"]["vocab"]
    if "<image>" in vocabulary:
        vocabulary["<picture>"] = vocabulary.pop("<image>")
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match="isn't a tokenizer of DeepSeek-OCR: it has no <image>"):
        special_token_ids(path, 1000)
