"""Reads the decoder's configuration and weights (DeepSeek-OCR's own key names), memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rtprune.errors import EngineError


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape of the decoder, under the names of DeepSeek-OCR's config.json (`language_config`)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    first_k_dense_replace: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    routed_scaling_factor: float = 1.0

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def load(cls, path: Path) -> DecoderConfig:
        """Read config.json. Raises EngineError where it can't be read or asks for what this decoder doesn't compute."""
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            fields: dict[str, Any] = whole.get("language_config") or whole.get("text_config") or whole
            rope = fields.get("rope_parameters") or {}
            unsupported = [
                name
                for name, wrong in (
                    ("use_mla", bool(fields.get("use_mla", False))),
                    ("norm_topk_prob", bool(fields.get("norm_topk_prob", False))),
                    ("topk_method", fields.get("topk_method", "greedy") != "greedy"),
                    ("attention_bias", bool(fields.get("attention_bias", False))),
                    ("rope_scaling", bool(fields.get("rope_scaling"))),
                    ("rope_parameters", rope.get("rope_type", "default") != "default"),
                    ("hidden_act", fields.get("hidden_act", "silu") != "silu"),
                )
                if wrong
            ]
            heads = int(fields["num_attention_heads"])
            config = cls(
                **{
                    name: int(fields[name])
                    for name in (
                        "vocab_size",
                        "hidden_size",
                        "intermediate_size",
                        "moe_intermediate_size",
                        "num_hidden_layers",
                        "n_routed_experts",
                        "n_shared_experts",
                        "num_experts_per_tok",
                        "max_position_embeddings",
                    )
                },
                num_attention_heads=heads,
                num_key_value_heads=int(fields.get("num_key_value_heads") or heads),
                first_k_dense_replace=int(fields.get("first_k_dense_replace", 1)),
                rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
                rope_theta=float(fields.get("rope_theta") or rope.get("rope_theta") or 10000.0),
                routed_scaling_factor=float(fields.get("routed_scaling_factor", 1.0)),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{path} is not a decoder's config.json: {error!r}.") from error
        if unsupported:
            raise EngineError(f"{path} asks for what this decoder doesn't compute: {', '.join(unsupported)}.")
        if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
            raise EngineError(f"{path}: heads don't divide into key-value heads, or have an odd size.")
        return config


class WeightFiles:
    """The tensors of all `*.safetensors` files of a folder, by name, mapped and not read until used.

    Raises EngineError where there is no such file or one can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, Callable[[], torch.Tensor]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                opened: Any = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise EngineError(f"{path} can't be read: {error}.") from error
            names: list[str] = opened.keys()
            for name in names:
                self._tensors[name] = _getter(opened, name)
        if not self._tensors:
            raise EngineError(f"{folder} has no .safetensors file.")

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Tensor `name` of `shape`, in place where the file has `dtype` already.

        Raises EngineError when it is missing or has another shape.
        """
        if name not in self._tensors:
            raise EngineError(f"{self._folder} lacks the tensor {name}.")
        tensor = self._tensors[name]()
        if tuple(tensor.shape) != shape:
            raise EngineError(f"{name} has shape {tuple(tensor.shape)}, the configuration says {shape}.")
        return tensor.to(dtype)


def read_ahead(folder: Path) -> None:
    """Read the weight files once from end to end, so that the first page finds them in the system's cache.

    A mapped file read in the order in which a model touches it costs many small reads. Raises OSError where one can't
    be read.
    """
    block = memoryview(bytearray(2**24))
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def _getter(opened: Any, name: str) -> Callable[[], torch.Tensor]:
    def get() -> torch.Tensor:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor

    return get
