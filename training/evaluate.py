"""Measures the reference checkpoint: `python -m training.evaluate --checkpoint DIR --mode tiny --pages 50`."""

from __future__ import annotations

import argparse
import re
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
        """Character error rate: edit distance over the truth's characters."""
        return self.errors / max(1, self.characters)

    @property
    def iou(self) -> float:
        """Mean intersection over union of the blocks' boxes; a missing block counts 0."""
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
    """Read `pages` random pages of `mode` one by one and score them."""
    generator = np.random.default_rng([seed, list(MODES).index(mode)])
    score = Score()
    for _ in range(pages):
        page = random_page(generator, page_size(generator, mode), recipe)
        read = read_page(model, tokenizer, page, mode, GROUNDED if grounded else FREE)
        before = score.errors
        score.add(page, read, grounded)
        if show and score.errors > before:
            print(f"--- {score.errors - before} errors\n{page.text}\n--- read\n{read}")
    return score


def page_size(generator: np.random.Generator, mode: str) -> tuple[int, int]:
    """Return a page size at which the mode reads the page's pixels one to one; with padding, not always square."""
    kind = MODES[mode]
    if kind.tiles:
        columns, rows = TILE_GRIDS[int(generator.integers(len(TILE_GRIDS)))]
        return columns * TILE_SIDE, rows * TILE_SIDE
    if kind.pad and generator.random() < 0.3:
        return kind.side - 2 * BLOCK * int(generator.integers(1, kind.side // (4 * BLOCK) + 1)), kind.side
    return kind.side, kind.side


@torch.inference_mode()
def read_page(
    model: UnlimitedOcrForConditionalGeneration,
    tokenizer: Tokenizer,
    page: SyntheticPage,
    mode: str,
    prompt: str,
    max_tokens: int = 3000,
) -> str:
    """Read a page greedily with transformers, preprocessed as the server does it; tags stay in the text."""
    views = make_views(page.image(), mode, Settings())
    inputs = model_inputs(views, mode, tokenizer, prompt)
    limit = min(max_tokens, 2 * len(page.text.encode()) + 60 * (len(page.blocks) + 1))
    end = token_id(tokenizer, EOS)
    reader: Any = model
    output: torch.Tensor = reader.generate(
        **inputs, do_sample=False, max_new_tokens=limit, eos_token_id=end, pad_token_id=end
    )
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tokenizer.decode([i for i in ids if i != end], skip_special_tokens=False)


def model_inputs(views: Views, mode: str, tokenizer: Tokenizer, prompt: str) -> dict[str, Any]:
    """Turn views and prompt into the inputs of transformers' model: BOS, a placeholder a visual token, the text."""
    grid = views.tile_grid if len(views.tiles) else (0, 0)
    visual = TokenLayout.of(mode, grid).length
    text = tokenizer.encode(prompt.removeprefix(IMAGE)).ids
    ids = torch.tensor([[0] + [token_id(tokenizer, IMAGE)] * visual + text])
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": _pixels(views.global_view[None]),
    }
    if len(views.tiles):
        inputs |= {
            "pixel_values_local": _pixels(views.tiles),
            "num_local_patches": [len(views.tiles)],
            "patches_grid": [list(grid)],
        }
    return inputs


def _pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    return (
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(torch.float32) / 127.5 - 1.0
    )


def intersection_over_union(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Overlap of two boxes (x1, y1, x2, y2) as a share of their union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


if __name__ == "__main__":
    main()
