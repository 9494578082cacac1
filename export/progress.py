"""Progress of an export on the terminal: one bar for what is long, one line for what is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


def say(text: str) -> None:
    """Print one line, whatever bar is open."""
    tqdm.write(text, file=sys.stderr)


@contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[tqdm[None]]:
    """A bar of `total` units; bytes are scaled. Nothing is drawn where nobody looks."""
    scaled = unit == "B"
    with tqdm(
        total=total, desc=title, unit=unit, unit_scale=scaled, disable=None, file=sys.stderr, leave=False
    ) as shown:
        yield shown


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._start:.1f} s"
