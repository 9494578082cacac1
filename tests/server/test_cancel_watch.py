"""The watch over open streams: a cancel is passed on, and a stream is never asked after its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from server.triton.cancel import CancelWatch


@pytest.fixture
def cancelled() -> list[str]:
    return []


@pytest.fixture
def watch(cancelled: list[str]) -> Iterator[CancelWatch]:
    watch = CancelWatch(cancelled.append, 0.005)
    yield watch
    watch.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_cancel_is_passed_on_until_the_stream_ends(watch: CancelWatch, cancelled: list[str]) -> None:
    gone = threading.Event()
    watch.add("one", gone.is_set)
    watch.add("two", lambda: False)
    assert watch.under_way == 2
    assert not watch.cancelled("one")
    gone.set()
    wait_for(lambda: cancelled.count("one") >= 2)
    assert watch.cancelled("one")
    watch.remove("one")
    assert not watch.cancelled("one")
    assert watch.under_way == 1
    assert "two" not in cancelled


def test_a_removed_stream_is_never_asked_again(watch: CancelWatch) -> None:
    asked_after_end = []
    for number in range(200):
        ended = threading.Event()

        def ask(ended: threading.Event = ended, number: int = number) -> bool:
            if ended.is_set():
                asked_after_end.append(number)
            time.sleep(0.001)
            if ended.is_set():
                asked_after_end.append(number)
            return False

        watch.add(str(number), ask)
        time.sleep(0.002)
        watch.remove(str(number))
        ended.set()
    assert not asked_after_end
