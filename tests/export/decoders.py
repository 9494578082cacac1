"""Small decoders of DeepSeek-OCR's architecture, lively random weights, under the checkpoint's key names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration


def language_config(**changes: Any) -> dict[str, Any]:
    """`language_config` as deepseek-ai/DeepSeek-OCR publishes it, in small sizes."""
    return {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 512,
        "vocab_size": 300,
        "topk_method": "greedy",
        "use_mla": False,
        "n_group": 1,
        "topk_group": 1,
        "rm_head": False,
        "lm_head": True,
        **changes,
    }


@dataclass
class Decoder:
    """A checkpoint's decoder: configuration, weights by checkpoint key, and transformers' model of them."""

    config: dict[str, Any]
    """`language_config`."""
    weights: dict[str, torch.Tensor]
    model: UnlimitedOcrForConditionalGeneration

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.weights[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self.weights[name]


def make_decoder(folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Decoder:
    """A decoder whose weights are exact in `dtype`; its transformers model computes in float32."""
    config = language_config(**changes)
    torch.manual_seed(seed)
    text = {k: v for k, v in config.items() if k not in ("use_mla", "rm_head", "lm_head")}
    layers = config["num_hidden_layers"]
    model = UnlimitedOcrForConditionalGeneration(
        UnlimitedOcrConfig(
            text_config={**text, "layer_types": ["full_attention"] * layers, "sliding_window": 512},
            vision_config={
                "sam_config": {
                    "hidden_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 1,
                    "global_attn_indexes": [0],
                    "downsample_channels": [16, 16],
                    "output_channels": 16,
                    "mlp_dim": 16,
                    "image_size": 64,
                },
                "encoder_config": {
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 1,
                    "image_size": 28,
                },
            },
            image_token_id=5,
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if (
                "norm" in name
            ):  # norms near one, every other matrix with gain one: activations stay of order one
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif weight.dim() > 1:
                weight.copy_(torch.randn_like(weight) / weight.shape[-1] ** 0.5)
            weight.copy_(weight.to(dtype))
    model.save_pretrained(folder)
    weights = {k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    return Decoder(config, weights, model)
