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
from rtprune.modes import TILE_SIDE
from training.config import BLOCK
from training.page import Page, Recipe, random_page
from training.pool import Encoded, PagePool
from training.targets import FREE, GROUNDED, NOWHERE, TokenGrid, answer, slot_classes
from training.tokenizer import PAD, token_id

GREY = 127
RETENTIONS = (0.6, 1.0)
"""Shares of content tokens that pruned batches keep; pages of text come out between them when it is dynamic."""


@dataclass(frozen=True)
class View:
    """One kind of page to train on. Without tiles the page is `side` pixels square, grey bars included."""

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
    looks: torch.Tensor  # int64 (B, L) index in the visual sequence, or NOWHERE
    retentions: NDArray[np.float64] | None = None  # (B,) share of content tokens to keep; None = all


@dataclass
class Batch:
    """B pages and how they are read: with one prompt or with both. With `encoded`, features of SAM stand for pixels."""

    view: View
    pixels: torch.Tensor  # uint8 (B, side, side), grey; encoded: float32 (B, C, side / 64, side / 64)
    tile_pixels: torch.Tensor | None  # the same of the tiles: (B * tiles, 640, 640) or (B * tiles, C, 10, 10)
    encoded: bool
    slots: torch.Tensor  # int64 (B, rows, columns, 2, 4)
    readings: list[Reading]


Encoder = Callable[[torch.Tensor], torch.Tensor]
"""Turns pixels, uint8 (N, side, side), into SAM's features, float32 (N, C, side / 64, side / 64)."""


@dataclass(frozen=True)
class _Placed:
    page: Page
    grid: TokenGrid


def batches(
    generator: np.random.Generator,
    view: View,
    recipe: Recipe,
    grounded: bool,
    tokenizer: Tokenizer,
    pool: int = 4,
) -> Iterator[Batch]:
    """Yield `pool` batches whose pages are sorted by length, so that little of a batch is padding.

    With two prompts each batch is read with both, otherwise with the one that `grounded` chooses.
    """
    placed = [_place(generator, view, recipe) for _ in range(view.batch * pool)]
    placed.sort(key=lambda one: len(one.page.text))
    for index in generator.permutation(pool):
        part = placed[index * view.batch : (index + 1) * view.batch]
        pixels, tile_pixels = _draw(part, view)
        yield _batch(generator, view, part, (pixels, tile_pixels, False), grounded, tokenizer)


def page_pool(generator: np.random.Generator, view: View, recipe: Recipe, encoder: Encoder) -> PagePool:
    """Build a pool of pages of `view`; each time it grows, it encodes one batch."""

    def encode() -> list[Encoded]:
        part = [_place(generator, view, recipe) for _ in range(view.batch)]
        pixels, tile_pixels = _draw(part, view)
        whole = encoder(pixels).to(torch.float16)
        if tile_pixels is None or view.tiles is None:
            return [Encoded(one.page, one.grid, rows, None) for one, rows in zip(part, whole, strict=True)]
        columns, lines = view.tiles
        tiles = torch.unflatten(encoder(tile_pixels).to(torch.float16), 0, (len(part), lines, columns))
        rows = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # (B, C, rows, columns)
        return [Encoded(one.page, one.grid, r, w) for one, r, w in zip(part, rows, whole, strict=True)]

    return PagePool(generator, encode)


def pooled_batches(
    pages: PagePool, view: View, grounded: bool, tokenizer: Tokenizer, pool: int = 4
) -> Iterator[Batch]:
    """Yield `pool` batches of pages made of the rows of `pages`, sorted like those of `batches`."""
    placed = pages.draw(view.batch * pool)
    placed.sort(key=lambda one: len(one.page.text))
    for index in pages.generator.permutation(pool):
        part = placed[index * view.batch : (index + 1) * view.batch]
        rows = torch.stack([one.rows for one in part]).float()
        features: tuple[torch.Tensor, torch.Tensor | None, bool] = rows, None, True
        if view.tiles is not None:
            tiles = torch.unflatten(torch.unflatten(rows, 3, (view.tiles[0], -1)), 2, (view.tiles[1], -1))
            tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B * tiles, C, 10, 10)
            features = torch.stack([one.view for one in part if one.view is not None]).float(), tiles, True
        yield _batch(pages.generator, view, part, features, grounded, tokenizer)


def _batch(
    generator: np.random.Generator,
    view: View,
    part: Sequence[_Placed | Encoded],
    inputs: tuple[torch.Tensor, torch.Tensor | None, bool],
    grounded: bool,
    tokenizer: Tokenizer,
) -> Batch:
    readings = [
        _reading(generator, part, prompt, view.pruned, tokenizer)
        for prompt in ([False, True] if view.prompts == 2 else [grounded])
    ]
    slots = torch.from_numpy(np.stack([slot_classes(one.page, one.grid) for one in part]))
    return Batch(view, *inputs, slots, readings)


def _place(generator: np.random.Generator, view: View, recipe: Recipe) -> _Placed:
    columns, rows = view.grid
    width, height = columns * BLOCK, rows * BLOCK
    if not view.tiles and generator.random() < view.padded:
        short = view.side - 2 * BLOCK * int(generator.integers(1, view.side // (4 * BLOCK) + 1))
        width, height = (short, height) if generator.random() < 0.7 else (width, short)
    offset = ((columns * BLOCK - width) // 2, (rows * BLOCK - height) // 2)
    return _Placed(random_page(generator, (width, height), recipe), TokenGrid(columns, rows, offset))


def _reading(
    generator: np.random.Generator,
    part: Sequence[_Placed | Encoded],
    grounded: bool,
    pruned: float,
    tokenizer: Tokenizer,
) -> Reading:
    pairs = [answer(one.page, one.grid, grounded, tokenizer) for one in part]
    length = max(len(ids) for ids, _ in pairs)
    answers = torch.full((len(pairs), length), token_id(tokenizer, PAD))
    looks = torch.full((len(pairs), length), NOWHERE)
    for index, (ids, where) in enumerate(pairs):
        answers[index, : len(ids)] = torch.tensor(ids)
        looks[index, : len(ids)] = torch.tensor(where)
    prompt = tokenizer.encode((GROUNDED if grounded else FREE).removeprefix("<image>")).ids
    retentions = generator.uniform(*RETENTIONS, size=len(part)) if generator.random() < pruned else None
    return Reading(torch.tensor(prompt), answers, looks, retentions)


def _draw(part: list[_Placed], view: View) -> tuple[torch.Tensor, torch.Tensor | None]:
    columns, rows = view.grid
    pages = np.full((len(part), rows * BLOCK, columns * BLOCK), GREY, np.uint8)
    for index, one in enumerate(part):
        (left, top), (width, height) = one.grid.offset, one.page.size
        pages[index, top : top + height, left : left + width] = one.page.draw()
    if view.tiles is None:
        return torch.from_numpy(pages), None
    tile_columns, tile_rows = view.tiles
    cut = pages.reshape(len(part), tile_rows, TILE_SIDE, tile_columns, TILE_SIDE).transpose(0, 1, 3, 2, 4)
    tiles = torch.from_numpy(np.ascontiguousarray(cut).reshape(-1, TILE_SIDE, TILE_SIDE))
    square = (view.side, view.side)
    fitted = [
        ImageOps.pad(Image.fromarray(page).convert("RGB"), square, color=(GREY,) * 3).convert("L")
        for page in pages
    ]
    return torch.from_numpy(np.stack([np.asarray(page) for page in fitted])), tiles
