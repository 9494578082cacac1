"""Makes training batches: pages of one size and of similar length, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tokenizers import Tokenizer

from rtprune.layout import TokenLayout
from rtprune.modes import BLOCK, TILE_SIDE
from training.feature_cache import CachedPage, FeatureCache
from training.labels import NOWHERE, TokenGrid, answer, character_labels
from training.synthetic_page import Recipe, SyntheticPage, random_page
from training.tokenizer import FREE, GROUNDED, IMAGE, PAD, token_id

GREY = 127
RETENTIONS = (0.6, 1.0)
"""Shares of content tokens that pruned batches keep; pages of text come out between them when it is dynamic."""


@dataclass(frozen=True)
class BatchSpec:
    """One kind of batch. Without tiles a page is `side` pixels square, grey bars included."""

    side: int
    batch: int
    tiles: tuple[int, int] | None = None  # columns, rows of 640 px tiles; `side` is then the global view's
    padded: float = 0.0  # share of pages that are not square and stand between grey bars
    pruned: float = 0.0  # share of its batches whose visual tokens are pruned
    prompts: int = 1  # 2: read each batch with both prompts; the encoder's work counts twice
    frozen: bool = False  # leave the encoder out of the gradient: three times quicker on large pages
    fresh: float = 0.0  # above 0: SAM is frozen; so many pages are encoded for each that is read

    @property
    def layout(self) -> TokenLayout:
        """Layout of the visual tokens."""
        side = self.side // BLOCK
        return TokenLayout((side, side), self.tiles or (0, 0))

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of the visual tokens that the text is read from."""
        if self.tiles:
            return self.tiles[0] * TILE_SIDE // BLOCK, self.tiles[1] * TILE_SIDE // BLOCK
        return self.side // BLOCK, self.side // BLOCK


@dataclass
class Reading:
    """A prompt and its answers for B pages; L is the longest answer."""

    prompt: torch.Tensor  # int64 (P,) the tokens between the image and the answer
    answers: torch.Tensor  # int64 (B, L), padded with PAD
    attended: torch.Tensor  # int64 (B, L) index in the visual sequence of the token to attend to, or NOWHERE
    retentions: NDArray[np.float64] | None = None  # (B,) share of content tokens to keep; None = all


@dataclass
class Batch:
    """B pages and how they are read: with one prompt or with both. With `encoded`, features of SAM stand for pixels."""

    spec: BatchSpec
    pixels: torch.Tensor  # uint8 (B, side, side), grey; encoded: float32 (B, C, side / 64, side / 64)
    tile_pixels: torch.Tensor | None  # the same of the tiles: (B * tiles, 640, 640) or (B * tiles, C, 10, 10)
    encoded: bool
    characters: torch.Tensor  # int64 (B, rows, columns, 2, 4) classes, see `character_labels`
    readings: list[Reading]


Encoder = Callable[[torch.Tensor], torch.Tensor]
"""Turns pixels, uint8 (N, side, side), into SAM's features, float32 (N, C, side / 64, side / 64)."""


@dataclass(frozen=True)
class _Sample:
    page: SyntheticPage
    grid: TokenGrid


def batches(
    generator: np.random.Generator,
    spec: BatchSpec,
    recipe: Recipe,
    grounded: bool,
    tokenizer: Tokenizer,
    count: int = 4,
) -> Iterator[Batch]:
    """Yield `count` batches of `spec.batch` pages, sorted by length, so that little of a batch is padding.

    With two prompts each batch is read with both, otherwise with the one that `grounded` chooses.
    """
    samples = [_sample(generator, spec, recipe) for _ in range(spec.batch * count)]
    samples.sort(key=lambda one: len(one.page.text))
    for index in generator.permutation(count):
        part = samples[index * spec.batch : (index + 1) * spec.batch]
        pixels, tile_pixels = _draw(part, spec)
        yield _batch(generator, spec, part, (pixels, tile_pixels, False), grounded, tokenizer)


def feature_cache(
    generator: np.random.Generator, spec: BatchSpec, recipe: Recipe, encoder: Encoder
) -> FeatureCache:
    """Build a cache of pages of `spec`; each `extend` encodes one batch. Its features are float16."""

    def encode() -> list[CachedPage]:
        part = [_sample(generator, spec, recipe) for _ in range(spec.batch)]
        pixels, tile_pixels = _draw(part, spec)
        whole = encoder(pixels).to(torch.float16)
        if tile_pixels is None or spec.tiles is None:
            return [CachedPage(one.page, one.grid, rows, None) for one, rows in zip(part, whole, strict=True)]
        columns, lines = spec.tiles
        tiles = torch.unflatten(encoder(tile_pixels).to(torch.float16), 0, (len(part), lines, columns))
        rows = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # (B, C, rows, columns)
        return [CachedPage(one.page, one.grid, r, w) for one, r, w in zip(part, rows, whole, strict=True)]

    return FeatureCache(generator, encode)


def cached_batches(
    cache: FeatureCache, spec: BatchSpec, grounded: bool, tokenizer: Tokenizer, count: int = 4
) -> Iterator[Batch]:
    """Yield `count` batches of pages made of the cache's rows, sorted like those of `batches`."""
    samples = cache.sample(spec.batch * count)
    samples.sort(key=lambda one: len(one.page.text))
    for index in cache.generator.permutation(count):
        part = samples[index * spec.batch : (index + 1) * spec.batch]
        rows = torch.stack([one.rows for one in part]).float()
        features: tuple[torch.Tensor, torch.Tensor | None, bool] = rows, None, True
        if spec.tiles is not None:
            tiles = torch.unflatten(torch.unflatten(rows, 3, (spec.tiles[0], -1)), 2, (spec.tiles[1], -1))
            tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B * tiles, C, 10, 10)
            features = (
                torch.stack([one.global_view for one in part if one.global_view is not None]).float(),
                tiles,
                True,
            )
        yield _batch(cache.generator, spec, part, features, grounded, tokenizer)


def _batch(
    generator: np.random.Generator,
    spec: BatchSpec,
    part: Sequence[_Sample | CachedPage],
    inputs: tuple[torch.Tensor, torch.Tensor | None, bool],
    grounded: bool,
    tokenizer: Tokenizer,
) -> Batch:
    readings = [
        _reading(generator, part, prompt, spec.pruned, tokenizer)
        for prompt in ([False, True] if spec.prompts == 2 else [grounded])
    ]
    characters = torch.from_numpy(np.stack([character_labels(one.page, one.grid) for one in part]))
    return Batch(spec, *inputs, characters, readings)


def _sample(generator: np.random.Generator, spec: BatchSpec, recipe: Recipe) -> _Sample:
    columns, rows = spec.grid
    width, height = columns * BLOCK, rows * BLOCK
    if not spec.tiles and generator.random() < spec.padded:
        short = spec.side - 2 * BLOCK * int(generator.integers(1, spec.side // (4 * BLOCK) + 1))
        width, height = (short, height) if generator.random() < 0.7 else (width, short)
    offset = ((columns * BLOCK - width) // 2, (rows * BLOCK - height) // 2)
    return _Sample(random_page(generator, (width, height), recipe), TokenGrid(columns, rows, offset))


def _reading(
    generator: np.random.Generator,
    part: Sequence[_Sample | CachedPage],
    grounded: bool,
    pruned: float,
    tokenizer: Tokenizer,
) -> Reading:
    pairs = [answer(one.page, one.grid, grounded, tokenizer) for one in part]
    length = max(len(ids) for ids, _ in pairs)
    answers = torch.full((len(pairs), length), token_id(tokenizer, PAD))
    attended = torch.full((len(pairs), length), NOWHERE)
    for index, (ids, where) in enumerate(pairs):
        answers[index, : len(ids)] = torch.tensor(ids)
        attended[index, : len(ids)] = torch.tensor(where)
    prompt = tokenizer.encode((GROUNDED if grounded else FREE).removeprefix(IMAGE)).ids
    retentions = generator.uniform(*RETENTIONS, size=len(part)) if generator.random() < pruned else None
    return Reading(torch.tensor(prompt), answers, attended, retentions)


def _draw(part: list[_Sample], spec: BatchSpec) -> tuple[torch.Tensor, torch.Tensor | None]:
    columns, rows = spec.grid
    pages = np.full((len(part), rows * BLOCK, columns * BLOCK), GREY, np.uint8)
    for index, one in enumerate(part):
        (left, top), (width, height) = one.grid.offset, one.page.size
        pages[index, top : top + height, left : left + width] = one.page.draw()
    if spec.tiles is None:
        return torch.from_numpy(pages), None
    tile_columns, tile_rows = spec.tiles
    cut = pages.reshape(len(part), tile_rows, TILE_SIDE, tile_columns, TILE_SIDE).transpose(0, 1, 3, 2, 4)
    tiles = torch.from_numpy(np.ascontiguousarray(cut).reshape(-1, TILE_SIDE, TILE_SIDE))
    square = (spec.side, spec.side)
    fitted = [
        ImageOps.pad(Image.fromarray(page).convert("RGB"), square, color=(GREY,) * 3).convert("L")
        for page in pages
    ]
    return torch.from_numpy(np.stack([np.asarray(page) for page in fitted])), tiles
