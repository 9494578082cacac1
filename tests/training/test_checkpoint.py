"""The checkpoint's format: DeepSeek-OCR's names and fields, every part of its graph, exact weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from export.family import Architecture, read_config, transformers_config
from export.hf_tensors import CONFIG, tensors
from training.config import CLIP, DECODER, SAM
from training.model import SHARD, checkpoint_weights, load_checkpoint, new_model, save_checkpoint


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("created")
    save_checkpoint(new_model(5), directory)
    return directory


def test_every_part_of_the_real_graph_is_there() -> None:
    blocks = set(range(SAM["layers"]))
    assert blocks & set(SAM["global_attn_indexes"]), "no SAM block with global attention"
    assert blocks - set(SAM["global_attn_indexes"]), "no windowed SAM block"
    assert 1 <= DECODER["first_k_dense_replace"] < DECODER["num_hidden_layers"] - 1
    assert DECODER["n_shared_experts"] >= 1
    assert 1 < DECODER["num_experts_per_tok"] < DECODER["n_routed_experts"]
    assert SAM["downsample_channels"][-1] == CLIP["width"]


def test_head_is_not_tied(created: Path) -> None:
    weights = load_file(created / SHARD)
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_names_and_shapes_are_deepseek_ocrs(created: Path) -> None:
    _, architecture = read_config(created)
    weights = load_file(created / SHARD)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == tensors(architecture)
    index = json.loads((created / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == dict.fromkeys(weights, SHARD)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in weights.values())


def test_config_has_the_published_fields(created: Path) -> None:
    config = json.loads((created / "config.json").read_text())
    assert _fields(CONFIG) - _fields(config) == set()
    for field in ("architectures", "model_type", "tile_tag", "global_view_pos", "candidate_resolutions"):
        assert config[field] == CONFIG[field]


def _fields(config: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in config.items():
        found.add(prefix + name)
        if isinstance(value, dict):
            found |= _fields(value, f"{prefix}{name}.")
    return found


def test_the_published_configuration_is_understood() -> None:
    config: Any = transformers_config(Architecture.model_validate(CONFIG), 128815)
    assert config.text_config.layer_types == ["full_attention"] * 12
    assert config.text_config.mlp_layer_types == ["dense"] + ["sparse"] * 11
    assert config.vision_config.sam_config.output_channels == 256
    assert config.vision_config.sam_config.mlp_dim == 3072
    assert config.vision_config.encoder_config.intermediate_size == 4096


def test_loads_through_transformers_bit_for_bit(created: Path) -> None:
    model, _ = load_checkpoint(created, torch.bfloat16)
    stored = load_file(created / SHARD)
    again = checkpoint_weights(model, torch.bfloat16)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_a_seed_gives_the_same_weights() -> None:
    first, second = (dict(new_model(seed).named_parameters()) for seed in (5, 5))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = dict(new_model(6).named_parameters())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
