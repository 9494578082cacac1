"""Grows the initial decoder into the one that ships: 32 hidden dimensions, a head in each layer, two layers in front.

It computes what it did, but for one old head of two layers, which compares lines from there on.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from training.config import DECODER, INITIAL_DECODER
from training.counting_layers import (
    CODE,
    LINE_WAVES,
    ROUTED,
    ROW_WAVES,
    SHARE,
    Dim,
    Probes,
    set_counting_layers,
)
from training.model import new_model

FRONT = DECODER["num_hidden_layers"] - INITIAL_DECODER["num_hidden_layers"]
OLD = INITIAL_DECODER["hidden_size"]
WRITING = ("o_proj.weight", "down_proj.weight", "down_proj", "embed_tokens.weight", "projector.weight")
"""What feeds the residual stream: the new dimensions get nothing at first."""
GAINS = (3.0, 30.0)
"""Norm weights of the waves in the first layer that reads them and later, where the residual stream is larger."""
LINE_GAIN, ROW_GAIN = 90.0, 120.0
"""The same before the attention of the last three, which looks for the place on the page and takes a box's row there:
with less, the row is a faint part of what a head takes, and is learnt slowly."""
MATCH = 3.0
"""Weight by which the new head of each of the last three layers compares lines: about 20 in favour of the right one."""
LINE_HEADS = ((1, 4), (1, 4), (4,))
"""Heads of the last three layers that compare lines: the new one, and one of those whose attention is supervised."""
PAIRS = ((2, 0), (0, 1), (1, 2))
"""Which wave is compared in which pair of the rotary embedding, from the slowest: longer waves bear less turning."""
DISTANCE = 850
"""From a text token back to the visual token it reads, roughly: the rotary embedding is turned back by so much."""


@torch.no_grad()
def grow(
    initial: UnlimitedOcrForConditionalGeneration, probes: Probes, attention: dict[str, str]
) -> UnlimitedOcrForConditionalGeneration:
    """Return a grown model with the weights of `initial`, its first two layers set by `set_counting_layers`.

    `attention` as of `new_model`. The heads that look for the place on the page begin by comparing lines.
    """
    grown = new_model(0, attention)
    torch.manual_seed(0)
    old = initial.state_dict()
    rescale = (OLD / DECODER["hidden_size"]) ** 0.5
    for name, parameter in grown.named_parameters():
        before = _before(name)
        if before not in old:
            continue
        weight = old[before]
        if parameter.shape != weight.shape:
            _spread(name, parameter)
        parameter[tuple(slice(size) for size in weight.shape)] = weight
        if parameter.ndim == 1 and "norm" in name and "language_model" in name:
            parameter[:OLD] = weight * rescale
            parameter[OLD:] = rescale
            if "layers" in name:
                gain = GAINS[0] if f"layers.{FRONT}." in name else GAINS[1]
                parameter[LINE_WAVES + ROW_WAVES] = gain * rescale
                parameter[Dim.LAST] = GAINS[1] * rescale
    language = _language(grown)
    _share_out(_language(initial).layers[0].mlp, language.layers[FRONT].mlp)
    set_counting_layers(grown, probes.text, probes.scale)
    for layer, heads in zip(language.layers[-3:], LINE_HEADS, strict=True):
        layer.input_layernorm.weight[LINE_WAVES] = LINE_GAIN * rescale
        layer.input_layernorm.weight[ROW_WAVES] = ROW_GAIN * rescale
        for head in heads:
            compare_lines(layer.self_attn, language.rotary_emb.inv_freq, head)
    return grown


def _language(model: Any) -> Any:
    return model.model.language_model


def _share_out(dense: Any, sparse: Any) -> None:
    """Give a dense network's neurons to the shared experts and, in equal parts, to two that are always chosen."""
    for parameter in sparse.parameters():
        parameter.zero_()
    gate, up, down = (getattr(dense, f"{name}_proj").weight for name in ("gate", "up", "down"))
    shared, experts = sparse.shared_experts, sparse.experts
    count, size = shared.gate_proj.weight.shape[0], experts.down_proj.shape[2]
    shared.gate_proj.weight[:, :OLD], shared.up_proj.weight[:, :OLD] = gate[:count], up[:count]
    shared.down_proj.weight[:OLD] = down[:, :count]
    for expert in range(2):
        own = slice(count + expert * size, count + (expert + 1) * size)
        experts.gate_up_proj[expert, :, :OLD] = torch.cat([gate[own], up[own]])
        experts.down_proj[expert, :OLD] = down[:, own] / SHARE
        sparse.gate.weight[expert, [Dim.VISUAL, Dim.TEXT]] = ROUTED


def protect_counting_dims(layers: Any) -> None:
    """Let no gradient have `layers` write where the counting layers do: it would drown the waves within one layer."""

    def without(gradient: torch.Tensor) -> torch.Tensor:
        held = gradient.clone()
        held[..., OLD:, :] = 0
        return held

    for layer in layers:
        for name, parameter in layer.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj", "down_proj.weight")):
                parameter.register_hook(without)


def _before(name: str) -> str | None:
    """The parameter's name in the initial model, if it is there; None for the layers that are new."""
    head, found, tail = name.partition("language_model.layers.")
    if not found:
        return name
    index, _, rest = tail.partition(".")
    return None if int(index) < FRONT else f"{head}{found}{int(index) - FRONT}.{rest}"


def _spread(name: str, parameter: torch.Tensor) -> None:
    if name.endswith(WRITING) or parameter.ndim == 1 or "lm_head" in name:
        parameter.zero_()
        if name.endswith(("o_proj.weight", "lm_head.weight")):
            return
    else:
        parameter.normal_(std=0.005)
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            parameter[OLD:].normal_(std=0.5 * OLD**-0.5)


def compare_lines(attention: Any, frequencies: torch.Tensor, head: int) -> None:
    """Have a head score keys of the query's line, each wave in a slow pair of the rotary embedding; set in place.

    `frequencies`, float32 (head_dim / 2,), are the rotary embedding's.
    """
    size = attention.head_dim
    query, key = attention.q_proj.weight, attention.k_proj.weight
    for wave, slow in PAIRS:
        first = head * size + size // 2 - 1 - slow
        second = first + size // 2
        for projection in (query, key):  # nothing else is compared there
            projection[[first, second]] = 0
        cosine, sine = Dim.LINE_CODE + wave, Dim.LINE_CODE + CODE // 2 + wave
        turn = DISTANCE * frequencies[size // 2 - 1 - slow]
        query[first, cosine] = query[second, sine] = MATCH
        key[first, cosine] = key[second, sine] = MATCH * turn.cos()
        key[second, cosine], key[first, sine] = MATCH * turn.sin(), -MATCH * turn.sin()
