"""DeepSeek-OCR as it is published: its config.json, and the name and shape of each of its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from export.family import PATCH, WINDOW, Architecture, Clip, Decoder, Sam

PARAMETERS = 3_336_106_240
TENSORS = 2_710

Shapes = Iterator[tuple[str, tuple[int, ...]]]

CONFIG: dict[str, Any] = {
    "_name_or_path": "deepseek-ai/DeepSeek-OCR",
    "architectures": ["DeepseekOCRForCausalLM"],
    "candidate_resolutions": [[1024, 1024]],
    "global_view_pos": "head",
    "language_config": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "hidden_size": 1280,
        "intermediate_size": 6848,
        "kv_lora_rank": None,
        "lm_head": True,
        "max_position_embeddings": 8192,
        "moe_intermediate_size": 896,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 10,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 12,
        "num_key_value_heads": 10,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "rm_head": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": 129280,
    },
    "model_type": "deepseek_vl_v2",
    "projector_config": {
        "input_dim": 2048,
        "model_type": "mlp_projector",
        "n_embed": 1280,
        "projector_type": "linear",
    },
    "tile_tag": "2D",
    "torch_dtype": "bfloat16",
    "vision_config": {
        "image_size": 1024,
        "mlp_ratio": 3.7362,
        "model_name": "deeplip_b_l",
        "model_type": "vision",
        "width": {
            "clip-l-14-224": {
                "heads": 16,
                "image_size": 224,
                "layers": 24,
                "patch_size": 14,
                "width": 1024,
            },
            "sam_vit_b": {
                "downsample_channels": [512, 1024],
                "global_attn_indexes": [2, 5, 8, 11],
                "heads": 12,
                "layers": 12,
                "width": 768,
            },
        },
    },
}


def tensors(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint with this config.json, in the checkpoint's order."""
    vision, decoder = architecture.vision, architecture.decoder
    hidden = decoder.hidden_size
    return {
        "lm_head.weight": (decoder.vocab_size, hidden),
        "model.embed_tokens.weight": (decoder.vocab_size, hidden),
        "model.image_newline": (hidden,),
        **dict(_decoder(decoder)),
        "model.norm.weight": (hidden,),
        "model.projector.layers.bias": (hidden,),
        "model.projector.layers.weight": (hidden, architecture.projector.input_dim),
        **dict(_sam(vision.width.sam, vision.image_size // PATCH)),
        "model.view_seperator": (hidden,),
        **dict(_clip(vision.width.clip)),
    }


def _decoder(c: Decoder) -> Shapes:
    h, i = c.hidden_size, c.intermediate_size
    kv = h // c.num_attention_heads * c.num_key_value_heads
    for layer in range(c.num_hidden_layers):
        name = f"model.layers.{layer}."
        yield f"{name}input_layernorm.weight", (h,)
        if layer < c.first_k_dense_replace:
            yield from _mlp(f"{name}mlp.", h, i)
        else:
            for expert in range(c.n_routed_experts):
                yield from _mlp(f"{name}mlp.experts.{expert}.", h, c.moe_intermediate_size)
            yield f"{name}mlp.gate.weight", (c.n_routed_experts, h)
            shared = c.n_shared_experts * c.moe_intermediate_size
            yield from _mlp(f"{name}mlp.shared_experts.", h, shared)
        yield f"{name}post_attention_layernorm.weight", (h,)
        for part, rows in (("k", kv), ("o", h), ("q", h), ("v", kv)):
            yield f"{name}self_attn.{part}_proj.weight", (rows, h)


def _mlp(name: str, hidden: int, inner: int) -> Shapes:
    yield f"{name}down_proj.weight", (hidden, inner)
    yield f"{name}gate_proj.weight", (inner, hidden)
    yield f"{name}up_proj.weight", (inner, hidden)


def _linear(name: str, rows: int, columns: int) -> Shapes:
    yield f"{name}.bias", (rows,)
    yield f"{name}.weight", (rows, columns)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.bias", (width,)
    yield f"{name}.weight", (width,)


def _sam(c: Sam, grid: int) -> Shapes:
    """`grid`: patches a side of the position table."""
    top, w, head = "model.sam_model.", c.width, c.width // c.heads
    for block in range(c.layers):
        name = f"{top}blocks.{block}."
        reach = 2 * (grid if block in c.global_attn_indexes else WINDOW) - 1
        yield from _linear(f"{name}attn.proj", w, w)
        yield from _linear(f"{name}attn.qkv", 3 * w, w)
        yield f"{name}attn.rel_pos_h", (reach, head)
        yield f"{name}attn.rel_pos_w", (reach, head)
        yield from _linear(f"{name}mlp.lin1", 4 * w, w)
        yield from _linear(f"{name}mlp.lin2", w, 4 * w)
        yield from _norm(f"{name}norm1", w)
        yield from _norm(f"{name}norm2", w)
    out, (first, second) = c.out_chans, c.downsample_channels
    yield f"{top}neck.0.weight", (out, w, 1, 1)
    yield from _norm(f"{top}neck.1", out)
    yield f"{top}neck.2.weight", (out, out, 3, 3)
    yield from _norm(f"{top}neck.3", out)
    yield f"{top}net_2.weight", (first, out, 3, 3)
    yield f"{top}net_3.weight", (second, first, 3, 3)
    yield f"{top}patch_embed.proj.bias", (w,)
    yield f"{top}patch_embed.proj.weight", (w, 3, PATCH, PATCH)
    yield f"{top}pos_embed", (1, grid, grid, w)


def _clip(c: Clip) -> Shapes:
    top, w, patch = "model.vision_model.", c.width, c.patch_size
    yield f"{top}embeddings.class_embedding", (w,)
    yield f"{top}embeddings.patch_embedding.weight", (w, 3, patch, patch)  # SAM's map takes its place
    yield f"{top}embeddings.position_embedding.weight", ((c.image_size // patch) ** 2 + 1, w)
    yield from _norm(f"{top}pre_layrnorm", w)
    for layer in range(c.layers):
        name = f"{top}transformer.layers.{layer}."
        yield from _norm(f"{name}layer_norm1", w)
        yield from _norm(f"{name}layer_norm2", w)
        yield from _linear(f"{name}mlp.fc1", 4 * w, w)
        yield from _linear(f"{name}mlp.fc2", w, 4 * w)
        yield from _linear(f"{name}self_attn.out_proj", w, w)
        yield from _linear(f"{name}self_attn.qkv_proj", 3 * w, w)
