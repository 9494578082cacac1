"""DeepSeek-OCR's decoder in PyTorch, written for serving: rows of many requests, KV memory passed in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own abbreviation)
from numpy.typing import NDArray

from rtprune.decoder.engines.torch.attention import Attention, interleave_halves, rotary_table
from rtprune.decoder.engines.torch.experts import DENSE_BYTES, Mlp, MoeLayer, row_multiple
from rtprune.decoder.engines.torch.weights import DecoderConfig, WeightFiles


class _Layer:
    """Weights of one decoder layer, (inputs, outputs); queries, keys and values as one projection."""

    def __init__(
        self,
        files: WeightFiles,
        index: int,
        config: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        dense_bytes: int,
    ) -> None:
        prefix, hidden = f"model.layers.{index}", config.hidden_size
        inner_kv = config.num_key_value_heads * config.head_dim

        def weight(name: str, *shape: int) -> torch.Tensor:
            return files.get(f"{prefix}.{name}.weight", shape, dtype)

        queries = interleave_halves(weight("self_attn.q_proj", hidden, hidden), config.num_attention_heads)
        keys = interleave_halves(weight("self_attn.k_proj", inner_kv, hidden), config.num_key_value_heads)
        values = weight("self_attn.v_proj", inner_kv, hidden)
        self.qkv = torch.cat((queries, keys, values)).to(device).t()
        self.out = weight("self_attn.o_proj", hidden, hidden).to(device).t()
        self.before_attention = weight("input_layernorm", hidden).to(device)
        self.before_mlp = weight("post_attention_layernorm", hidden).to(device)
        self.mlp: Mlp | None = None
        self.moe: MoeLayer | None = None
        if index < config.first_k_dense_replace:
            self.mlp = Mlp(files, f"{prefix}.mlp", hidden, config.intermediate_size, dtype, device)
        else:
            self.moe = MoeLayer(files, f"{prefix}.mlp", config, dtype, device, dense_bytes)


class TorchDecoder:
    """The decoder's computation, without any state of a request.

    The KV memory is FP32 on a CPU whatever the weights are (its attention is several times slower in BF16),
    and has the weights' type on a GPU. dense_bytes: see `MoeLayer`. Raises EngineError for a folder whose config.json
    and weights don't make a decoder.
    """

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, dense_bytes: int = DENSE_BYTES
    ) -> None:
        self.config = config = DecoderConfig.load(folder / "config.json")
        self.dtype, self.device = dtype, device
        self.kv_dtype = torch.float32 if device.type == "cpu" else dtype
        files = WeightFiles(folder)
        table = (config.vocab_size, config.hidden_size)
        self._embedding = files.get("model.embed_tokens.weight", table, dtype).to(device)
        self._head = files.get("lm_head.weight", table, dtype).to(device).t()
        self._norm = files.get("model.norm.weight", (config.hidden_size,), dtype).to(device)
        self._layers = [
            _Layer(files, index, config, dtype, device, dense_bytes)
            for index in range(config.num_hidden_layers)
        ]
        self._groups = config.num_attention_heads // config.num_key_value_heads
        self._rotary = rotary_table(
            config.max_position_embeddings, config.head_dim, config.rope_theta, self._groups, device
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV memory a position takes."""
        heads = self.config.num_key_value_heads * self.config.head_dim
        return 2 * self.config.num_hidden_layers * heads * self.kv_dtype.itemsize

    @property
    def layer_bytes(self) -> int:
        """Bytes of an average layer's attention and active expert weights: what one token must read."""
        c = self.config
        active = (c.num_experts_per_tok + c.n_shared_experts) * c.moe_intermediate_size
        return (4 * c.hidden_size + 3 * active) * c.hidden_size * self.dtype.itemsize

    def embed(self, ids: NDArray[np.int32], visual: NDArray[np.float32]) -> torch.Tensor:
        """Look up the ids, int32 (n,), `vocab_size + i` for row i of `visual`, float32 (tokens, hidden).

        Returns (n, hidden) in the weights' type.
        """
        vocabulary = self.config.vocab_size
        text = np.minimum(ids, vocabulary - 1).astype(np.int64)
        embedded = F.embedding(torch.from_numpy(text).to(self.device), self._embedding)
        at = np.flatnonzero(ids >= vocabulary)
        if at.size:
            rows = np.ascontiguousarray(visual[ids[at] - vocabulary], dtype=np.float32)
            embedded[torch.from_numpy(at).to(self.device)] = torch.from_numpy(rows).to(
                self.device, self.dtype
            )
        return embedded

    def forward(
        self,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        kv: torch.Tensor,
        attention: Attention,
    ) -> torch.Tensor:
        """Run the layers and write keys and values.

        embedded: (rows, hidden). positions: int64 (rows,), for the rotary embedding. slots: int64 (rows,),
        where each row's key and value go in `kv` (see `allocate_kv`). Returns (padded rows, hidden) in the weights'
        type: the first `rows` count, and are the same however many rows go together.
        """
        config = self.config
        rows = embedded.shape[0]
        pad = -rows % row_multiple(self.dtype)
        x = F.pad(embedded, (0, 0, 0, pad))
        shape = (config.hidden_size,)
        heads = (self._groups + 2, config.num_key_value_heads)
        rotation = self._rotary.index_select(0, positions)
        width = config.head_dim
        filler = x.new_zeros((pad, config.hidden_size), dtype=self.kv_dtype) if pad else None
        for index, layer in enumerate(self._layers):
            normed = F.rms_norm(x, shape, layer.before_attention, config.rms_norm_eps)
            qkv = torch.mm(normed, layer.qkv)[:rows].float().view(rows, *heads, width // 2, 2)
            rotated = torch.view_as_real(torch.view_as_complex(qkv) * rotation)
            turned = rotated.flatten(-2).to(self.kv_dtype)  # (rows, groups + 2, kv_heads, head_dim)
            kv[index].index_copy_(2, slots, turned[:, -2:].permute(1, 2, 0, 3))
            queries = turned[:, :-2].reshape(rows, config.num_attention_heads, width)
            attended = attention(index, queries).reshape(rows, -1)
            if filler is not None:
                attended = torch.cat((attended, filler))
            x += torch.mm(attended.to(self.dtype), layer.out)
            normed = F.rms_norm(x, shape, layer.before_mlp, config.rms_norm_eps)
            if layer.moe is not None:
                x += layer.moe(normed, rows)
            elif layer.mlp is not None:
                x += layer.mlp(normed)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Norm and head of (padded rows, hidden) from `forward`. Returns float32 (padded rows, vocabulary)."""
        normed = F.rms_norm(hidden, (self.config.hidden_size,), self._norm, self.config.rms_norm_eps)
        return torch.mm(normed, self._head).float()
