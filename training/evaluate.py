"""Measures the reference checkpoint: `python -m training.evaluate --checkpoint DIR --mode tiny --pages 50`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from rtprune.layout import TokenLayout
from rtprune.modes import BLOCK, MODES, TILE_SIDE
from rtprune.preprocess.views import Views, make_views
from rtprune.settings import Settings
from training.model import load_checkpoint
from training.synthetic_page import Recipe, SyntheticPage, random_page
from training.tokenizer import EOS, FREE, GROUNDED, IMAGE, token_id

SHIPPED = Path(__file__).parent / "checkpoint"
SEED = 20_260_000
"""Far from every training seed; the words are the held-out tenth of the vocabulary."""
RECIPE = Recipe(margin=2, noise=0.15, held_out=True)
BATCH = 8
"""Most pages that are read together."""
TILE_GRIDS = ((2, 2), (2, 3), (3, 2))
HEADER = re.compile(r"<\|ref\|>([^<]*)<\|/ref\|><\|det\|>\[\[(\d+), (\d+), (\d+), (\d+)\]\]<\|/det\|>\n")


@dataclass
class Score:
    """Errors and sizes summed over pages; IoU averaged over blocks."""

    pages: int = 0
    characters: int = 0
    errors: int = 0
    perfect: int = 0
    blocks: int = 0
    overlap: float = 0.0

    @property
    def rate(self) -> float:
        """Character error rate: edit distance over the truth's characters; 0 is none, and it can be above 1."""
        return self.errors / max(1, self.characters)

    @property
    def iou(self) -> float:
        """Mean intersection over union of the blocks' boxes, 0 to 1; a missing block counts 0."""
        return self.overlap / max(1, self.blocks)

    def add(self, page: SyntheticPage, read: str, grounded: bool) -> None:
        """Compare what was read with the page's truth."""
        if grounded:
            boxes = [tuple(map(int, found.groups()[1:])) for found in HEADER.finditer(read)]
            truth = page.boxes()
            self.blocks += len(truth)
            self.overlap += sum(intersection_over_union(a, b) for a, b in zip(truth, boxes, strict=False))
            read = HEADER.sub("", read)
        errors = Levenshtein.distance(page.text, read)
        self.pages += 1
        self.characters += len(page.text)
        self.errors += errors
        self.perfect += errors == 0


def main() -> None:
    """Parse the arguments, read the pages, print one row for each mode and prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument(
        "--cell", nargs="+", type=int, default=[32], help="width of a character's cell in pixels"
    )
    parser.add_argument("--jitter", type=int, default=0, help="most pixels by which the lattice is moved")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--prompt", choices=("free", "grounded", "both"), default="both")
    parser.add_argument("--show", action="store_true", help="print truth and reading of pages with errors")
    arguments = parser.parse_args()
    model, tokenizer = load_checkpoint(arguments.checkpoint)
    print("| mode | cell | prompt | pages | characters | CER | pages without error | box IoU |")
    print("|---|---|---|---|---|---|---|---|")
    prompts = {"free": [False], "grounded": [True], "both": [False, True]}[arguments.prompt]
    for mode in arguments.mode:
        for cell in arguments.cell:
            recipe = replace(RECIPE, cell_width=(cell, cell), jitter=arguments.jitter)
            for grounded in prompts:
                score = evaluate(
                    model, tokenizer, mode, arguments.pages, recipe, grounded, arguments.seed, arguments.show
                )
                box = f"{score.iou:.3f}" if grounded else ""
                print(
                    f"| {mode} | {cell} x {2 * cell} | {'grounded' if grounded else 'free'} | {score.pages} "
                    f"| {score.characters} | {score.rate:.2%} | {score.perfect} | {box} |", flush=True,
                )  # fmt: skip


def evaluate(
    model: UnlimitedOcrForConditionalGeneration,
    tokenizer: Tokenizer,
    mode: str,
    pages: int,
    recipe: Recipe = RECIPE,
    grounded: bool = False,
    seed: int = SEED,
    show: bool = False,
) -> Score:
    """Read `pages` random pages of `mode` and score them."""
    generator = np.random.default_rng([seed, list(MODES).index(mode)])
    score = Score()
    drawn = [random_page(generator, page_size(generator, mode), recipe) for _ in range(pages)]
    texts = read_pages(model, tokenizer, drawn, mode, GROUNDED if grounded else FREE)
    for page, read in zip(drawn, texts, strict=True):
        before = score.errors
        score.add(page, read, grounded)
        if show and score.errors > before:
            print(f"--- {score.errors - before} errors\n{page.text}\n--- read\n{read}")
    return score


def page_size(generator: np.random.Generator, mode: str) -> tuple[int, int]:
    """Return width and height in px at which the mode reads the pixels one to one; with padding, not always square."""
    kind = MODES[mode]
    if kind.tiles:
        columns, rows = TILE_GRIDS[int(generator.integers(len(TILE_GRIDS)))]
        return columns * TILE_SIDE, rows * TILE_SIDE
    if kind.pad and generator.random() < 0.3:
        return kind.side - 2 * BLOCK * int(generator.integers(1, kind.side // (4 * BLOCK) + 1)), kind.side
    return kind.side, kind.side


@torch.inference_mode()
def read_pages(
    model: UnlimitedOcrForConditionalGeneration,
    tokenizer: Tokenizer,
    pages: Sequence[SyntheticPage],
    mode: str,
    prompt: str,
    max_tokens: int = 3000,
) -> list[str]:
    """Read pages greedily with transformers, preprocessed as the server does it; tags stay in the text.

    Pages of the same tile grid have equally long prompts and are read together, up to `BATCH` at once. A page gets
    `max_tokens` output tokens at most, or about twice its truth's bytes, if that is less.
    """
    settings, end, texts = Settings(), token_id(tokenizer, EOS), [""] * len(pages)
    views = [make_views(page.image(), mode, settings) for page in pages]
    limits = [min(max_tokens, 2 * len(p.text.encode()) + 60 * (len(p.blocks) + 1)) for p in pages]
    reader: Any = model
    for grid in sorted({each.tile_grid for each in views}):
        group = [index for index, each in enumerate(views) if each.tile_grid == grid]
        for part in (group[start : start + BATCH] for start in range(0, len(group), BATCH)):
            inputs = model_inputs([views[index] for index in part], mode, tokenizer, prompt)
            limit = max(limits[index] for index in part)
            output: torch.Tensor = reader.generate(
                **inputs, do_sample=False, max_new_tokens=limit, eos_token_id=end, pad_token_id=end
            )
            for index, ids in zip(part, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                kept = [i for i in ids[: limits[index]] if i != end]
                texts[index] = tokenizer.decode(kept, skip_special_tokens=False)
    return texts


def model_inputs(pages: Sequence[Views], mode: str, tokenizer: Tokenizer, prompt: str) -> dict[str, Any]:
    """Turn pages of one tile grid and a prompt into the inputs of transformers' model.

    Each row of `input_ids`, int64 (B, n), is BOS, a placeholder for each visual token, the prompt's text. Pixels are
    float32 in [-1, 1]: the global views (B, 3, S, S) and, where there are any, the tiles (B * tiles, 3, 640, 640).
    """
    count, tiles = len(pages), len(pages[0].tiles)
    grid = pages[0].tile_grid if tiles else (0, 0)
    visual = TokenLayout.of(mode, grid).length
    text = tokenizer.encode(prompt.removeprefix(IMAGE)).ids
    ids = torch.tensor([[0] + [token_id(tokenizer, IMAGE)] * visual + text] * count)
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": _pixels(np.stack([page.global_view for page in pages])),
    }
    if tiles:
        inputs |= {
            "pixel_values_local": _pixels(np.concatenate([page.tiles for page in pages])),
            "num_local_patches": [tiles] * count,
            "patches_grid": [list(grid)] * count,
        }
    return inputs


def _pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    return (
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(torch.float32) / 127.5 - 1.0
    )


def intersection_over_union(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Overlap of two boxes (x1, y1, x2, y2) as a share of their union, 0 to 1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


if __name__ == "__main__":
    main()
