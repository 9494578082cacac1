"""Work on a lazy input with bounded concurrency, results in the input's order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(items: Iterable[Item], work: Callable[[Item], Result], concurrency: int) -> Iterator[Result]:
    """`work(item)` for each item, in order, with at most `concurrency` items taken and not yet given out.

    The next item is taken only when there's room, so a lazy input stays lazy. Stopping early (closing the
    generator) cancels what hasn't begun and waits for what has.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(concurrency, "ocr") as threads:
        try:
            for item in items:
                pending.append(threads.submit(work, item))
                if len(pending) >= concurrency:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
