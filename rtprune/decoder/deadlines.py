"""Stops requests at their time limit, wherever they are: one thread that sleeps until the next deadline."""

from __future__ import annotations

import threading
import time
from typing import Literal, Protocol


class Stoppable(Protocol):
    """What can be stopped from another thread."""

    def stop(self, reason: Literal["timeout"]) -> None:
        """Ask it to end; must not block."""
        ...


class Deadlines:
    """Deadlines in `time.monotonic()` seconds, of as many items as the decoder takes requests: a few hundred."""

    def __init__(self) -> None:
        self._deadlines: dict[Stoppable, float] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder-deadlines", daemon=True)
        self._thread.start()

    def add(self, deadline: float, item: Stoppable) -> None:
        """Stop `item` at `deadline`, seconds of `time.monotonic()`, unless it is removed before."""
        with self._changed:
            self._deadlines[item] = deadline
            self._changed.notify()

    def remove(self, item: Stoppable) -> None:
        """Leave `item` alone from now on; harmless for one that isn't there."""
        with self._changed:
            self._deadlines.pop(item, None)

    def close(self) -> None:
        """Stop nothing more and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            item.stop("timeout")

    def _next(self) -> Stoppable | None:
        """Sleep until an item is due and take it out, the earliest first; None once closed."""
        with self._changed:
            while not self._closed:
                item = min(self._deadlines, key=self._deadlines.__getitem__, default=None)
                left = None if item is None else self._deadlines[item] - time.monotonic()
                if item is not None and left is not None and left <= 0:
                    del self._deadlines[item]
                    return item
                self._changed.wait(left)
        return None
