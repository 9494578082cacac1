"""Makes training batches: pages of one size and of similar length, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.reference.config import BLOCK
from export.reference.page import Page, Recipe, random_page
from export.reference.targets import FREE, GROUNDED, NOWHERE, TokenGrid, answer, slot_classes
from export.reference.tokenizer import PAD

TILE = 640
GREY = 127


@dataclass(frozen=True)
class View:
    """One kind of page to train on. Without tiles the page is `side` pixels square, grey bars included."""

    side: int
    batch: int
    tiles: tuple[int, int] | None = None  # columns, rows of 640 px tiles; `side` is then the global view's
    padded: float = 0.0  # share of pages that are not square and stand between grey bars
    frozen: bool = False  # leave the encoder out of the gradient: three times quicker on large pages

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of the visual tokens that the text is read from."""
        if self.tiles:
            return self.tiles[0] * TILE // BLOCK, self.tiles[1] * TILE // BLOCK
        return self.side // BLOCK, self.side // BLOCK


@dataclass
class Batch:
    """Tensors of a batch of B pages; L is the longest answer."""

    pixels: torch.Tensor  # uint8 (B, side, side), grey
    tile_pixels: torch.Tensor | None  # uint8 (B * tiles, 640, 640), grey
    view: View
    prompt: torch.Tensor  # int64 (P,) the tokens between the image and the answer
    answers: torch.Tensor  # int64 (B, L), padded with PAD
    looks: torch.Tensor  # int64 (B, L) index in the visual sequence, or NOWHERE
    slots: torch.Tensor  # int64 (B, rows, columns, 2, 4)


@dataclass
class _Sample:
    page: Page
    offset: tuple[int, int]
    ids: list[int]
    looks: list[int]


def batches(
    generator: np.random.Generator,
    view: View,
    recipe: Recipe,
    grounded: bool,
    tokenizer: Tokenizer,
    pool: int = 4,
) -> Iterator[Batch]:
    """Yield `pool` batches whose pages are sorted by length, so that little of a batch is padding."""
    samples = [_sample(generator, view, recipe, grounded, tokenizer) for _ in range(view.batch * pool)]
    samples.sort(key=lambda sample: len(sample.ids))
    for index in generator.permutation(pool):
        yield _collate(samples[index * view.batch : (index + 1) * view.batch], view, grounded, tokenizer)


def _sample(
    generator: np.random.Generator, view: View, recipe: Recipe, grounded: bool, tokenizer: Tokenizer
) -> _Sample:
    columns, rows = view.grid
    width, height = columns * BLOCK, rows * BLOCK
    if not view.tiles and generator.random() < view.padded:
        short = int(generator.integers(view.side // 2, view.side))
        width, height = (short, height) if generator.random() < 0.7 else (width, short)
    offset = ((columns * BLOCK - width) // 2, (rows * BLOCK - height) // 2)
    page = random_page(generator, (width, height), recipe)
    ids, looks = answer(page, TokenGrid(columns, rows, offset), grounded, tokenizer)
    return _Sample(page, offset, ids, looks)


def _collate(samples: list[_Sample], view: View, grounded: bool, tokenizer: Tokenizer) -> Batch:
    columns, rows = view.grid
    length = max(len(sample.ids) for sample in samples)
    answers = torch.full((len(samples), length), tokenizer.token_to_id(PAD))
    looks = torch.full((len(samples), length), NOWHERE)
    slots = np.stack([slot_classes(s.page, TokenGrid(columns, rows, s.offset)) for s in samples])
    pages = np.full((len(samples), rows * BLOCK, columns * BLOCK), GREY, np.uint8)
    for index, sample in enumerate(samples):
        answers[index, : len(sample.ids)] = torch.tensor(sample.ids)
        looks[index, : len(sample.ids)] = torch.tensor(sample.looks)
        (left, top), (width, height) = sample.offset, sample.page.size
        pages[index, top : top + height, left : left + width] = sample.page.draw()
    prompt = tokenizer.encode((GROUNDED if grounded else FREE).removeprefix("<image>")).ids
    tile_pixels = None
    if view.tiles:
        tile_pixels = torch.from_numpy(_cut(pages, view.tiles))
        pages = np.stack([_fit(page, view.side) for page in pages])
    return Batch(
        torch.from_numpy(pages),
        tile_pixels,
        view,
        torch.tensor(prompt),
        answers,
        looks,
        torch.from_numpy(slots),
    )


def _cut(pages: NDArray[np.uint8], tiles: tuple[int, int]) -> NDArray[np.uint8]:
    count, (columns, rows) = len(pages), tiles
    cut = pages.reshape(count, rows, TILE, columns, TILE).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(cut).reshape(-1, TILE, TILE)


def _fit(page: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.pad(Image.fromarray(page), (side, side), color=GREY))
