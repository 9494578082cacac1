"""Lays text out on a lattice of character cells and draws it, keeping the truth: text, boxes, cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training.synthetic_text import CHARACTERS, random_words, wrap

FONT = Path(__file__).parent / "fonts" / "DejaVuSansMono.ttf"
ADVANCE = 1233 / 2048
"""Width of every character of DejaVu Sans Mono in em."""
LINE_HEIGHT = (1901 + 483) / 2048
"""Ascent and descent of the font in em."""
_CLASS = {character: index for index, character in enumerate(CHARACTERS)}


@dataclass(frozen=True)
class Style:
    """How a page looks. Cells and offsets in pixels, colours as grey levels."""

    cell: tuple[int, int] = (32, 64)  # width, height of a character's cell
    origin: tuple[int, int] = (0, 0)  # left, top of the first cell
    ink: int = 0
    paper: int = 255


@dataclass
class SyntheticPage:
    """A page and its truth. `rows[i]` is the lattice row of line i; lines of a block stand in consecutive rows."""

    size: tuple[int, int]  # width, height in pixels
    style: Style
    blocks: list[list[str]]
    rows: list[list[int]]
    indent: int = 0  # empty columns left of the text
    grid: NDArray[np.int64] = field(init=False)  # (rows, columns) class of each cell

    def __post_init__(self) -> None:
        (width, height), (cell_w, cell_h), (left, top) = self.size, self.style.cell, self.style.origin
        self.grid = np.zeros(((height - top) // cell_h, (width - left) // cell_w), np.int64)
        for block, rows in zip(self.blocks, self.rows, strict=True):
            for line, row in zip(block, rows, strict=True):
                self.grid[row, self.indent : self.indent + len(line)] = [_CLASS[c] for c in line]

    @property
    def text(self) -> str:
        """The page's text: lines as printed, one empty line between blocks."""
        return "\n\n".join("\n".join(block) for block in self.blocks)

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Each block's box as (x1, y1, x2, y2) in 0..999 of the page's width and height."""
        (cell_w, cell_h), (left, top) = self.style.cell, self.style.origin
        found = []
        for block, rows in zip(self.blocks, self.rows, strict=True):
            x1 = left + self.indent * cell_w
            x2, y2 = x1 + max(map(len, block)) * cell_w, top + (rows[-1] + 1) * cell_h
            edges = (x1, top + rows[0] * cell_h, x2, y2)
            scale = (self.size[0], self.size[1]) * 2
            found.append(tuple(min(999, round(e * 999 / s)) for e, s in zip(edges, scale, strict=True)))
        return found  # type: ignore[return-value]

    def grounded_text(self) -> str:
        """The text as the grounding prompt wants it: a tag and a box before each block."""
        return "\n\n".join(
            "<|ref|>text<|/ref|><|det|>[[{}, {}, {}, {}]]<|/det|>\n".format(*box) + "\n".join(block)
            for block, box in zip(self.blocks, self.boxes(), strict=True)
        )

    def draw(self) -> NDArray[np.uint8]:
        """Draw it as uint8 (height, width), grey."""
        (cell_w, cell_h), (left, top) = self.style.cell, self.style.origin
        glyphs = atlas(cell_w, cell_h)
        rows, columns = self.grid.shape
        cells = glyphs[self.grid].transpose(0, 2, 1, 3).reshape(rows * cell_h, columns * cell_w)
        canvas = np.zeros((self.size[1], self.size[0]), np.uint8)
        canvas[top : top + rows * cell_h, left : left + columns * cell_w] = cells
        if (self.style.ink, self.style.paper) == (0, 255):
            return np.asarray(255 - canvas, np.uint8)
        shades = np.linspace(self.style.paper, self.style.ink, 256).round().astype(np.uint8)
        return np.asarray(shades[canvas], np.uint8)

    def image(self) -> Image.Image:
        """Draw it as an RGB image."""
        return Image.fromarray(self.draw()).convert("RGB")


@cache
def atlas(cell_w: int, cell_h: int) -> NDArray[np.uint8]:
    """Coverage, 0 to 255, of each character in its cell of cell_w x cell_h px: uint8 (classes, cell_h, cell_w).

    The font is as large as fits the cell.
    """
    size = min(cell_w / ADVANCE, cell_h / LINE_HEIGHT)
    font = ImageFont.truetype(str(FONT), size)
    baseline = (cell_h - LINE_HEIGHT * size) / 2 + 1901 / 2048 * size
    glyphs = np.zeros((len(CHARACTERS), cell_h, cell_w), np.uint8)
    for index, character in enumerate(CHARACTERS):
        glyph = Image.new("L", (cell_w, cell_h))
        ImageDraw.Draw(glyph).text(
            ((cell_w - ADVANCE * size) / 2, baseline), character, 255, font, anchor="ls"
        )
        glyphs[index] = np.asarray(glyph)
    return glyphs


@dataclass(frozen=True)
class Recipe:
    """What random pages look like. Ranges are inclusive; a cell's height is its width times `height_ratio`."""

    cell_width: tuple[int, int] = (32, 32)
    height_ratio: tuple[float, float] = (2.0, 2.0)
    jitter: int = 0  # most pixels by which the lattice is moved right and down
    step: int = 1  # the move is a multiple of this
    margin: int = 0  # most empty rows at the top and columns at the left
    narrow: float = 0.3  # share of pages with a right margin
    fill: float = 0.35  # share of pages that are filled to the last line
    block_lines: int = 8  # most lines of a short block
    short: float = 0.7  # share of blocks that are short; the others may fill what is left of the page
    noise: float = 0.3  # share of words that are not English
    shades: float = 0.0  # share of pages that are not black on white
    held_out: bool = False


def random_page(generator: np.random.Generator, size: tuple[int, int], recipe: Recipe) -> SyntheticPage:
    """Draw a page of `size` (width, height) pixels from `recipe`; all randomness comes from `generator`."""
    style = _random_style(generator, recipe)
    columns = (size[0] - style.origin[0]) // style.cell[0]
    rows = (size[1] - style.origin[1]) // style.cell[1]
    indent = int(generator.integers(0, min(recipe.margin, columns // 4) + 1))
    top = int(generator.integers(0, min(recipe.margin, rows // 4) + 1))
    width = columns - indent
    if generator.random() < recipe.narrow:
        width = int(generator.integers(max(4, width // 2), width + 1))
    last = rows if generator.random() < recipe.fill else int(generator.integers(top + 1, rows + 1))
    blocks: list[list[str]] = []
    block_rows: list[list[int]] = []
    row = top
    while row < last:
        limit = last - row
        if generator.random() < recipe.short:
            limit = min(limit, int(generator.integers(1, recipe.block_lines + 1)))
        count = int(np.ceil(generator.uniform(max(0.3, limit - 0.9), limit) * width / 5.5))
        block = wrap(random_words(generator, max(1, count), recipe.held_out, recipe.noise), width, limit)
        blocks.append(block)
        block_rows.append(list(range(row, row + len(block))))
        row += len(block) + 1
    return SyntheticPage(size, style, blocks, block_rows, indent)


def _random_style(generator: np.random.Generator, recipe: Recipe) -> Style:
    cell_w = int(generator.integers(recipe.cell_width[0], recipe.cell_width[1] + 1))
    cell_h = round(cell_w * generator.uniform(*recipe.height_ratio))
    left, top = (
        int(v) * recipe.step for v in generator.integers(0, recipe.jitter // recipe.step + 1, size=2)
    )
    ink, paper = 0, 255
    if generator.random() < recipe.shades:
        ink, paper = int(generator.integers(0, 90)), int(generator.integers(200, 256))
    return Style((cell_w, cell_h), (left, top), ink, paper)
