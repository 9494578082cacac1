"""Fits the linear probes that the counting layers build on: which visual tokens hold text, how large they will be."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from training.batches import BatchSpec, batches
from training.config import DECODER
from training.counting_layers import BLANK_LEVEL, FIRST, SMALL_LEVEL, TEXT_LEVEL, Probes
from training.losses import Trainee
from training.synthetic_page import Recipe

SPECS = (
    BatchSpec(512, 24), BatchSpec(640, 16), BatchSpec(1024, 12, padded=0.3), *[BatchSpec(1280, 8, padded=0.3)] * 2,
    BatchSpec(1024, 12, tiles=(2, 2)), BatchSpec(1024, 6, tiles=(2, 3)), BatchSpec(1024, 6, tiles=(3, 2)),
)  # fmt: skip
ROUNDS = 6
"""Batches of each of `SPECS`."""
RECIPES = (Recipe(margin=2, fill=0.6), Recipe(margin=2, fill=0.6, noise=1.0))
"""In turn. Words at random hold what words seldom do, such as a lone underscore, which hardly shows."""
STEPS, RATE = 2500, 0.02
LOWER = 1.0
"""Taken off all: on pages that the fit hasn't seen, blank tokens come nearer to 0 than those with text."""
LOUD = 3.0
"""Root mean square of a token from which on it shows something."""
READERS = -3
"""The layer, from the end, before which the scale is taken."""


class TokenKind(IntEnum):
    """What a visual token shows."""

    TEXT = 0
    BLANK = 1
    SMALL = 2  # text of a global view beside tiles


LEVELS = torch.tensor([TEXT_LEVEL, BLANK_LEVEL, SMALL_LEVEL])


def fit_probes(trainee: Trainee, seed: int, tokenizer: Tokenizer) -> Probes:
    """Draw pages of all `SPECS`, encode them, and fit both probes."""
    generator = np.random.default_rng([seed, len(SPECS)])
    language: Any = trainee.model.model.language_model
    caught: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = trainee.model.model.multi_modal_projector.register_forward_hook(
        lambda _module, inputs, output: caught.append((inputs[0].flatten(0, 1), output.flatten(0, 1)))
    )
    features, kinds, states, later = [], [], [], []
    with torch.no_grad():
        for index, spec in enumerate(SPECS * ROUNDS):
            recipe = RECIPES[index // len(SPECS) % len(RECIPES)]
            batch = next(batches(generator, spec, recipe, False, tokenizer, count=1))
            caught.clear()
            visual = trainee.visual_tokens(batch)
            shown = batch.characters.flatten(3).any(-1)  # (B, rows, columns)
            columns, rows = spec.grid
            start = language.embed_tokens(torch.zeros(len(visual), 1, dtype=torch.long))
            sequence = torch.cat([start, visual], dim=1)
            hidden = language(
                inputs_embeds=sequence, use_cache=False, output_hidden_states=True
            ).hidden_states
            content = functional.pad(shown, (0, 1)).flatten(1)  # as the tokens stand, newlines included
            far = slice(1, 1 + rows * (columns + 1))
            states.append(sequence[:, far][content])
            later.append(_scale(hidden[READERS])[:, far][content])
            if spec.tiles is not None:
                shown = torch.unflatten(
                    torch.unflatten(shown, 2, (spec.tiles[0], -1)), 1, (spec.tiles[1], -1)
                )
                shown = shown.transpose(2, 3)
                # The global view shows the same lines again, small: they are not counted.
                entering, token = caught[0]
                features.append(entering)
                kinds.append(torch.where(_scale(token[:, :FIRST]) > LOUD, TokenKind.SMALL, TokenKind.BLANK))
            features.append(caught[-1][0])  # of the view that the text is read from
            kinds.append(torch.where(shown.flatten(), TokenKind.TEXT, TokenKind.BLANK))
    hook.remove()
    return Probes(
        fit_text_probe(torch.cat(features), torch.cat(kinds)),
        fit_scale_probe(torch.cat(states), torch.cat(later)),
    )


def fit_scale_probe(states: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """Find weights, float32 (H,), by which a normed state tells its own scale times a later one, over their mean.

    `states` (N, H) enter the decoder; `later` (N,) is their root mean square where the waves are read. The counting
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


def fit_text_probe(features: torch.Tensor, kinds: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    """Find the weights by which a projector tells tokens with text from others: (C + 1,), the last is the bias.

    `features`, float32 (N, C), enter the projector; `kinds`, int64 (N,), are of `TokenKind`, which weigh alike. Values
    beyond the targets, up to twice as far, count as met.
    """
    mean, spread = features.mean(0), torch.cov(features.T)
    spread += 1e-4 * spread.diagonal().mean() * torch.eye(len(spread))
    whiten = torch.linalg.cholesky(torch.linalg.inv(spread))
    inputs = torch.cat([(features - mean) @ whiten, torch.ones(len(features), 1)], dim=1)
    target = LEVELS[kinds]
    weight: torch.Tensor = torch.linalg.lstsq(inputs, target[:, None]).solution[:, 0].requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=RATE)
    sign, scale = target.sign(), 1 / target.abs()
    counts = torch.bincount(kinds, minlength=len(LEVELS)).clamp(min=1)
    share = (len(kinds) / len(LEVELS) / counts)[kinds]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        score = inputs @ weight
        off = functional.relu(sign * (target - score) * scale)
        over = functional.relu(sign * (score - 2 * target) * scale)
        missed = off.square() + 10 * functional.relu(off - 0.4).square() + over.square()
        # One token classified wrongly costs a page its count.
        torch.autograd.backward((share * missed).mean() + 0.03 * functional.relu(off - 0.7).square().sum())
        optimizer.step()
    found = whiten @ weight.detach()[:-1]
    return torch.cat([found, (weight.detach()[-1] - mean @ found - LOWER)[None]])
