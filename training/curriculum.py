"""The reference model's training plan: in order, what pages each stage shows, for how many steps, at what rate."""

from __future__ import annotations

from dataclasses import dataclass

from training.batches import BatchSpec
from training.synthetic_page import Recipe


@dataclass(frozen=True)
class Share:
    """One kind of batch of a stage and how often it comes."""

    weight: float
    spec: BatchSpec
    recipe: Recipe
    grounded: float = 0.0  # share of its batches that carry the grounding prompt


@dataclass(frozen=True)
class Stage:
    """A stretch of training. The rate falls from `rates[0]` to `rates[1]` along half a cosine."""

    name: str
    steps: int
    rates: tuple[float, float]
    shares: tuple[Share, ...]
    # text, characters, attention, norms, coordinates
    loss_weights: tuple[float, float, float, float, float] = (1.0, 1.0, 0.3, 0.2, 0.3)
    warmup: int = 0
    positions: bool = False  # begins with `add_positions`
    grows: bool = False  # begins with `grow`, if that was not done; from then on the encoder is left as it is


LATTICE = Recipe()
ALIGNED = Recipe(margin=2)
BLOCKS = Recipe(margin=2, block_lines=4, short=1.0, fill=0.8)
"""Many short blocks: more boxes."""
NUDGED = Recipe(jitter=6)
PATCHES = Recipe(jitter=63, step=16)
HALVES = Recipe(jitter=63, step=8)
SHIFTED = Recipe(jitter=63, margin=2)
NEAR = Recipe(cell_width=(28, 38), height_ratio=(1.95, 2.2), jitter=63, margin=2)

READING = (1.0, 0.3, 1.0, 0.2, 1.0)
"""Loss weights once characters are seen well: now the place on the page matters."""
GROWN = (1.5, 0.0, 1.0, 0.0, 0.0)
"""Loss weights of the grown decoder, behind an encoder that stays as it is."""
TINY = BatchSpec(512, 16, fresh=0.2, pruned=0.1)
SMALL = BatchSpec(640, 12, fresh=0.2, padded=0.05, pruned=0.1)
BASE = BatchSpec(1024, 6, fresh=0.1, padded=0.3, pruned=0.1)
LARGE = BatchSpec(1280, 4, fresh=0.1, padded=0.3, pruned=0.1)


def tiled(columns: int, rows: int, batch: int) -> BatchSpec:
    """Batches of `batch` pages of gundam mode, with columns x rows tiles."""
    return BatchSpec(1024, batch, tiles=(columns, rows), fresh=0.1, pruned=0.1)


def aligned(*shares: tuple[float, BatchSpec, float], recipe: Recipe = ALIGNED) -> tuple[Share, ...]:
    """Shares of pages on the grid: weight, view, share of its batches that carry the grounding prompt."""
    return tuple(Share(weight, spec, recipe, grounded) for weight, spec, grounded in shares)


SERVED = (TINY, SMALL, BASE, LARGE, tiled(2, 2, 4), tiled(2, 3, 3), tiled(3, 2, 3))
"""Batches of every mode's pages, gundam's last."""


def everywhere(
    weights: tuple[float, ...], grounded: tuple[float, ...], recipe: Recipe = ALIGNED
) -> tuple[Share, ...]:
    """Shares of pages on the grid for each of `SERVED`."""
    return aligned(*zip(weights, SERVED, grounded, strict=True), recipe=recipe)


def off_grid(weight: float, grounded: float) -> Share:
    """The share of tiny pages off the grid that keeps what was learnt of them."""
    return Share(weight, BatchSpec(512, 12, fresh=0.3), SHIFTED, grounded)


FROZEN = (
    BatchSpec(1024, 3, padded=0.3, pruned=0.1, prompts=2, frozen=True),
    BatchSpec(1280, 2, padded=0.3, pruned=0.1, prompts=2, frozen=True),
    BatchSpec(1024, 2, tiles=(2, 2), pruned=0.1, prompts=2, frozen=True),
    BatchSpec(1024, 1, tiles=(2, 3), pruned=0.1, prompts=2, frozen=True),
    BatchSpec(1024, 1, tiles=(3, 2), pruned=0.1, prompts=2, frozen=True),
)
"""Base, large and gundam with the encoder left out of the gradient, each batch read with both prompts."""


def frozen(weights: tuple[float, ...], recipe: Recipe) -> tuple[Share, ...]:
    """Shares of each of `FROZEN`: those without tiles show pages of `recipe`, those with tiles pages on the grid."""
    return tuple(
        Share(weight, spec, ALIGNED if spec.tiles else recipe)
        for weight, spec in zip(weights, FROZEN, strict=True)
    )


STAGES = (
    Stage("lattice", 300, (2e-3, 2e-3), (Share(1.0, BatchSpec(448, 16), LATTICE),), warmup=100),
    Stage(
        "shifted",
        500,
        (2e-3, 2e-3),
        (
            Share(0.15, BatchSpec(448, 16), LATTICE),
            Share(0.3, BatchSpec(448, 16), PATCHES),
            Share(0.2, BatchSpec(448, 16), NUDGED),
            Share(0.15, BatchSpec(448, 16), HALVES),
            Share(0.1, BatchSpec(512, 12), PATCHES),
            Share(0.1, BatchSpec(448, 16), SHIFTED),
        ),
    ),
    Stage(
        "mixed",
        400,
        (2e-3, 1.9e-3),
        (
            Share(0.10, BatchSpec(448, 16), PATCHES),
            Share(0.12, BatchSpec(448, 16), HALVES),
            Share(0.06, BatchSpec(448, 16), NUDGED),
            Share(0.25, BatchSpec(448, 16), SHIFTED, grounded=0.1),
            Share(0.14, BatchSpec(512, 12, padded=0.2), SHIFTED, grounded=0.2),
            Share(0.12, BatchSpec(640, 8, padded=0.2), SHIFTED, grounded=0.2),
            Share(0.07, BatchSpec(640, 8), ALIGNED, grounded=0.2),
            Share(0.14, BatchSpec(1024, 3, frozen=True, prompts=2), ALIGNED, grounded=0.2),
        ),
    ),
    Stage(
        "broad",
        580,
        (1.9e-3, 1.4e-3),
        (
            Share(0.22, BatchSpec(448, 16), SHIFTED, grounded=0.2),
            Share(0.08, BatchSpec(448, 16), NEAR, grounded=0.2),
            Share(0.16, BatchSpec(512, 12, padded=0.2), SHIFTED, grounded=0.2),
            Share(0.06, BatchSpec(512, 12, padded=0.2), NEAR, grounded=0.2),
            Share(0.18, BatchSpec(640, 8, padded=0.2), SHIFTED, grounded=0.2),
            Share(0.05, BatchSpec(640, 8), ALIGNED, grounded=0.2),
            Share(0.08, BatchSpec(1024, 3, frozen=True, prompts=2), ALIGNED, grounded=0.2),
            Share(0.08, BatchSpec(1024, 3, frozen=True, padded=0.3), SHIFTED, grounded=0.2),
            Share(0.04, BatchSpec(1280, 2, frozen=True, padded=0.3), SHIFTED, grounded=0.2),
            Share(0.05, BatchSpec(1024, 2, tiles=(2, 2), frozen=True, prompts=2), ALIGNED, grounded=0.2),
        ),
        loss_weights=(1.0, 1.0, 0.6, 0.2, 0.3),
    ),
    Stage(
        "settle",
        370,
        (1.5e-3, 1.3e-3),
        (
            Share(0.14, BatchSpec(448, 16, pruned=0.15), SHIFTED, grounded=0.25),
            Share(0.24, BatchSpec(512, 12, padded=0.1, pruned=0.15), SHIFTED, grounded=0.25),
            Share(0.06, BatchSpec(512, 12), NEAR, grounded=0.25),
            Share(0.22, BatchSpec(640, 8, padded=0.1, pruned=0.15), SHIFTED, grounded=0.25),
            Share(0.03, BatchSpec(640, 8), ALIGNED, grounded=0.25),
            *frozen((0.18, 0.05, 0.05, 0.02, 0.01), SHIFTED),
        ),
        loss_weights=(1.0, 1.0, 0.6, 0.2, 0.3),
    ),
    Stage(
        "finish",
        300,
        (1.3e-3, 1.2e-3),
        (
            Share(0.05, BatchSpec(448, 10, pruned=0.1, prompts=2), SHIFTED),
            Share(0.30, BatchSpec(512, 8, padded=0.05, pruned=0.1, prompts=2), SHIFTED),
            Share(0.03, BatchSpec(512, 8, prompts=2), NEAR),
            Share(0.33, BatchSpec(640, 6, padded=0.05, pruned=0.1, prompts=2), SHIFTED),
            *frozen((0.17, 0.04, 0.05, 0.02, 0.01), SHIFTED),
        ),
        loss_weights=(1.0, 0.7, 1.0, 0.2, 0.3),
    ),
    Stage(
        "align",
        520,
        (1.2e-3, 2e-5),
        (
            Share(0.30, BatchSpec(512, 8, pruned=0.1, prompts=2), ALIGNED),
            Share(0.28, BatchSpec(640, 6, padded=0.05, pruned=0.1, prompts=2), ALIGNED),
            Share(0.03, BatchSpec(512, 8, prompts=2), SHIFTED),
            Share(0.03, BatchSpec(640, 6, prompts=2), SHIFTED),
            *frozen((0.18, 0.01, 0.02, 0.01, 0.005), ALIGNED),
        ),
        loss_weights=(1.0, 0.7, 1.0, 0.2, 0.3),
    ),
    Stage(
        "place",
        3100,
        (1.2e-3, 1.2e-3),
        (
            *aligned((0.20, TINY, 0.35), (0.25, SMALL, 0.35), (0.33, BASE, 0.3), (0.06, LARGE, 0.2)),
            *aligned((0.05, tiled(2, 2, 3), 0.2), (0.02, tiled(2, 3, 2), 0.2), (0.01, tiled(3, 2, 2), 0.2)),
            off_grid(0.08, 0.2),
        ),
        loss_weights=READING,
        positions=True,
    ),
    Stage(
        "read",
        1350,
        (1.2e-3, 2e-5),
        (
            *everywhere((0.16, 0.20, 0.30, 0.13, 0.07, 0.06, 0.05), (0.4, 0.4, 0.4, 0.3, 0.3, 0.3, 0.3)),
            off_grid(0.06, 0.3),
        ),
        loss_weights=READING,
    ),
    Stage(
        "long",
        6700,
        (1.1e-3, 2e-5),
        (
            *everywhere((0.04, 0.07, 0.15, 0.22, 0.13, 0.18, 0.18), (0.4, 0.4, 0.4, 0.35, 0.3, 0.3, 0.3)),
            off_grid(0.03, 0.3),
        ),
        loss_weights=(1.5, 0.3, 1.0, 0.2, 2.0),
    ),
    Stage(
        "lines",
        2750,
        (1.2e-3, 1e-5),
        (
            *everywhere((0.07, 0.09, 0.20, 0.22, 0.12, 0.14, 0.14), (0.45, 0.45, 0.45, 0.45, 0.4, 0.4, 0.4)),
            off_grid(0.02, 0.3),
        ),
        loss_weights=GROWN,
        warmup=50,
        grows=True,
    ),
    Stage(
        "exact",
        4300,
        (1e-3, 1e-5),
        (
            *everywhere((0.07, 0.12, 0.20, 0.20, 0.11, 0.14, 0.15), (0.8,) * 7),
            off_grid(0.01, 0.3),
        ),
        loss_weights=GROWN,
        warmup=50,
    ),
    Stage(
        "boxes",
        3900,
        (1e-3, 5e-6),
        (
            *everywhere((0.02, 0.03, 0.04, 0.06, 0.10, 0.11, 0.11), (0.7, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8)),
            *everywhere((0.01, 0.02, 0.04, 0.06, 0.13, 0.14, 0.13), (1.0,) * 7, BLOCKS),
        ),
        loss_weights=GROWN,
        warmup=50,
    ),
)
