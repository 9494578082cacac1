"""The CPU decoder against transformers: logits of a prompt and of tokens that are given, in FP32."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.family import DECODER_PREFIXES, transformers_config
from export.resources import require_memory
from rtprune.decoder.engines.torch.attention import Span, SpanAttention, allocate_kv
from rtprune.decoder.engines.torch.model import TorchDecoder

VISUAL, TEXT, AFTER = 273, 27, 50  # a base page without pruning; 300 tokens in all, then what is decoded
CHUNK = 256
IMAGE_TOKEN_ID = 2  # of no effect where visual tokens come as rows
GAP = 32  # empty places of KV memory before the request's own


@torch.inference_mode()
def teacher_forced(
    model: TorchDecoder,
    ids: NDArray[np.int32],
    visual: NDArray[np.float32],
    after: list[int],
    chunk: int = CHUNK,
    positions: NDArray[np.int64] | None = None,
) -> torch.Tensor:
    """Our logits of the prompt's last token and of each token of `after`: float32 (1 + after, vocabulary).

    The prompt goes in chunks, then token by token, as in serving. ids: int32 (n,), visual token i as
    `vocab_size + i`. visual: float32 (tokens, hidden). positions: int64 (n + after,), None for 0, 1, 2, ...
    """
    config, length = model.config, len(ids) + len(after)
    kv = allocate_kv(
        config.num_hidden_layers,
        config.num_key_value_heads,
        length + GAP,
        config.head_dim,
        model.kv_dtype,
        torch.device("cpu"),
    )
    whole = np.concatenate([ids, np.array(after, np.int32)])
    numbers = torch.arange(length) if positions is None else torch.from_numpy(positions)
    edges = [*range(0, len(ids), chunk), *range(len(ids), length + 1)]
    found = []
    for begin, end in itertools.pairwise(edges):
        attention = SpanAttention(kv, [Span(GAP, end, end - begin)])
        places = torch.arange(GAP + begin, GAP + end)
        embedded = model.embed(whole[begin:end], visual)
        hidden = model.forward(embedded, numbers[begin:end], places, kv, attention)
        if end >= len(ids):
            found.append(model.logits(hidden[end - begin - 1 : end - begin]))
    return torch.cat(found)


@torch.inference_mode()
def transformers_logits(
    checkpoint: Checkpoint, ids: NDArray[np.int32], visual: NDArray[np.float32], after: list[int]
) -> torch.Tensor:
    """The same of transformers' layers, in FP32, one layer in memory at a time: float32 (1 + after, vocabulary).

    Raises InvalidInput for weights that are not finite.
    """
    from transformers.models.unlimited_ocr import modeling_unlimited_ocr as theirs

    config: Any = transformers_config(checkpoint.architecture, IMAGE_TOKEN_ID).text_config
    config._attn_implementation, config._experts_implementation = "sdpa", "eager"
    vocabulary = config.vocab_size
    prompt = torch.from_numpy(np.concatenate([ids, np.array(after, np.int32)]).astype(np.int64))
    is_visual = prompt >= vocabulary
    hidden = checkpoint.read("model.embed_tokens.weight")[prompt.where(~is_visual, 0)].float()
    hidden[is_visual] = torch.from_numpy(visual)[prompt[is_visual] - vocabulary]
    positions = torch.arange(len(prompt))[None]
    step: Any = hidden[None]
    rotary = theirs.UnlimitedOcrTextRotaryEmbedding(config)(step, position_ids=positions)
    for index in range(config.num_hidden_layers):
        layer = theirs.UnlimitedOcrTextDecoderLayer(config, index)
        layer.load_state_dict(layer_weights(checkpoint, f"model.layers.{index}."))
        checkpoint.close()
        # Without a mask its attention is causal.
        step = layer.eval()(step, position_ids=positions, position_embeddings=rotary)
    norm = theirs.UnlimitedOcrTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    norm.load_state_dict({"weight": checkpoint.read("model.norm.weight").float()})
    head = checkpoint.read("lm_head.weight").float()
    logits: torch.Tensor = norm(step[0, len(ids) - 1 :]) @ head.T
    return logits


def layer_weights(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    """One decoder layer's weights in FP32 under the names of transformers' class, which keeps experts in one tensor."""
    names = [name.removeprefix(prefix) for name in checkpoint.names(prefix)]
    experts = [name for name in names if name.startswith("mlp.experts.")]
    weights = {name: checkpoint.read(prefix + name).float() for name in names if name not in set(experts)}
    count = len({name.split(".")[2] for name in experts})
    if count:

        def stacked(part: str) -> torch.Tensor:
            each = (checkpoint.read(f"{prefix}mlp.experts.{n}.{part}_proj.weight") for n in range(count))
            return torch.stack(list(each)).float()

        weights["mlp.experts.gate_up_proj"] = torch.cat([stacked("gate"), stacked("up")], dim=1)
        weights["mlp.experts.down_proj"] = stacked("down")
    return weights


def compare(checkpoint_folder: Path, decoder: Path) -> str:
    """Compare the decoder of `decoder`, computed in FP32, with transformers on the checkpoint it was made of.

    Returns a sentence. Raises InvalidInput for a broken checkpoint or too little memory, EngineError for the decoder.
    """
    checkpoint = Checkpoint.open(checkpoint_folder)
    shape = checkpoint.architecture.decoder
    require_memory(
        4 * checkpoint.parameters(*DECODER_PREFIXES) + 1_000_000_000, "Comparing the decoder in FP32"
    )
    drawn = np.random.default_rng(4)
    vocabulary = shape.vocab_size
    text = drawn.integers(3, vocabulary, TEXT - 1)
    ids = np.array([0, *range(vocabulary, vocabulary + VISUAL), *text], np.int32)
    visual = drawn.normal(size=(VISUAL, shape.hidden_size)).astype(np.float32)
    after = [int(token) for token in drawn.integers(3, vocabulary, AFTER)]
    expected = transformers_logits(checkpoint, ids, visual, after)
    checkpoint.close()
    ours = teacher_forced(TorchDecoder(decoder, torch.float32, torch.device("cpu")), ids, visual, after)
    apart = float((ours - expected).abs().max())
    largest = float(expected.abs().max())
    same = float((ours.argmax(1) == expected.argmax(1)).float().mean())
    return (
        f"{shape.num_hidden_layers} layers, prompt {len(ids)}, then {AFTER} given tokens: logits at most {apart:.1e} "
        f"apart (largest {largest:.2g}), the same first choice in {same:.0%}"
    )
