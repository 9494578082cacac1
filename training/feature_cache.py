"""Keeps encoded pages and makes new ones of their rows, so that the decoder sees many pages for each that is encoded.

The SAM encoder is nine tenths of the encoder's cost on large pages. Its features of a row of cells depend on the other
rows only weakly, so a row of one page may stand in another page of the same size and margins: the text changes with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from rtprune.modes import BLOCK
from training.labels import TokenGrid
from training.synthetic_page import Style, SyntheticPage

CAPACITY = 1200
"""Pages kept for each kind of batch; the oldest go first. 70 KB each at 1024 pixels."""
TRIES = 12
"""Pages that are asked for a row before the skeleton keeps its own."""
MIXED = 0.9
"""Share of rows that come from other pages."""

Key = tuple[tuple[int, int], tuple[int, int], int, Style]
"""Size, offset, indent and style: pages that share them may exchange rows."""


@dataclass(frozen=True)
class CachedPage:
    """A page and what the SAM encoder made of it."""

    page: SyntheticPage
    grid: TokenGrid
    rows: torch.Tensor  # float16 (C, rows, columns): the features of the view that the text is read from
    global_view: (
        torch.Tensor | None
    )  # float16 (C, side, side): those of the global view, where tiles carry the text

    @property
    def key(self) -> Key:
        """What must be equal for two pages to exchange rows."""
        return self.page.size, self.grid.offset, self.page.indent, self.page.style

    @cached_property
    def lines(self) -> list[str]:
        """What stands in each lattice row, "" for nothing."""
        lines = [""] * len(self.page.grid)
        for block, rows in zip(self.page.blocks, self.page.rows, strict=True):
            for line, row in zip(block, rows, strict=True):
                lines[row] = line
        return lines

    def surroundings(self, row: int) -> list[bool]:
        """Say whether a lattice row and those beside it hold text, which what the encoder makes of it depends on."""
        return [bool(line) for line in self.lines[max(0, row - 1) : row + 2]]


class FeatureCache:
    """Encoded pages of one `BatchSpec`. A row goes to a page that, in it and around it, has text where its own does."""

    def __init__(self, generator: np.random.Generator, encode: Callable[[], list[CachedPage]]) -> None:
        self.generator, self.encode = generator, encode
        self.pages: list[CachedPage] = []
        self.groups: dict[Key, list[CachedPage]] = {}

    def extend(self) -> None:
        """Encode some more pages; forget the oldest beyond `CAPACITY`."""
        self.pages = (self.pages + self.encode())[-CAPACITY:]
        self.groups = defaultdict(list)
        for page in self.pages:
            self.groups[page.key].append(page)

    def sample(self, count: int) -> list[CachedPage]:
        """Return `count` pages made of the cache's rows; `extend` comes first."""
        picks = self.generator.integers(len(self.pages), size=count)
        return [self._mix_rows(self.pages[int(pick)]) for pick in picks]

    def _mix_rows(self, skeleton: CachedPage) -> CachedPage:
        """Give most rows of `skeleton` to other pages' features and text."""
        page, others = skeleton.page, self.groups[skeleton.key]
        if page.style.cell[1] != BLOCK or page.style.origin != (0, 0):
            return skeleton  # its lines do not fill whole rows of tokens
        rows, first = skeleton.rows.clone(), skeleton.grid.offset[1] // BLOCK
        lines = list(skeleton.lines)
        for row in np.flatnonzero(self.generator.random(len(lines)) < MIXED).tolist():
            picks = self.generator.integers(len(others), size=TRIES).tolist()
            wanted = skeleton.surroundings(row)
            donor = next((d for pick in picks if (d := others[pick]).surroundings(row) == wanted), None)
            if donor is not None:
                lines[row] = donor.lines[row]
                rows[:, first + row] = donor.rows[:, first + row]
        blocks = [[lines[row] for row in block] for block in page.rows]
        mixed = SyntheticPage(page.size, page.style, blocks, page.rows, page.indent)
        return CachedPage(mixed, skeleton.grid, rows, skeleton.global_view)
