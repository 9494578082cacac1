"""Finds what the counters must know: by what tokens with text are told from others, and how large they will be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from export.reference.batches import View, batches
from export.reference.config import DECODER
from export.reference.counters import BARE, WRITTEN, Marks
from export.reference.losses import Trainee
from export.reference.page import Recipe

VIEWS = (
    View(512, 24), View(640, 16), View(1024, 12, padded=0.3), View(1280, 8, padded=0.3),
    View(1024, 4, tiles=(2, 2)), View(1024, 4, tiles=(2, 3)), View(1024, 4, tiles=(3, 2)),
)  # fmt: skip
STEPS, RATE = 1500, 3e-3
READERS = -3
"""The layer, from the end, before which the scale is taken."""


def find_marks(trainee: Trainee, seed: int, tokenizer: Tokenizer) -> Marks:
    """Draw pages of every view, encode them, and fit what the counters need to know."""
    generator = np.random.default_rng([seed, len(VIEWS)])
    language: Any = trainee.model.model.language_model
    caught: list[torch.Tensor] = []
    hook = trainee.model.model.multi_modal_projector.register_forward_hook(
        lambda _module, inputs, _output: caught.append(inputs[0])
    )
    features, written, states, later = [], [], [], []
    with torch.no_grad():
        for view in VIEWS:
            batch = next(batches(generator, view, Recipe(margin=2), False, tokenizer, pool=1))
            caught.clear()
            visual = trainee.visual_tokens(batch)
            shown = batch.slots.flatten(3).any(-1)  # (B, rows, columns)
            columns, rows = view.grid
            start = language.embed_tokens(torch.zeros(len(visual), 1, dtype=torch.long))
            sequence = torch.cat([start, visual], dim=1)
            hidden = language(
                inputs_embeds=sequence, use_cache=False, output_hidden_states=True
            ).hidden_states
            place = functional.pad(shown, (0, 1)).flatten(1)  # as the tokens stand, newlines included
            content = slice(1, 1 + rows * (columns + 1))
            states.append(sequence[:, content][place])
            later.append(_scale(hidden[READERS])[:, content][place])
            if view.tiles is not None:
                shown = torch.unflatten(
                    torch.unflatten(shown, 2, (view.tiles[0], -1)), 1, (view.tiles[1], -1)
                )
                shown = shown.transpose(2, 3)
            features.append(caught[-1].flatten(0, 1))  # of the view that the text is read from
            written.append(shown.flatten())
    hook.remove()
    return Marks(
        fit_written(torch.cat(features), torch.cat(written)), fit_steady(torch.cat(states), torch.cat(later))
    )


def fit_steady(states: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """Find weights (H,) by which a normed state tells its own scale times a later one, as a share of their mean.

    `states` (N, H) enter the decoder; `later` (N,) is their root mean square where the waves are read. The counters'
    dimensions hardly change a state's scale, and as there are more dimensions, it is smaller by their root.
    """
    own = _scale(states)
    wanted = own * later / (own * later).mean()
    normed = states / own[:, None] * (DECODER["hidden_size"] / states.shape[1]) ** 0.5
    inputs = normed / wanted[:, None]  # what counts is the share by which it is off
    ridge = 1e-3 * inputs.square().sum(0).mean() * torch.eye(states.shape[1])
    solved: torch.Tensor = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.sum(0))
    return solved


def _scale(states: torch.Tensor) -> torch.Tensor:
    return states.square().mean(-1).sqrt()


def fit_written(features: torch.Tensor, written: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    """Find the weights by which a projector tells written tokens from others: (C + 1,), the last is the bias.

    `features` (N, C) enter the projector; `written` (N,) is bool. Values beyond the targets count as met.
    """
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    target = torch.where(written, WRITTEN, BARE)
    weight: torch.Tensor = torch.linalg.lstsq(inputs, target[:, None]).solution[:, 0].requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=RATE)
    sign = torch.where(written, 1.0, -1.0)
    scale = torch.where(written, 1 / WRITTEN, -1 / BARE)
    for _ in range(steps):
        optimizer.zero_grad()
        off = functional.relu(sign * (target - inputs @ weight) * scale)
        over = functional.relu(sign * (inputs @ weight - 2 * target) * scale)
        torch.autograd.backward(
            off.square().mean() + 10 * functional.relu(off - 0.4).square().mean() + over.square().mean()
        )
        optimizer.step()
    return weight.detach()
