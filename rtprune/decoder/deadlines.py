"""Stops requests at their time limit, wherever they are: one thread that sleeps until the next deadline."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from typing import Literal, Protocol


class Stoppable(Protocol):
    """What can be stopped from another thread."""

    def stop(self, reason: Literal["timeout"]) -> None:
        """Ask it to end; must not block."""
        ...


class Deadlines:
    """A heap of deadlines in `time.monotonic()` seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Stoppable]] = []
        self._watched: set[Stoppable] = set()
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder-deadlines", daemon=True)
        self._thread.start()

    def add(self, deadline: float, item: Stoppable) -> None:
        """Stop `item` at `deadline` unless it is removed before."""
        with self._changed:
            self._watched.add(item)
            heapq.heappush(self._heap, (deadline, next(self._numbers), item))
            if self._heap[0][2] is item:
                self._changed.notify()

    def remove(self, item: Stoppable) -> None:
        """Leave `item` alone from now on; harmless for one that isn't there."""
        with self._changed:
            self._watched.discard(item)
            if len(self._heap) > 64 and len(self._heap) > 2 * len(self._watched):
                self._heap = [entry for entry in self._heap if entry[2] in self._watched]
                heapq.heapify(self._heap)

    def close(self) -> None:
        """Stop nothing more and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            for item in due:
                item.stop("timeout")

    def _next(self) -> list[Stoppable] | None:
        """Sleep until something is due; None once closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                due: list[Stoppable] = []
                while self._heap and self._heap[0][0] <= now:
                    item = heapq.heappop(self._heap)[2]
                    if item in self._watched:
                        self._watched.discard(item)
                        due.append(item)
                if due:
                    return due
                self._changed.wait(self._heap[0][0] - now if self._heap else None)
        return None
