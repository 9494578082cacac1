"""Draws the example pages with their truth: `python -m training.example_pages examples`."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.synthetic_page import Style, SyntheticPage
from training.synthetic_text import wrap

HELLO = ("Hello, reader!", "This page went in as pixels and came out as words.")

LETTER = (
    "The Night Shift",
    "Every evening at nine the old keeper climbs 214 steps, lights the lamp and pours a cup of tea.",
    "“Why not automate it?” asked a visitor. He smiled: “Who would wave back at the ships?”",
    "Log, 3 May: fog, 2 whales, 0 complaints. Biscuits: low.",
)

STORY = (
    "How to Fold a Map",
    "A map unfolds by itself. Folding it again is a puzzle that has ended friendships, one "
    "engagement and several holidays.",
    "1. Lay the map on a table. If the table is too small, use the floor; if the floor is too small, you "
    "are on a boat, and should be looking at the sea instead.",
    "2. Find the first crease. It is never the one you think. Count the panels: a road map has 24, a city "
    "map 18, and a treasure map exactly 1, with a hole where the X used to be.",
    "3. Fold along the crease as if you meant it. Paper can smell doubt. Then turn it by 90° and "
    "repeat until it is the size of a sandwich.",
    "4. If it is now thicker than the sandwich, stop. Put it in a drawer & buy another one: £3.50 at any "
    "kiosk, tea included.",
)


def main() -> None:
    """Parse the arguments and write each page as PNG beside its text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        page.image().save(out / f"{name}.png", optimize=True)
        (out / f"{name}.txt").write_text(page.text + "\n", encoding="utf-8")


def pages() -> dict[str, SyntheticPage]:
    """The pages by name: one for tiny mode, a letter for base, a long page for gundam (2 x 3 tiles)."""
    return {
        "page": compose(HELLO, (512, 512), 0),
        "letter": compose(LETTER, (1024, 1024), 1),
        "long_page": compose(STORY, (1280, 1920), 1),
    }


def compose(paragraphs: tuple[str, ...], size: tuple[int, int], margin: int) -> SyntheticPage:
    """Set paragraphs in cells of 32 x 64 px on a page of `size` (width, height) px, an empty row between them.

    `margin`: empty cells around the text.

    Raises:
        ValueError: the text does not fit on the page.
    """
    style = Style()
    columns, lines = size[0] // style.cell[0] - 2 * margin, size[1] // style.cell[1] - 2 * margin
    blocks = [wrap(paragraph.split(" "), columns, 1000) for paragraph in paragraphs]
    rows: list[list[int]] = []
    for block in blocks:
        start = rows[-1][-1] + 2 if rows else margin
        rows.append(list(range(start, start + len(block))))
    if rows[-1][-1] >= margin + lines:
        raise ValueError(f"The text needs {rows[-1][-1] + 1 - margin} lines; the page has {lines}.")
    return SyntheticPage(size, style, blocks, rows, indent=margin)


if __name__ == "__main__":
    main()
