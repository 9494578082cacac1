"""Times what the CPU does to a page before the GPU sees it, on one core: `python -m benchmarks.preprocessing`.

An A4 page at 300 dpi, as a scanner's JPEG and as a rendered PNG: decoding, views, text density. The result says how
many cores feed a GPU. Writes benchmarks/results/preprocessing.md.
"""

from __future__ import annotations

import io
import statistics
import time
from datetime import UTC, datetime
from itertools import pairwise

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.measuring import FONT, RESULTS, load_average, machine, table, versions
from rtprune import TokenLayout, text_density
from rtprune.modes import MODES
from rtprune.preprocess.image import decode
from rtprune.preprocess.views import make_views
from rtprune.settings import Settings

SIZE = (2480, 3508)  # A4 at 300 dpi
ROUNDS = 7


def draw() -> Image.Image:
    """A page full of text, black on white."""
    image = Image.new("RGB", SIZE, "white")
    font = ImageFont.truetype(str(FONT), 42)  # 10 pt
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "1,234", "others"]
    generator = np.random.default_rng(0)
    for top in range(200, SIZE[1] - 200, 58):
        line = " ".join(generator.choice(words, 14))
        ImageDraw.Draw(image).text((200, top), line[:80], fill="black", font=font)
    return image


def encoded() -> dict[str, bytes]:
    """The page as files: grain on the JPEG as a scanner leaves it, none on the PNG."""
    page = draw()
    grain = np.random.default_rng(1).normal(0, 4, (SIZE[1], SIZE[0], 1))
    scan = Image.fromarray(np.clip(np.asarray(page) + grain, 0, 255).astype(np.uint8))
    files = {}
    for name, image, options in (("JPEG, scanned", scan, {"quality": 90}), ("PNG, rendered", page, {})):
        buffer = io.BytesIO()
        image.save(buffer, name.split(",")[0], **options)
        files[name] = buffer.getvalue()
    return files


def measure(data: bytes, mode: str, settings: Settings) -> tuple[list[float], int]:
    """Median milliseconds of CPU time of decoding, views and density; the number of tiles."""
    rows, tiles = [], 0
    for _ in range(ROUNDS):
        marks = [time.process_time()]
        image = decode(data, settings)
        image.load()
        marks.append(time.process_time())
        views = make_views(image, mode, settings)
        marks.append(time.process_time())
        layout = TokenLayout.of(mode, tile_grid=views.tile_grid)
        text_density(views.global_view, layout.global_grid)
        marks.append(time.process_time())
        rows.append([1e3 * (after - before) for before, after in pairwise(marks)])
        tiles = len(views.tiles)
    return [statistics.median(column) for column in zip(*rows, strict=True)], tiles


def main() -> None:
    """Measure every mode and write the table."""
    cv2.setNumThreads(1)
    settings = Settings()
    lines = [
        "# Preprocessing on one CPU core",
        "",
        f"`python -m benchmarks.preprocessing`, {datetime.now(UTC):%Y-%m-%d}. {machine()}{load_average()}; "
        f"{versions('pillow', 'opencv-python-headless')}.",
        "",
        f"An A4 page at 300 dpi ({SIZE[0]} x {SIZE[1]} px) full of text. Milliseconds of CPU time, one thread, "
        f"medians of {ROUNDS} rounds. Pruning comes on top: [pruning.md](pruning.md).",
        "",
    ]
    rows = []
    for name, data in encoded().items():
        for mode in MODES:
            times, tiles = measure(data, mode, settings)
            page = f"{name}, {len(data) / 2**20:.1f} MiB"
            cells = [f"{value:.1f}" for value in times]
            rows.append([page, mode, str(tiles), *cells, f"**{sum(times):.0f}**"])
    lines += table(["page", "mode", "tiles", "decode", "views", "density", "total"], rows)
    (RESULTS / "preprocessing.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
