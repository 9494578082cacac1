"""Decoder checkpoints of any shape with random weights, under DeepSeek-OCR's key names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TINY: dict[str, Any] = {
    "vocab_size": 416,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 256,
}


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Matrices with deviation 1/sqrt(inputs), norms around 1: activations as large as a trained model's."""
    generator = torch.Generator().manual_seed(seed)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv = hidden // heads * config["num_key_value_heads"]
    tensors: dict[str, torch.Tensor] = {}

    def matrix(name: str, outputs: int, inputs: int, scale: float = 1.0) -> None:
        drawn = torch.randn((outputs, inputs), generator=generator)
        tensors[f"{name}.weight"] = drawn * (scale * inputs**-0.5)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = 1 + 0.1 * torch.randn(hidden, generator=generator)

    def mlp(name: str, inner: int) -> None:
        matrix(f"{name}.gate_proj", inner, hidden)
        matrix(f"{name}.up_proj", inner, hidden)
        matrix(f"{name}.down_proj", hidden, inner, 0.5)

    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        norm(f"{layer}.input_layernorm")
        norm(f"{layer}.post_attention_layernorm")
        matrix(f"{layer}.self_attn.q_proj", hidden, hidden)
        matrix(f"{layer}.self_attn.k_proj", kv, hidden)
        matrix(f"{layer}.self_attn.v_proj", kv, hidden)
        matrix(f"{layer}.self_attn.o_proj", hidden, hidden, 0.5)
        if index < config["first_k_dense_replace"]:
            mlp(f"{layer}.mlp", config["intermediate_size"])
            continue
        inner = config["moe_intermediate_size"]
        matrix(f"{layer}.mlp.gate", config["n_routed_experts"], hidden)
        for expert in range(config["n_routed_experts"]):
            mlp(f"{layer}.mlp.experts.{expert}", inner)
        mlp(f"{layer}.mlp.shared_experts", inner * config["n_shared_experts"])
    norm("model.norm")
    tensors["model.embed_tokens.weight"] = torch.randn((config["vocab_size"], hidden), generator=generator)
    matrix("lm_head", config["vocab_size"], hidden, 3.0)
    return tensors


def write_checkpoint(
    folder: Path,
    seed: int,
    dtype: torch.dtype = torch.float32,
    edit: dict[str, torch.Tensor] | None = None,
    **changes: Any,
) -> Path:
    """Write `TINY` with `changes`, and the tensors of `edit` instead of the drawn ones."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**TINY, **changes}
    tensors = {**random_tensors(config, seed), **(edit or {})}
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "decoder.safetensors")
    (folder / "config.json").write_text(json.dumps({"language_config": config}), encoding="utf-8")
    return folder
