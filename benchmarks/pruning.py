"""Times pruning on one CPU core: `python -m benchmarks.pruning`, the library and the literal steps in turns.

Every mode's page, with the same kept positions on both sides or no result. Writes benchmarks/results/pruning.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks import literal_pruning
from benchmarks.measuring import FONT, RESULTS, cpu_name, in_turns, load_average, table, versions
from rtprune import TokenLayout, prune, prune_batch, text_density
from rtprune.modes import MODES

HIDDEN = 1280  # of DeepSeek-OCR
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
# Mode, tile grid, colour of the ink.
BLACK, BLUE = (0, 0, 0), (20, 20, 60)
CASES = (
    ("tiny", None, BLACK),
    ("small", None, BLACK),
    ("base", None, BLACK),
    ("large", None, BLACK),
    ("large", None, BLUE),
    ("gundam", (2, 3), BLACK),
)
BATCH = 8


@dataclass
class Case:
    """A page's view and tokens as both sides take them."""

    name: str
    layout: TokenLayout
    view: NDArray[np.uint8]
    tokens: NDArray[np.float32]


def make_page(
    mode: str, tile_grid: tuple[int, int] | None = None, ink: tuple[int, int, int] = BLACK, seed: int = 0
) -> Case:
    """A text page and random tokens with a common part, so that the dynamic retention lies near the paper's 84 %."""
    drawn = np.random.default_rng(seed)
    side = MODES[mode].side
    image = Image.new("RGB", (side, side), (255, 255, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.truetype(str(FONT), side / 80)
    for top in range(side // 20, side - side // 20, side // 50):
        line = "".join(drawn.choice(list("abcdefghijklmnopqrstuvwxyz      "), 120))
        pen.text((side // 20, top), line[: drawn.integers(60, 120)], ink, font)
    layout = TokenLayout.of(mode, tile_grid)
    tokens = drawn.normal(size=(layout.length, HIDDEN)) + 0.9 * drawn.normal(size=HIDDEN)
    tokens *= drawn.lognormal(sigma=0.4, size=(layout.length, 1))
    name = mode if tile_grid is None else f"{mode} {tile_grid[0]} x {tile_grid[1]}"
    if ink != BLACK:
        name += ", in colour"
    return Case(name, layout, np.asarray(image).copy(), tokens.astype(np.float32))


def cpu_ms(run: Callable[[], Any]) -> Callable[[], float]:
    """A measure for `in_turns`: CPU milliseconds of one run; the first, here, is not counted."""
    run()

    def measure() -> float:
        started = time.thread_time()
        run()
        return (time.thread_time() - started) * 1e3

    return measure


def measure(page: Case, rounds: int) -> tuple[dict[str, float], int]:
    """CPU milliseconds of both sides' parts, and how many content tokens stay.

    Raises SystemExit where density or positions differ between the sides, AssertionError where tokens do.
    """
    layout, grid = page.layout, page.layout.global_grid
    view, tokens = torch.from_numpy(page.view), torch.from_numpy(page.tokens)
    rho = text_density(page.view, grid)
    result = prune(page.tokens, layout, text_density=rho)
    literal_rho = literal_pruning.density(view, grid)
    literal_tokens, positions = literal_pruning.prune(tokens, layout, literal_rho)
    if abs(rho - literal_rho) > 1e-5 or result.positions.tolist() != positions:
        raise SystemExit(f"{page.name}: the library and the literal steps differ; there is nothing to time.")
    np.testing.assert_allclose(result.tokens, literal_tokens.numpy(), rtol=1e-4, atol=1e-4)
    content = page.tokens[layout.content_mask]
    times = in_turns(
        rounds,
        density=cpu_ms(lambda: text_density(page.view, grid)),
        prune=cpu_ms(lambda: prune(page.tokens, layout, text_density=rho)),
        gram=cpu_ms(lambda: content @ content.T),
        literal_density=cpu_ms(lambda: literal_pruning.density(view, grid)),
        literal_prune=cpu_ms(lambda: literal_pruning.prune(tokens, layout, literal_rho)),
    )
    return times, result.content_count


def results(rows: list[tuple[Case, int, dict[str, float]]]) -> list[str]:
    """One row a page."""
    head = ["page", "content tokens, kept", "density", "prune", "total", "literal density", "literal prune"]
    head += ["literal total", "ratio", "Gram matrix alone"]
    cells = []
    for page, kept, ms in rows:
        ours, theirs = ms["density"] + ms["prune"], ms["literal_density"] + ms["literal_prune"]
        row = [
            page.name,
            f"{page.layout.content_count}, {kept}",
            f"{ms['density']:.1f}",
            f"{ms['prune']:.1f}",
        ]
        row += [f"**{ours:.1f}**", f"{ms['literal_density']:.1f}", f"{ms['literal_prune']:.1f}"]
        cells.append([*row, f"{theirs:.1f}", f"**{theirs / ours:.1f}**", f"{ms['gram']:.1f}"])
    return table(head, cells)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    if not ONE_THREAD.items() <= os.environ.items():  # read when NumPy and torch are loaded, so start again
        line = [sys.executable, *sys.argv]
        raise SystemExit(subprocess.run(line, env=os.environ | ONE_THREAD, check=False).returncode)
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    with torch.inference_mode():
        for case in CASES:
            page = make_page(*case)
            times, kept = measure(page, rounds)
            rows.append((page, kept, times))
    pages = [make_page("large", seed=seed) for seed in range(BATCH)]
    tokens, layouts = [page.tokens for page in pages], [page.layout for page in pages]
    batch = in_turns(
        rounds,
        together=cpu_ms(lambda: prune_batch(tokens, layouts, text_densities=[0.2] * BATCH)),
        alone=cpu_ms(lambda: [prune(one, layouts[0], text_density=0.2) for one in tokens]),
    )
    lines = [
        "# Pruning on one CPU core",
        "",
        f"`python -m benchmarks.pruning`, {time.strftime('%Y-%m-%d')}. {cpu_name()}, one core, one thread"
        f"{load_average()}; {versions('numpy', 'opencv-python-headless', 'torch', 'array-api-compat')}.",
        "",
        f"Milliseconds of CPU time, medians of {rounds} rounds in which all sides took turns. Tokens are float32 "
        f"with {HIDDEN} entries, the retention is dynamic. Literal: the paper's steps as they read, in PyTorch "
        "([literal_pruning.py](../literal_pruning.py)): a Sobel call per patch, 100 iterations in the log domain. "
        "Both sides keep the same positions, and their tokens agree to 1e-4; the run fails otherwise. The Gram "
        "matrix is the one product that every exact implementation needs: the bound of `prune`.",
        "",
        *results(rows),
        "",
        f"{BATCH} large pages: {batch['together']:.1f} ms in one `prune_batch`, {batch['alone']:.1f} ms in "
        f"{BATCH} calls of `prune`. On a CPU there is nothing to gain by it; it is for a GPU, which it waits for "
        "once a batch. No GPU was measured.",
        "",
    ]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "pruning.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
