"""A small interpreter of TensorRT-LLM's DeepseekForCausalLM checkpoint, in plain torch and float32.

It knows the layout only from TensorRT-LLM's side (layers/mlp.py, layers/moe.py, layers/attention.py of 1.2):
GatedMLP is proj(act(fc(x)) * gate(x)); SwiGLU of a fused fc takes the linear half first and activates the
second; qkv are stacked by rows; RoPE is of the rotate-half kind; router scores are the top k of a float32
softmax, not normalised; token ids from vocab_size on are rows of the prompt embedding table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, scaled_dot_product_attention, silu

Tensors = dict[str, torch.Tensor]


def logits(folder: Path, ids: torch.Tensor, prompt_table: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (T, vocabulary) of the sequence `ids` (T,), `prompt_table` (n, hidden)."""
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "DeepseekForCausalLM"
    assert config["hidden_act"] == "swiglu"
    assert config["position_embedding_type"] == "rope_gpt_neox"
    stored = load_file(folder / "rank0.safetensors")
    expected = {"float16": torch.float16, "bfloat16": torch.bfloat16}[config["dtype"]]
    for name, tensor in stored.items():
        assert tensor.dtype == (torch.float32 if name.endswith("router.weight") else expected), name
    w = {name: tensor.float() for name, tensor in stored.items()}

    table = w["transformer.vocab_embedding.weight"]
    if prompt_table is not None:
        table = torch.cat([table, prompt_table.float()])
    x = table[ids]
    for index in range(config["num_hidden_layers"]):
        layer = {
            name.removeprefix(f"transformer.layers.{index}."): tensor
            for name, tensor in w.items()
            if name.startswith(f"transformer.layers.{index}.")
        }
        x = x + _attention(config, layer, _norm(config, x, layer["input_layernorm.weight"]))
        h = _norm(config, x, layer["post_layernorm.weight"])
        x = x + (_gated_mlp(layer, h) if index == 0 else _shared_moe(config, layer, h))
    return linear(_norm(config, x, w["transformer.ln_f.weight"]), w["lm_head.weight"])


def _norm(config: dict[str, Any], x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["norm_epsilon"]) * weight


def _attention(config: dict[str, Any], w: Tensors, x: torch.Tensor) -> torch.Tensor:
    heads, kv_heads, size = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_size"))
    qkv = linear(x, w["attention.qkv.weight"]).unflatten(-1, (heads + 2 * kv_heads, size)).transpose(0, 1)
    q, k, v = qkv.split((heads, kv_heads, kv_heads))
    assert config["rotary_scaling"] is None
    frequencies = config["rotary_base"] ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(len(x), dtype=torch.float32), frequencies)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def rotate(t: torch.Tensor) -> torch.Tensor:
        first, second = t.chunk(2, -1)
        return t * cos + torch.cat([-second, first], -1) * sin

    out = scaled_dot_product_attention(
        rotate(q)[None], rotate(k)[None], v[None], is_causal=True, enable_gqa=True
    )[0]
    return linear(out.transpose(0, 1).flatten(1), w["attention.dense.weight"])


def _gated_mlp(w: Tensors, x: torch.Tensor) -> torch.Tensor:
    activated = silu(linear(x, w["mlp.fc.weight"]))
    return linear(activated * linear(x, w["mlp.gate.weight"]), w["mlp.proj.weight"])


def _swiglu_mlp(fc: torch.Tensor, proj: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    straight, activated = linear(x, fc).chunk(2, -1)
    return linear(straight * silu(activated), proj)


def _shared_moe(config: dict[str, Any], w: Tensors, x: torch.Tensor) -> torch.Tensor:
    moe = config["moe"]
    assert moe["normalization_mode"] == 0
    assert w["mlp.fc.weight"].shape[0] == moe["num_experts"]
    assert w["mlp.fc.weight"].shape[1] == 2 * config["moe_intermediate_size"]
    assert w["mlp.shared_expert.fc.weight"].shape[0] == 2 * moe["shared_expert_intermediate_size"]
    scales, experts = linear(x, w["mlp.router.weight"]).softmax(-1).topk(moe["top_k"])
    routed = torch.stack(
        [
            sum(
                scale * _swiglu_mlp(w["mlp.fc.weight"][e], w["mlp.proj.weight"][e], token)
                for scale, e in zip(scales[t], experts[t], strict=True)
            )
            for t, token in enumerate(x)
        ]
    )
    shared = _swiglu_mlp(w["mlp.shared_expert.fc.weight"], w["mlp.shared_expert.proj.weight"], x)
    return routed + shared
