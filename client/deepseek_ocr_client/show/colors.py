"""One colour a label, the same in every picture."""

from __future__ import annotations

import zlib

# Okabe and Ito's palette, which stays apart for colour-blind readers, without black and yellow.
PALETTE = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
FIXED = {
    "title": 1,
    "sub_title": 1,
    "text": 0,
    "image": 2,
    "image_caption": 4,
    "table": 3,
    "table_caption": 4,
}


def color_of(label: str) -> tuple[int, int, int]:
    """RGB of a label."""
    return PALETTE[FIXED.get(label, zlib.crc32(label.encode()) % len(PALETTE)) % len(PALETTE)]


def css(color: tuple[int, int, int]) -> str:
    """`#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)
