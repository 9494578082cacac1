"""Shapes of the reference checkpoint; DeepSeek-OCR's config.json as transformers' configuration."""

from __future__ import annotations

from typing import Any

from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig

PATCH = 16
BLOCK = 64
"""Pixels per side that one visual token covers: patch 16, then 4x4 patches to one token."""

SAM = {
    "width": 64,
    "layers": 3,
    "heads": 2,
    "global_attn_indexes": [1],
    "downsample_channels": [128, 128],
    "out_chans": 64,
}
"""Published: 768 wide, 12 blocks, 12 heads, global in 2, 5, 8, 11; `out_chans` is absent there and means 256."""

CLIP = {"width": 128, "layers": 3, "heads": 4, "image_size": 224, "patch_size": 14}
"""Published: 1024 wide, 24 layers, 16 heads. The last of `downsample_channels` must equal this width."""

DECODER = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 384,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 8192,
}
"""Published: hidden 1280, 12 layers, 10 heads, dense 6848, experts 64 x 896, top-6, 2 shared."""


TEXT_FIELDS = (
    "bos_token_id", "eos_token_id", "first_k_dense_replace", "hidden_size", "intermediate_size",
    "max_position_embeddings", "moe_intermediate_size", "n_group", "n_routed_experts", "n_shared_experts",
    "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "topk_group",
    "topk_method", "vocab_size",
)  # fmt: skip
"""Fields that `language_config` and transformers' text configuration call the same."""


def published_config(vocab_size: int, dtype: str = "bfloat16") -> dict[str, Any]:
    """Build the reference checkpoint's `config.json` with the fields that deepseek-ai/DeepSeek-OCR publishes.

    `vocab_size` is the tokenizer's; `dtype` is the stored weights' type.
    """
    language = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "kv_lora_rank": None,
        "lm_head": True,
        "n_group": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "rm_head": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": dtype,
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": vocab_size,
        **DECODER,
    }
    return {
        "_name_or_path": "reference-deepseek-ocr",
        "architectures": ["DeepseekOCRForCausalLM"],
        "candidate_resolutions": [[1024, 1024]],
        "global_view_pos": "head",
        "language_config": language,
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "input_dim": CLIP["width"] * 2,
            "model_type": "mlp_projector",
            "n_embed": DECODER["hidden_size"],
            "projector_type": "linear",
        },
        "tile_tag": "2D",
        "torch_dtype": dtype,
        "vision_config": {
            "image_size": 1024,
            "mlp_ratio": 3.7362,
            "model_name": "deeplip_b_l",
            "model_type": "vision",
            "width": {"clip-l-14-224": dict(CLIP), "sam_vit_b": dict(SAM)},
        },
    }


def transformers_config(published: dict[str, Any], image_token_id: int) -> UnlimitedOcrConfig:
    """Turn DeepSeek-OCR's `config.json` into the configuration of transformers' `unlimited_ocr` classes.

    Full attention in every layer makes that model DeepSeek-OCR's; its sliding window is then unused, but may
    not be None. Absent fields take what DeepSeek-OCR's code fixes: a neck of 256 channels, MLPs four times as
    wide as their blocks.
    """
    language = published["language_config"]
    clip = published["vision_config"]["width"]["clip-l-14-224"]
    sam = published["vision_config"]["width"]["sam_vit_b"]
    layers = language["num_hidden_layers"]
    return UnlimitedOcrConfig(
        text_config={
            **{name: language[name] for name in TEXT_FIELDS},
            "layer_types": ["full_attention"] * layers,
            "sliding_window": language["max_position_embeddings"],
            "rms_norm_eps": language.get("rms_norm_eps", 1e-6),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": float(language.get("rope_theta", 10000.0)),
            },
            "routed_scaling_factor": float(language.get("routed_scaling_factor", 1.0)),
        },
        vision_config={
            "sam_config": {
                "hidden_size": sam["width"],
                "num_hidden_layers": sam["layers"],
                "num_attention_heads": sam["heads"],
                "global_attn_indexes": sam["global_attn_indexes"],
                "downsample_channels": sam["downsample_channels"],
                "output_channels": sam.get("out_chans", 256),
                "mlp_dim": 4 * sam["width"],
                "image_size": published["vision_config"]["image_size"],
                "initializer_range": 0.02,
            },
            "encoder_config": {
                "hidden_size": clip["width"],
                "intermediate_size": 4 * clip["width"],
                "num_hidden_layers": clip["layers"],
                "num_attention_heads": clip["heads"],
                "image_size": clip["image_size"],
                "patch_size": clip["patch_size"],
            },
        },
        image_token_id=image_token_id,
    )
