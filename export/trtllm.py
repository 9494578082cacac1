"""Writes the decoder as the checkpoint that TensorRT-LLM 1.2.1's `trtllm-build` reads, tensor by tensor.

The graph is TensorRT-LLM's `DeepseekForCausalLM` (tensorrt_llm/models/deepseek_v1). What its converter does
in memory and with remote code happens here in a stream. Names and orders are those of its convert.py and of
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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from export.safetensors_writer import TensorSpec, WrittenFile, write_safetensors
from export.store import write_json
from rtprune.errors import InvalidInput

Precision = Literal["float16", "bfloat16"]
WeightOnly = Literal["int8"]

VERSION = "1.2.1"
ARCHITECTURE = "DeepseekForCausalLM"
CHUNK_BYTES = 16 * 2**20  # of a tensor at a time; bounds the memory of a conversion
INT8_TILE = 64  # rows and columns that the INT8 kernels' weight layout comes in


class TensorSource(Protocol):
    """What the conversion asks of a checkpoint."""

    def keys(self) -> Iterable[str]:
        """Names of the tensors."""

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def read(self, key: str) -> torch.Tensor:
        """The tensor, on the CPU."""

    def close(self) -> None:
        """Unmap what was read so far; a later read maps it again."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The decoder's sizes, as the checkpoint's `language_config` states them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    expert_intermediate: int
    experts: int
    experts_per_token: int
    shared_experts: int
    vocabulary: int
    positions: int
    rope_theta: float
    norm_epsilon: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DecoderShape:
        """Read a decoder configuration; InvalidInput names the first thing that the graph can't compute."""
        for key, value, wanted in _fixed_properties(config):
            if value != wanted:
                raise InvalidInput(
                    f"The decoder's {key} is {value!r}; TensorRT-LLM's {ARCHITECTURE} has only {wanted!r}."
                )
        try:
            heads = int(config["num_attention_heads"])
            rope = config.get("rope_parameters") or {}
            shape = cls(
                layers=int(config["num_hidden_layers"]),
                hidden=int(config["hidden_size"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                intermediate=int(config["intermediate_size"]),
                expert_intermediate=int(config["moe_intermediate_size"]),
                experts=int(config["n_routed_experts"]),
                experts_per_token=int(config["num_experts_per_tok"]),
                shared_experts=int(config["n_shared_experts"]),
                vocabulary=int(config["vocab_size"]),
                positions=int(config["max_position_embeddings"]),
                rope_theta=float(config.get("rope_theta", rope.get("rope_theta", 10000.0))),
                norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"The decoder's configuration lacks a usable value: {error}.") from error
        if min(shape.experts, shape.shared_experts, shape.layers) < 1:
            raise InvalidInput(f"{ARCHITECTURE} needs routed experts, shared experts and at least one layer.")
        if shape.hidden % shape.heads or shape.heads % shape.kv_heads:
            raise InvalidInput(
                f"{shape.heads} heads with {shape.kv_heads} key-value heads don't divide {shape.hidden}."
            )
        return shape


@dataclass(frozen=True, slots=True)
class TrtllmTensor:
    """One tensor of the TensorRT-LLM checkpoint: its sources, stacked along the rows in this order."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[tuple[str, tuple[int, ...]], ...]


def layout(shape: DecoderShape, dtype: torch.dtype) -> Iterator[TrtllmTensor]:
    """Every tensor of the checkpoint with the source tensors that it is made of and their shapes."""

    def target(name: str, size: tuple[int, ...], *sources: tuple[str, tuple[int, ...]]) -> TrtllmTensor:
        return TrtllmTensor(name, size, dtype, sources)

    h, vocabulary = shape.hidden, (shape.vocabulary, shape.hidden)
    kv = shape.hidden // shape.heads * shape.kv_heads
    yield target("transformer.vocab_embedding.weight", vocabulary, ("model.embed_tokens.weight", vocabulary))
    for index in range(shape.layers):
        to, of = f"transformer.layers.{index}.", f"model.layers.{index}."
        yield target(f"{to}input_layernorm.weight", (h,), (f"{of}input_layernorm.weight", (h,)))
        yield target(
            f"{to}attention.qkv.weight",
            (h + 2 * kv, h),
            (f"{of}self_attn.q_proj.weight", (h, h)),
            (f"{of}self_attn.k_proj.weight", (kv, h)),
            (f"{of}self_attn.v_proj.weight", (kv, h)),
        )
        yield target(f"{to}attention.dense.weight", (h, h), (f"{of}self_attn.o_proj.weight", (h, h)))
        yield target(f"{to}post_layernorm.weight", (h,), (f"{of}post_attention_layernorm.weight", (h,)))
        if index == 0:  # the graph has its one dense layer first, whatever the configuration says
            i = shape.intermediate
            yield target(f"{to}mlp.fc.weight", (i, h), (f"{of}mlp.gate_proj.weight", (i, h)))
            yield target(f"{to}mlp.gate.weight", (i, h), (f"{of}mlp.up_proj.weight", (i, h)))
            yield target(f"{to}mlp.proj.weight", (h, i), (f"{of}mlp.down_proj.weight", (h, i)))
        else:
            yield from _experts(shape, dtype, f"{to}mlp.", f"{of}mlp.")
    yield target("transformer.ln_f.weight", (h,), ("model.norm.weight", (h,)))
    yield target("lm_head.weight", vocabulary, ("lm_head.weight", vocabulary))


def _experts(shape: DecoderShape, dtype: torch.dtype, to: str, of: str) -> Iterator[TrtllmTensor]:
    h, i, e = shape.hidden, shape.expert_intermediate, shape.experts
    router = ((f"{of}gate.weight", (e, h)),)
    yield TrtllmTensor(f"{to}router.weight", (e, h), torch.float32, router)
    up_gate = tuple(
        (f"{of}experts.{n}.{half}_proj.weight", (i, h)) for n in range(e) for half in ("up", "gate")
    )
    yield TrtllmTensor(f"{to}fc.weight", (e, 2 * i, h), dtype, up_gate)
    down = tuple((f"{of}experts.{n}.down_proj.weight", (h, i)) for n in range(e))
    yield TrtllmTensor(f"{to}proj.weight", (e, h, i), dtype, down)
    s = shape.shared_experts * i
    shared = tuple((f"{of}shared_experts.{half}_proj.weight", (s, h)) for half in ("up", "gate"))
    yield TrtllmTensor(f"{to}shared_expert.fc.weight", (2 * s, h), dtype, shared)
    down = ((f"{of}shared_experts.down_proj.weight", (h, s)),)
    yield TrtllmTensor(f"{to}shared_expert.proj.weight", (h, s), dtype, down)


def checkpoint_config(
    shape: DecoderShape, precision: Precision, weight_only: WeightOnly | None = None
) -> dict[str, Any]:
    """`config.json` of the checkpoint: keywords of 1.2.1's `DeepSeekV1Config`, `MoeConfig` and `Mapping`."""
    if weight_only is not None:
        h, i = shape.hidden, shape.expert_intermediate
        for size in (h, shape.intermediate, i, shape.shared_experts * i):
            if size % INT8_TILE:
                raise InvalidInput(f"INT8 weights need sizes in multiples of {INT8_TILE}; {size} is none.")
    return {
        "architecture": ARCHITECTURE,
        "dtype": precision,
        "logits_dtype": "float32",
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_size": shape.hidden // shape.heads,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "moe_intermediate_size": shape.expert_intermediate,
        "vocab_size": shape.vocabulary,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": shape.positions,
        "hidden_act": "swiglu",
        "rotary_base": shape.rope_theta,
        "rotary_scaling": None,
        "norm_epsilon": shape.norm_epsilon,
        "moe": {
            "num_experts": shape.experts,
            "shared_expert_intermediate_size": shape.shared_experts * shape.expert_intermediate,
            "top_k": shape.experts_per_token,
            "normalization_mode": 0,  # NONE: the softmax over all experts, as it is
        },
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {
            "quant_algo": "W8A16" if weight_only == "int8" else None,
            "kv_cache_quant_algo": None,
        },
    }


def convert(
    source: TensorSource,
    config: Mapping[str, Any],
    output: Path,
    *,
    precision: Precision = "bfloat16",
    weight_only: WeightOnly | None = None,
    ignored: tuple[str, ...] = (),
    on_tensor: Callable[[str, int], None] | None = None,
) -> WrittenFile:
    """Write `config.json` and `rank0.safetensors` to the folder `output`; returns the weights' file.

    `config` is the decoder's configuration, `ignored` the prefixes of tensors that aren't the decoder's.
    Raises InvalidInput with the name of a tensor that is missing, unknown, misshapen, not finite, or beyond
    float16's range.
    """
    if precision not in ("float16", "bfloat16"):
        raise InvalidInput(f"TensorRT-LLM's experts compute in float16 or bfloat16, not {precision}.")
    if weight_only not in (None, "int8"):
        raise InvalidInput(
            f"Weight-only {weight_only} isn't possible for this decoder in TensorRT-LLM {VERSION}; int8 is."
        )
    shape = DecoderShape.of(config)
    written_config = checkpoint_config(shape, precision, weight_only)
    targets = {t.name: t for t in layout(shape, getattr(torch, precision))}
    check_tensors(source, targets.values(), ignored)
    output.mkdir(parents=True, exist_ok=True)
    # The weights go before their configuration changes: no crash leaves a pair that doesn't belong together.
    weights = output / "rank0.safetensors"
    weights.unlink(missing_ok=True)
    write_json(output / "config.json", written_config)

    def parts(name: str) -> Iterator[torch.Tensor]:
        for key, _ in targets[name].sources:
            yield from cast_in_chunks(key, source.read(key), targets[name].dtype)
        # Pages of a mapped file stay in this process's memory until they are unmapped.
        source.close()

    specs = {name: TensorSpec(t.dtype, t.shape) for name, t in targets.items()}
    return write_safetensors(weights, specs, parts, metadata={"format": "pt"}, on_tensor=on_tensor)


def check_tensors(source: TensorSource, targets: Iterable[TrtllmTensor], ignored: tuple[str, ...]) -> None:
    """Raise InvalidInput unless the source holds exactly the tensors that `targets` are made of."""
    wanted = {key: shape for target in targets for key, shape in target.sources}
    found = {key for key in source.keys() if not key.startswith(ignored)}  # noqa: SIM118 - not a mapping
    for key, shape in wanted.items():
        if key not in found:
            raise InvalidInput(f"The checkpoint lacks the tensor {key!r}.")
        actual = tuple(source.shape(key))
        if actual != shape:
            raise InvalidInput(
                f"The tensor {key!r} has the shape {actual}; its place in the model is {shape}."
            )
    for key in sorted(found - wanted.keys()):
        raise InvalidInput(f"The checkpoint holds a tensor that this model doesn't have: {key!r}.")


def cast_in_chunks(key: str, tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The tensor's elements in `dtype`, in pieces of about CHUNK_BYTES; InvalidInput if one isn't finite."""
    flat = tensor.reshape(-1)
    step = CHUNK_BYTES // max(tensor.dtype.itemsize, dtype.itemsize)
    for start in range(0, flat.numel(), step):
        piece = flat[start : start + step]
        # The extremes tell as much as every value would, without a copy, in a fortieth of the time.
        extremes = torch.stack(piece.aminmax())
        if not torch.isfinite(extremes).all():
            raise InvalidInput(f"The tensor {key!r} holds values that aren't finite.")
        if not torch.isfinite(extremes.to(dtype)).all():
            largest = extremes.abs().max().item()
            raise InvalidInput(f"The tensor {key!r} holds {largest:.4g}, beyond {dtype}; export in bfloat16.")
        yield piece.to(dtype)


def _fixed_properties(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and the only value that the graph computes, of every property it has no parameter for."""
    for key, wanted in {
        "use_mla": False,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "hidden_act": "silu",
        "rope_scaling": None,
    }.items():
        if key in config:
            yield key, config[key], wanted
    layers = int(config.get("num_hidden_layers", 0))
    if config.get("mlp_layer_types") is not None:
        yield "mlp_layer_types", list(config["mlp_layer_types"]), ["dense"] + ["sparse"] * (layers - 1)
    if config.get("layer_types") is not None:
        yield "layer_types", list(config["layer_types"]), ["full_attention"] * layers
    rope = config.get("rope_parameters") or {}
    yield "rope_type", rope.get("rope_type", "default"), "default"
