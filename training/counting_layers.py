"""Sets the decoder's first two layers so that they count lines and rows exactly, which training finds only roughly.

Reading a long page fails where the reader loses its line. Attention can count: a query that attends with equal weight
to the start token and to n marked tokens takes 1 / (1 + n) of what the start token carries. Layer 0 marks, layer 1
counts and writes the count as waves; both stay as they are set here. What they tell:

* lines: visual tokens count the tokens that begin a line of text (the token before holds none), text tokens the
  newlines that end one. Equal counts mean the same line; pruning, blank lines and boxes don't matter.
* rows: both count the layout's newlines: a visual token knows its row on the page, a text token how many there are.
* last: text tokens also count the lines on the page, and so know whether the one that they write is the last.

Marked tokens get the attention score 0, whatever their norm; all others a large negative one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from scipy.optimize import linprog
from torch.nn import functional
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from training.labels import DET_END, NEWLINE

LINE_PERIODS, ROW_PERIODS = (4, 3, 5, 48), (4, 8, 16, 48)
"""Lines or rows after which a wave repeats. Lines are compared: waves of 3, 4 and 5 agree in neighbours least."""
MOST = 48
"""Largest count: rows of 30 with those of the global view behind them."""
CODE = 2 * len(ROW_PERIODS)
FIRST = 128
"""The hidden dimensions from here on belong to the counting layers."""


class Dim(IntEnum):
    """What the counting layers' hidden dimensions hold."""

    VISUAL = FIRST  # 0.5 in visual tokens
    TEXT = FIRST + 1  # 1 in text tokens and the start token
    HAS_TEXT = FIRST + 2  # visual tokens: positive where text is, negative elsewhere
    LINE_END = FIRST + 3  # text tokens: positive in a newline and in the start token, negative elsewhere
    EXCLUDES_NEXT = FIRST + 4  # positive: the next token can't be marked
    START = FIRST + 5  # the start token alone
    NOT_ROW_END = FIRST + 6  # positive in all but the layout's newlines and the start token
    EXCLUDED = FIRST + 7  # EXCLUDES_NEXT of the token before
    BLANK = FIRST + 8  # positive in visual tokens without text
    UNCOUNTED = FIRST + 9  # 0 in tokens that count as a line, else positive
    LINES = FIRST + 10  # 1 / (1 + lines)
    ROWS = FIRST + 11  # 1 / (1 + rows)
    LINE_CODE = FIRST + 12  # waves of the lines, text and visual alike
    ROW_CODE = FIRST + 12 + CODE  # waves of the rows
    BOTH = FIRST + 12 + 2 * CODE  # text tokens: 1 / (1 + lines begun + lines on the page)
    LAST = FIRST + 13 + 2 * CODE  # text tokens: 1 from where the page's last line is being written, else 0
    ROW_PARITY = FIRST + 14 + 2 * CODE  # wave of the rows: 1 in even ones, -1 in odd ones
    ROW_THIRD = FIRST + 15 + 2 * CODE  # wave of the rows, period 3: its sine


LINE_WAVES: list[int] = [*range(Dim.LINE_CODE, Dim.LINE_CODE + CODE)]
ROW_WAVES: list[int] = [*range(Dim.ROW_CODE, Dim.ROW_CODE + CODE), Dim.ROW_PARITY, Dim.ROW_THIRD]
"""The dimensions of the waves. On pages of 20 and 30 rows the last two of the rows' tell edges' digits, which longer
waves tell only by their products."""


@dataclass(frozen=True)
class Probes:
    """Linear probes of an encoder and the decoder behind it that `set_counting_layers` builds on, see `probes.py`."""

    text: torch.Tensor  # (C + 1,) weights and bias by which a projector tells tokens with text
    scale: torch.Tensor  # (FIRST,) weights by which a normed state tells how large it will be, about 1


TEXT_LEVEL, BLANK_LEVEL, SMALL_LEVEL = 12.0, -1.2, -8.0
"""`Dim.HAS_TEXT` in visual tokens with text, without, and with small text that isn't read; their root mean squares are
about 15, 1 and 15."""
TEXT_SCALE = 3.0
"""Root mean square of text embeddings, to which they are scaled."""
VISUAL_CODE, TEXT_CODE = 4.0, 1.0
"""Amplitude of the waves."""
UP = 0.15
"""What a neuron of the waves is multiplied with."""
SHARPNESS = 1.2
"""How far a wave's pieces are apart, in units of their rounding."""
ROUTED, SHARE = 1e4, 0.5
"""Router weight that leaves no doubt, and what each of the two experts that it chooses alike is weighted with."""
STEP = 131072.0
"""Sharpness of `Dim.LAST`: on the last of 30 lines, 2 * BOTH - LINES is 1 / 1891 above 0."""
_FAR = 4000
"""Most tokens between two that are compared."""


@torch.no_grad()
def set_counting_layers(
    model: UnlimitedOcrForConditionalGeneration, text_probe: torch.Tensor, scale_probe: torch.Tensor
) -> None:
    """Set the first two layers of `model` and what feeds them, in place, so that they count.

    The probes are those of `Probes`, float32: `text_probe` (C + 1,), `scale_probe` (FIRST,).
    """
    core: Any = model.model
    tokens = core.language_model.embed_tokens.weight
    tokens[:, :FIRST] *= TEXT_SCALE / tokens[:, :FIRST].square().mean(1, keepdim=True).sqrt().clamp(min=1e-3)
    tokens[:, FIRST:] = 0
    start = 0
    tokens[:, Dim.TEXT], tokens[:, Dim.NOT_ROW_END] = 1.0, 1.0
    tokens[start, Dim.NOT_ROW_END] = 0.0
    tokens[:, Dim.LINE_END], tokens[:, Dim.EXCLUDES_NEXT] = -1.5, -1.5
    tokens[[NEWLINE, start], Dim.LINE_END] = 1.5
    tokens[[NEWLINE, DET_END], Dim.EXCLUDES_NEXT] = 1.5
    tokens[start, Dim.START] = 4.0
    weight, bias = core.multi_modal_projector.weight, core.multi_modal_projector.bias
    weight[FIRST:], bias[FIRST:] = 0, 0
    for dim in (Dim.HAS_TEXT, Dim.EXCLUDES_NEXT):
        weight[dim], bias[dim] = text_probe[:-1], text_probe[-1]
    bias[Dim.VISUAL], bias[Dim.NOT_ROW_END] = 0.5, 0.5
    for layout, rowless in ((core.image_newline, 0.0), (core.view_separator, 0.5)):
        layout[:FIRST] *= 4
        layout[FIRST:] = 0
        layout[Dim.VISUAL], layout[Dim.HAS_TEXT], layout[Dim.EXCLUDES_NEXT] = 0.5, BLANK_LEVEL, BLANK_LEVEL
        layout[Dim.NOT_ROW_END] = rowless
    mark, count = core.language_model.layers[:2]
    for layer in (mark, count):
        for parameter in layer.parameters():
            parameter.zero_()
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.fill_(1.0)
    frequencies = core.language_model.rotary_emb.inv_freq
    _set_marks(mark, frequencies)
    _set_counts(count)
    _calibrate(model)
    set_waves(count, scale_probe)
    set_last(count)


def _set_marks(layer: Any, frequencies: torch.Tensor) -> None:
    """Layer 0: fetch EXCLUDES_NEXT of the token before, then find the tokens that don't count."""
    attention, half = layer.self_attn, len(frequencies)
    # Score 0 at distance 1 and negative at every other: waves that meet at 1, less their sum.
    distances = torch.cat([torch.zeros(1), torch.arange(2, _FAR)])
    steady = torch.cos(frequencies[-1] * distances)
    drop = steady[:, None] - torch.cos((distances - 1)[:, None] * frequencies[:-1])  # (D, half - 1)
    size = half - 1
    solved = linprog(
        [0.0] * size + [-1.0],
        A_ub=torch.cat([-drop, torch.ones(len(drop), 1)], 1).numpy(),
        b_ub=[0.0] * len(drop),
        A_eq=[[1.0] * size + [0.0]],
        b_eq=[1.0],
        bounds=[(0, 1)] * size + [(None, None)],
    )
    share = torch.tensor(solved.x[:-1], dtype=torch.float32)
    gain = math.sqrt(8e4 / float(solved.x[-1]) * attention.head_dim**0.5 / 5)
    last = half - 1
    for dim, part in ((Dim.VISUAL, 1.0), (Dim.TEXT, 0.2)):  # text tokens have a smaller norm
        for pair in range(half):
            root = gain * part * (1.0 if pair == last else float(share[pair].clamp(min=0)) ** 0.5)
            turn, sign = float(frequencies[pair]), -1.0 if pair == last else 1.0
            attention.q_proj.weight[pair, dim] = root
            attention.k_proj.weight[pair, dim] = sign * root * math.cos(turn)
            attention.k_proj.weight[pair + half, dim] = sign * root * math.sin(turn)
    attention.v_proj.weight[0, Dim.EXCLUDES_NEXT] = 1.0
    attention.o_proj.weight[Dim.EXCLUDED, 0] = 2.0
    mlp = layer.mlp
    # SiLU dips below 0 beside 0, and a token that ends below 0 draws all attention: here gate and input have one sign.
    # The dip of the next neuron is small beside what this one gives to all but tokens with text, where it is next to 0.
    mlp.gate_proj.weight[0, Dim.HAS_TEXT] = -1000.0
    mlp.up_proj.weight[0, Dim.HAS_TEXT] = -1.0
    mlp.gate_proj.weight[1, Dim.EXCLUDED] = 8000.0
    mlp.up_proj.weight[1, Dim.VISUAL], mlp.up_proj.weight[1, Dim.TEXT] = 1.0, 0.2
    mlp.gate_proj.weight[2, Dim.LINE_END] = -60.0
    mlp.up_proj.weight[2, Dim.TEXT] = 0.2
    mlp.down_proj.weight[Dim.BLANK, 0] = 1.5e-4
    mlp.down_proj.weight[Dim.UNCOUNTED, 0:3] = torch.tensor([1.5e-4, 1.5e-4, 0.01])


def _set_counts(layer: Any) -> None:
    """Layer 1's attention: three heads that share the start token's value among it and the marked tokens."""
    attention, size = layer.self_attn, layer.self_attn.head_dim
    for head, unmarked in ((0, Dim.UNCOUNTED), (1, Dim.NOT_ROW_END), (2, Dim.UNCOUNTED)):
        slow = head * size + size // 2 - 1  # first half of the slowest pair
        attention.q_proj.weight[slow, Dim.VISUAL] = 1e3
        attention.q_proj.weight[slow, Dim.TEXT] = 1e2
        attention.k_proj.weight[slow, unmarked] = -1e2 if head == 1 else -1e5
        attention.v_proj.weight[head * size, Dim.START] = 1.0
    other = size // 2 - 2  # head 0, the next slowest pair: text doesn't count visual tokens
    attention.q_proj.weight[other, Dim.TEXT] = 1e3
    attention.k_proj.weight[other, Dim.VISUAL] = -1e2


def _calibrate(model: UnlimitedOcrForConditionalGeneration) -> None:
    """Have the counts come out as 1 / (1 + n): divide by what the start token's value is there."""
    language: Any = model.model.language_model
    layer = language.layers[1]
    size = layer.self_attn.head_dim
    start = language.embed_tokens(torch.zeros(1, 1, dtype=torch.long))
    caught: list[torch.Tensor] = []
    hook = layer.input_layernorm.register_forward_hook(lambda _m, _i, out: caught.append(out))
    language(inputs_embeds=start, use_cache=False)
    hook.remove()
    value = float(caught[0][0, 0, Dim.START])
    for head, count in enumerate((Dim.LINES, Dim.ROWS, Dim.BOTH)):
        layer.self_attn.o_proj.weight[count, head * size] = 1 / value


def set_waves(layer: Any, scale_probe: torch.Tensor) -> None:
    """Layer 1's experts turn 1 / (1 + n) into waves of n: two for visual tokens and two for text, lines and rows.

    `scale_probe`, float32 (FIRST,), is that of `Probes`; the layer is set in place.
    """
    experts, router = layer.mlp.experts, layer.mlp.gate.weight
    size = experts.down_proj.shape[2]
    parts = (
        (Dim.LINES, LINE_WAVES, Dim.VISUAL),
        (Dim.ROWS, ROW_WAVES, Dim.VISUAL),
        (Dim.LINES, LINE_WAVES, Dim.TEXT),
        (Dim.ROWS, ROW_WAVES, Dim.TEXT),
    )
    counts = torch.arange(0, MOST + 1, dtype=torch.float64)
    extra = torch.stack([torch.cos(math.pi * counts), torch.sin(2 * math.pi / 3 * counts)], dim=1)
    waves = {
        Dim.LINES: _waves(counts, LINE_PERIODS),
        Dim.ROWS: torch.cat([_waves(counts, ROW_PERIODS), extra], dim=1),
    }
    knots = 1 / (1 + torch.linspace(0.0, MOST, size))
    gaps = torch.cat([knots[:1] - knots[1:2], knots[:-1] - knots[1:]])
    for expert, (count, dims, kind) in enumerate(parts):
        router[expert, kind] = ROUTED
        visual = kind == Dim.VISUAL
        # What the kind's mark is, and the root mean squares at which its tokens come.
        one, scales = (0.5, torch.linspace(7.0, 18.5, 12)) if visual else (1.0, torch.linspace(3.0, 3.3, 4))
        gate, up = experts.gate_up_proj[expert].chunk(2)
        sharp = SHARPNESS * float(scales.mean()) / gaps
        gate[:, count], gate[:, kind] = -sharp, sharp * knots / one
        if visual:
            gate[:, Dim.BLANK] = -1e6
            up[:, : len(scale_probe)] = UP * scale_probe
        else:
            up[:, kind] = UP * float(scales.mean())
        # Weights as they are after rounding to the format that ships.
        rounded = gate.bfloat16().double()
        scale = scales.double().repeat_interleave(len(counts))[:, None]
        inside = (
            rounded[:, count] / (1 + counts.repeat(len(scales))[:, None]) + rounded[:, kind] * one
        ) / scale
        # The scale probe makes up for the scale of the token, which differs much between visual ones only.
        basis = functional.silu(inside) * (UP * (scale if visual else scales.mean()) / scales.mean())
        wanted = waves[count].repeat(len(scales), 1) * (VISUAL_CODE if visual else TEXT_CODE)
        ridge = 1e-6 * torch.eye(size, dtype=torch.float64) * basis.square().sum(0).mean()
        solved = torch.linalg.solve(basis.T @ basis + ridge, basis.T @ wanted)
        experts.down_proj[expert, dims] = solved.T.float() / SHARE


def _waves(counts: torch.Tensor, periods: tuple[int, ...]) -> torch.Tensor:
    """Cosines and sines of `counts` (N,): (N, CODE)."""
    angles = 2 * math.pi * counts[:, None] / torch.tensor(periods)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def set_last(layer: Any) -> None:
    """Layer 1's shared experts: a step where 2 * BOTH - LINES rises above 0.

    While line n of N is written (the prompt begins with a newline, so n newlines were counted), that is
    (1 + n - N) / ((1 + n + N)(1 + n)): 0 on the last line but one, negative before.
    """
    shared = layer.mlp.shared_experts
    # The two neurons' difference rises from 0 to 4.
    for neuron, (height, sign) in enumerate(((-4.0, 1.0), (-8.0, -1.0))):
        shared.gate_proj.weight[neuron, Dim.BOTH] = 2 * STEP
        shared.gate_proj.weight[neuron, Dim.LINES] = -STEP
        shared.gate_proj.weight[neuron, Dim.TEXT] = height * TEXT_SCALE
        shared.up_proj.weight[neuron, Dim.TEXT] = TEXT_SCALE
        shared.down_proj.weight[Dim.LAST, neuron] = sign / 4
