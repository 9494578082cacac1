"""Finds what the counters must know: by what tokens with text are told from others, and how large they will be."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from training.batches import View, batches
from training.config import DECODER
from training.counters import BARE, FAINT, FIRST, WRITTEN, Marks
from training.losses import Trainee
from training.page import Recipe

VIEWS = (
    View(512, 24), View(640, 16), View(1024, 12, padded=0.3), *[View(1280, 8, padded=0.3)] * 2,
    View(1024, 12, tiles=(2, 2)), View(1024, 6, tiles=(2, 3)), View(1024, 6, tiles=(3, 2)),
)  # fmt: skip
ROUNDS = 6
"""Batches of each view."""
RECIPES = (Recipe(margin=2, fill=0.6), Recipe(margin=2, fill=0.6, noise=1.0))
"""In turn. Words at random hold what words seldom do, such as a lone underscore, which hardly shows."""
STEPS, RATE = 2500, 0.02
LOWER = 1.0
"""Taken off all: on pages that the fit hasn't seen, blank tokens come nearer to 0 than written ones."""
LOUD = 3.0
"""Root mean square of a token from which on it shows something."""
READERS = -3
"""The layer, from the end, before which the scale is taken."""


class Kind(IntEnum):
    """What a visual token shows."""

    WRITTEN = 0
    BLANK = 1
    SMALL = 2  # text of a global view beside tiles


TARGETS = torch.tensor([WRITTEN, BARE, FAINT])


def find_marks(trainee: Trainee, seed: int, tokenizer: Tokenizer) -> Marks:
    """Draw pages of every view, encode them, and fit what the counters need to know."""
    generator = np.random.default_rng([seed, len(VIEWS)])
    language: Any = trainee.model.model.language_model
    caught: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = trainee.model.model.multi_modal_projector.register_forward_hook(
        lambda _module, inputs, output: caught.append((inputs[0].flatten(0, 1), output.flatten(0, 1)))
    )
    features, kinds, states, later = [], [], [], []
    with torch.no_grad():
        for index, view in enumerate(VIEWS * ROUNDS):
            recipe = RECIPES[index // len(VIEWS) % len(RECIPES)]
            batch = next(batches(generator, view, recipe, False, tokenizer, pool=1))
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
                # The global view shows the same lines again, small: they are not counted.
                entering, token = caught[0]
                features.append(entering)
                kinds.append(torch.where(_scale(token[:, :FIRST]) > LOUD, Kind.SMALL, Kind.BLANK))
            features.append(caught[-1][0])  # of the view that the text is read from
            kinds.append(torch.where(shown.flatten(), Kind.WRITTEN, Kind.BLANK))
    hook.remove()
    return Marks(
        fit_written(torch.cat(features), torch.cat(kinds)), fit_steady(torch.cat(states), torch.cat(later))
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


def fit_written(features: torch.Tensor, kinds: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    """Find the weights by which a projector tells written tokens from others: (C + 1,), the last is the bias.

    `features` (N, C) enter the projector; `kinds` (N,) are of `Kind`, which weigh alike. Values beyond the targets, up
    to twice as far, count as met.
    """
    mean, spread = features.mean(0), torch.cov(features.T)
    spread += 1e-4 * spread.diagonal().mean() * torch.eye(len(spread))
    whiten = torch.linalg.cholesky(torch.linalg.inv(spread))
    inputs = torch.cat([(features - mean) @ whiten, torch.ones(len(features), 1)], dim=1)
    target = TARGETS[kinds]
    weight: torch.Tensor = torch.linalg.lstsq(inputs, target[:, None]).solution[:, 0].requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=RATE)
    sign, scale = target.sign(), 1 / target.abs()
    counts = torch.bincount(kinds, minlength=len(TARGETS)).clamp(min=1)
    share = (len(kinds) / len(TARGETS) / counts)[kinds]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        told = inputs @ weight
        off = functional.relu(sign * (target - told) * scale)
        over = functional.relu(sign * (told - 2 * target) * scale)
        missed = off.square() + 10 * functional.relu(off - 0.4).square() + over.square()
        # One token told wrongly costs a page its count.
        torch.autograd.backward((share * missed).mean() + 0.03 * functional.relu(off - 0.7).square().sum())
        optimizer.step()
    found = whiten @ weight.detach()[:-1]
    return torch.cat([found, (weight.detach()[-1] - mean @ found - LOWER)[None]])
