"""Writes the decoder as the checkpoint that TensorRT-LLM 1.2.1's `trtllm-build` reads.

The graph is TensorRT-LLM's `DeepseekForCausalLM` (tensorrt_llm/models/deepseek_v1). What its converter does
in memory and with remote code happens here one by one. Names and orders are those of its convert.py and of
layers/moe.py:

- `mlp.fc` of a dense layer is the activated projection (`gate_proj`), `mlp.gate` the linear one (`up_proj`);
- `mlp.fc` of experts and of the shared expert is concat(up, gate): the linear half first, then the activated;
- the router's weight is float32 whatever the rest is; router scores aren't normalised after the top-k.

INT8 weight-only needs no other weights: with `quant_algo: W8A16` in config.json, trtllm-build quantises every
linear layer and expert per output channel when it loads them, and leaves the router, the embedding and the
head as they are. There is no FP8: 1.2.1's FP8 wants calibrated activation scales, and its row-wise FP8
refuses experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from export.checkpoint import Checkpoint, Tensors
from export.family import Decoder
from export.progress import bar
from export.resources import require_memory
from rtprune.errors import InvalidInput

Precision = Literal["float16", "bfloat16"]
WeightOnly = Literal["int8"]

CODE = ("trtllm.py", "family.py", "checkpoint.py")
VERSION = "1.2.1"
ARCHITECTURE = "DeepseekForCausalLM"
WEIGHTS = "rank0.safetensors"
INT8_TILE = 64  # rows and columns that the INT8 kernels' weight layout comes in
COMPUTED: Mapping[str, Any] = {"first_k_dense_replace": 1, "routed_scaling_factor": 1.0}
"""Fields of `language_config` that the graph has no parameter for, with the only value that it computes."""


@dataclass(frozen=True, slots=True)
class TrtllmTensor:
    """One tensor of the TensorRT-LLM checkpoint: its sources, stacked along the rows in this order."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    dtype: torch.dtype | None = None
    """float32 for the router; None for what the decoder computes in."""


def layout(decoder: Decoder) -> Iterator[TrtllmTensor]:
    """Every tensor of the checkpoint with its shape and the names of the tensors that it is made of.

    Source: TensorRT-LLM 1.2.1's convert.py of deepseek_v1, and layers/moe.py.
    """
    h, i, vocabulary = decoder.hidden_size, decoder.intermediate_size, decoder.vocab_size
    kv = h // decoder.num_attention_heads * decoder.num_key_value_heads
    yield TrtllmTensor("transformer.vocab_embedding.weight", (vocabulary, h), ("model.embed_tokens.weight",))
    for index in range(decoder.num_hidden_layers):
        to, of = f"transformer.layers.{index}.", f"model.layers.{index}."
        qkv = tuple(f"{of}self_attn.{part}_proj.weight" for part in "qkv")
        norm = f"{of}post_attention_layernorm.weight"
        yield TrtllmTensor(f"{to}input_layernorm.weight", (h,), (f"{of}input_layernorm.weight",))
        yield TrtllmTensor(f"{to}attention.qkv.weight", (h + 2 * kv, h), qkv)
        yield TrtllmTensor(f"{to}attention.dense.weight", (h, h), (f"{of}self_attn.o_proj.weight",))
        yield TrtllmTensor(f"{to}post_layernorm.weight", (h,), (norm,))
        if index == 0:  # the graph has its one dense layer first, whatever the configuration says
            yield TrtllmTensor(f"{to}mlp.fc.weight", (i, h), (f"{of}mlp.gate_proj.weight",))
            yield TrtllmTensor(f"{to}mlp.gate.weight", (i, h), (f"{of}mlp.up_proj.weight",))
            yield TrtllmTensor(f"{to}mlp.proj.weight", (h, i), (f"{of}mlp.down_proj.weight",))
        else:
            yield from _experts(decoder, f"{to}mlp.", f"{of}mlp.")
    yield TrtllmTensor("transformer.ln_f.weight", (h,), ("model.norm.weight",))
    yield TrtllmTensor("lm_head.weight", (vocabulary, h), ("lm_head.weight",))


def _experts(decoder: Decoder, to: str, of: str) -> Iterator[TrtllmTensor]:
    h, i, e = decoder.hidden_size, decoder.moe_intermediate_size, decoder.n_routed_experts
    s = decoder.n_shared_experts * i
    up_gate = tuple(f"{of}experts.{n}.{half}_proj.weight" for n in range(e) for half in ("up", "gate"))
    down = tuple(f"{of}experts.{n}.down_proj.weight" for n in range(e))
    shared = tuple(f"{of}shared_experts.{half}_proj.weight" for half in ("up", "gate"))
    yield TrtllmTensor(f"{to}router.weight", (e, h), (f"{of}gate.weight",), torch.float32)
    yield TrtllmTensor(f"{to}fc.weight", (e, 2 * i, h), up_gate)
    yield TrtllmTensor(f"{to}proj.weight", (e, h, i), down)
    yield TrtllmTensor(f"{to}shared_expert.fc.weight", (2 * s, h), shared)
    yield TrtllmTensor(f"{to}shared_expert.proj.weight", (h, s), (f"{of}shared_experts.down_proj.weight",))


def checkpoint_config(
    decoder: Decoder, precision: Precision, weight_only: WeightOnly | None = None
) -> dict[str, Any]:
    """`config.json` of the checkpoint: keywords of 1.2.1's `DeepSeekV1Config`, `MoeConfig` and `Mapping`.

    Raises InvalidInput for sizes that the INT8 kernels don't come in.
    """
    if weight_only is not None:
        h, i = decoder.hidden_size, decoder.moe_intermediate_size
        for size in (h, decoder.intermediate_size, i, decoder.n_shared_experts * i):
            if size % INT8_TILE:
                raise InvalidInput(f"INT8 weights need sizes in multiples of {INT8_TILE}; {size} is none.")
    return {
        "architecture": ARCHITECTURE,
        "dtype": precision,
        "logits_dtype": "float32",
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.num_attention_heads,
        "num_key_value_heads": decoder.num_key_value_heads,
        "head_size": decoder.hidden_size // decoder.num_attention_heads,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "moe_intermediate_size": decoder.moe_intermediate_size,
        "vocab_size": decoder.vocab_size,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": decoder.max_position_embeddings,
        "hidden_act": "swiglu",
        "rotary_base": decoder.rope_theta,
        "rotary_scaling": None,
        "norm_epsilon": decoder.rms_norm_eps,
        "moe": {
            "num_experts": decoder.n_routed_experts,
            "shared_expert_intermediate_size": decoder.n_shared_experts * decoder.moe_intermediate_size,
            "top_k": decoder.num_experts_per_tok,
            "normalization_mode": 0,  # NONE: the softmax over all experts, as it is
        },
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {
            "quant_algo": "W8A16" if weight_only == "int8" else None,
            "kv_cache_quant_algo": None,
        },
    }


def write_checkpoint(checkpoint: Checkpoint, precision: str, out: Path) -> dict[str, Any]:
    """Write the decoder in the export's `precision` (bf16, fp16, int8). Raises InvalidInput as `convert`."""
    convert(
        checkpoint,
        checkpoint.architecture.decoder,
        out,
        precision="float16" if precision == "fp16" else "bfloat16",
        weight_only="int8" if precision == "int8" else None,
        after_tensor=checkpoint.close,  # mapped pages count as resident
    )
    return {"precision": precision}


def convert(
    checkpoint: Tensors,
    decoder: Decoder,
    out: Path,
    *,
    precision: Precision = "bfloat16",
    weight_only: WeightOnly | None = None,
    after_tensor: Callable[[], None] = lambda: None,
) -> int:
    """Write `config.json` and the weights to the folder `out`; returns the weights' bytes.

    Raises InvalidInput for a configuration that the graph doesn't compute, a value beyond float16's range (its
    tensor is named), or too little memory: the library takes all tensors of a file at once.
    """
    if precision not in ("float16", "bfloat16"):
        raise InvalidInput(f"TensorRT-LLM's experts compute in float16 or bfloat16, not {precision}.")
    if weight_only not in (None, "int8"):
        raise InvalidInput(
            f"Weight-only {weight_only} isn't possible for this decoder in TensorRT-LLM {VERSION}; int8 is."
        )
    for name, only in COMPUTED.items():
        if getattr(decoder, name) != only:
            raise InvalidInput(
                f"The decoder's {name} is {getattr(decoder, name)}; TensorRT-LLM's {ARCHITECTURE} has only {only}."
            )
    config = checkpoint_config(decoder, precision, weight_only)
    targets, dtype = list(layout(decoder)), getattr(torch, precision)
    size = sum(math.prod(target.shape) * (target.dtype or dtype).itemsize for target in targets)
    require_memory(size + 1_000_000_000, "Writing the TensorRT-LLM checkpoint")
    weights = {}
    with bar("TensorRT-LLM checkpoint", size, "B") as shown:
        for target in targets:
            rows = [cast(name, checkpoint.read(name), target.dtype or dtype) for name in target.sources]
            weights[target.name] = torch.cat(rows).reshape(target.shape)
            shown.update(weights[target.name].nbytes)
            after_tensor()
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return size


def cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in `dtype`. Raises InvalidInput for a value beyond its range."""
    extremes = torch.stack(tensor.aminmax())
    if not torch.isfinite(extremes.to(dtype)).all():
        largest = extremes.abs().max().item()
        raise InvalidInput(f"The tensor {name!r} holds {largest:.4g}, beyond {dtype}; export in bfloat16.")
    return tensor.to(dtype)
