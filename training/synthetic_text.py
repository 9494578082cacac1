"""Draws random text for pages: English words, numbers, names and strings that no vocabulary holds."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

import numpy as np

ASCII = "".join(map(chr, range(33, 127)))
BEYOND_ASCII = "äöüßéèàçñøå€£§°±×µ–ê“”’…"
"""Two and three bytes each in UTF-8, so that characters are split across tokens."""
CHARACTERS = " " + ASCII + BEYOND_ASCII
"""Every character that a page may show; its index is its class, 0 the blank."""

HELD_OUT_SHARE = 10
_PUNCTUATION = ".,;:!?"
_BRACKETS = ("()", "[]", '""', "''", "“”")
_LOWER = "abcdefghijklmnopqrstuvwxyz"


@cache
def vocabulary(held_out: bool) -> tuple[str, ...]:
    """Return the words to train on, or the tenth of them (chosen by checksum) that only the evaluation uses."""
    words = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
    return tuple(w for w in words if (zlib.crc32(w.encode()) % HELD_OUT_SHARE == 0) == held_out)


def random_words(generator: np.random.Generator, count: int, held_out: bool, noise: float) -> list[str]:
    """Draw `count` words; a share `noise` of them is not English but digits, symbols or letters at random."""
    words = vocabulary(held_out)
    picks = generator.integers(len(words), size=count)
    chance = generator.random((count, 4))
    drawn = []
    for pick, (kind, case, mark, which) in zip(picks, chance, strict=True):
        word = words[pick] if kind >= noise else _noise(generator, kind / noise)
        if not word.isascii():
            pass
        elif case < 0.18:
            word = word.capitalize()
        elif case < 0.24:
            word = word.upper()
        if mark < 0.15:
            word += _PUNCTUATION[int(which * len(_PUNCTUATION))]
        elif mark < 0.18:
            pair = _BRACKETS[int(which * len(_BRACKETS))]
            word = pair[0] + word + pair[1]
        elif mark < 0.20:
            word += "-" + words[int(which * len(words))]
        drawn.append(word)
    return drawn


def _noise(generator: np.random.Generator, kind: float) -> str:
    """Return a number, random letters, random symbols or a word with letters beyond ASCII, by `kind` in [0, 1)."""
    if kind < 0.25:
        digits = "".join(generator.choice(list("0123456789"), generator.integers(1, 7)))
        return digits if kind < 0.15 else f"{digits[:2]}{'.,:/'[int(kind * 400) % 4]}{digits[2:] or '0'}"
    if kind < 0.6:
        return "".join(generator.choice(list(_LOWER), generator.integers(1, 10)))
    alphabet = CHARACTERS[1:] if kind < 0.85 else _LOWER[:6] + BEYOND_ASCII
    return "".join(generator.choice(list(alphabet), generator.integers(1, 9)))


def wrap(words: list[str], width: int, limit: int) -> list[str]:
    """Fill lines of at most `width` characters with `words`, cutting those that are longer; at most `limit` lines."""
    lines = [""]
    for word in words:
        rest = word
        while rest:
            gap = 1 if lines[-1] else 0
            if len(lines[-1]) + gap + len(rest) <= width:
                lines[-1] += " " * gap + rest
                break
            if lines[-1]:
                lines.append("")
                continue
            lines[-1], rest = rest[:width], rest[width:]
            if rest:
                lines.append("")
    return [line for line in lines if line][:limit]
