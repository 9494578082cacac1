"""KV memory of fixed size: every running request holds one contiguous run of positions in it."""

from __future__ import annotations

import bisect

from rtprune.errors import EngineError

ALIGNMENT = 16  # positions; keeps runs on cache lines and the free list short


class KvAllocator:
    """Hands out runs of positions, first fit, out of `total` positions, rounded down to a multiple of 16.

    A request reserves its prompt and all its output tokens before it starts, so that a running request never
    waits for memory and never has to be thrown out; what it holds is contiguous, so that attention reads
    keys and values where they lie instead of gathering blocks. Raises EngineError for fewer than 16 positions.
    """

    def __init__(self, total: int) -> None:
        if total < ALIGNMENT:
            raise EngineError(
                f"KV memory must hold at least {ALIGNMENT} positions, got {total}; raise RTPRUNE_KV_MIB."
            )
        self.total = total - total % ALIGNMENT
        self._free: list[tuple[int, int]] = [(0, self.total)]  # (start, size), ascending, never adjacent
        self._held: dict[int, int] = {}
        self.used = 0  # positions held by requests; may be read by any thread

    def allocate(self, size: int) -> int | None:
        """Start of a run of `size` positions, rounded up to 16, or None when no free run is long enough now."""
        size = -(-size // ALIGNMENT) * ALIGNMENT
        for index, (start, free) in enumerate(self._free):
            if free >= size:
                if free == size:
                    del self._free[index]
                else:
                    self._free[index] = (start + size, free - size)
                self._held[start] = size
                self.used += size
                return start
        return None

    def free(self, start: int) -> None:
        """Give a run back; raises KeyError for one that isn't held."""
        size = self._held.pop(start)
        self.used -= size
        index = bisect.bisect(self._free, (start, 0))
        if index < len(self._free) and start + size == self._free[index][0]:
            size += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == start:
            start, before = self._free[index - 1]
            self._free[index - 1] = (start, before + size)
        else:
            self._free.insert(index, (start, size))
