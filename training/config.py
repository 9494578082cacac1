"""Shapes of the reference checkpoint, in the fields of DeepSeek-OCR's config.json."""

from __future__ import annotations

from typing import Any

SAM: dict[str, Any] = {
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

INITIAL_DECODER = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
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
"""What training starts with, before `grow` puts two counting layers in front."""

DECODER = INITIAL_DECODER | {
    "hidden_size": 160,
    "num_hidden_layers": 8,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
}
"""What ships. Published: hidden 1280, 12 layers, 10 heads, dense 6848, experts 64 x 896, top-6, 2 shared."""


def checkpoint_config(
    vocab_size: int, dtype: str = "bfloat16", decoder: dict[str, int] = DECODER
) -> dict[str, Any]:
    """Build the reference checkpoint's `config.json` with the fields that deepseek-ai/DeepSeek-OCR publishes.

    `vocab_size` is the tokenizer's; `dtype` is the stored weights' type, as torch names it; `decoder` is `DECODER` or
    `INITIAL_DECODER`.
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
        **decoder,
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
            "n_embed": decoder["hidden_size"],
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
