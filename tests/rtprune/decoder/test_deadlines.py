"""Deadlines fire once each, in order, and not for what was removed."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import pytest

from rtprune.decoder.deadlines import Deadlines


class Item:
    def __init__(self, stopped: queue.SimpleQueue[Item]) -> None:
        self._stopped = stopped

    def stop(self, reason: str) -> None:
        assert reason == "timeout"
        self._stopped.put(self)


@pytest.fixture
def deadlines() -> Iterator[Deadlines]:
    deadlines = Deadlines()
    yield deadlines
    deadlines.close()


def test_items_stop_in_the_order_of_their_deadlines(deadlines: Deadlines) -> None:
    stopped: queue.SimpleQueue[Item] = queue.SimpleQueue()
    late, early, past = (Item(stopped) for _ in range(3))
    now = time.monotonic()
    deadlines.add(now + 0.2, late)
    deadlines.add(now + 0.1, early)
    deadlines.add(now - 5, past)
    assert [stopped.get(timeout=30) for _ in range(3)] == [past, early, late]
    assert time.monotonic() >= now + 0.2


def test_a_removed_item_is_left_alone_and_its_entry_does_not_stay(deadlines: Deadlines) -> None:
    stopped: queue.SimpleQueue[Item] = queue.SimpleQueue()
    removed = [Item(stopped) for _ in range(1000)]
    kept = Item(stopped)
    deadlines.add(time.monotonic() + 0.1, kept)
    for item in removed:
        deadlines.add(time.monotonic() + 3600, item)
        deadlines.remove(item)
    deadlines.remove(Item(stopped))
    assert stopped.get(timeout=30) is kept
    assert len(deadlines._deadlines) < 100
    assert stopped.empty()
