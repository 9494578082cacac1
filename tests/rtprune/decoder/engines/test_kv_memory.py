"""KV memory is handed out without overlap, comes back whole, and is counted right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtprune.decoder.engines.torch.kv_memory import ALIGNMENT, KvAllocator
from rtprune.errors import EngineError

STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 400), st.integers(0, 50)), max_size=200)


@given(steps=STEPS, total=st.integers(ALIGNMENT, 1500))
def test_runs_never_overlap_and_all_memory_comes_back(steps: list[tuple[bool, int, int]], total: int) -> None:
    memory = KvAllocator(total)
    held: dict[int, int] = {}
    for allocate, size, which in steps:
        if allocate:
            start = memory.allocate(size)
            taken = sorted(held.items())
            gaps = zip([0, *(s + n for s, n in taken)], [*(s for s, _ in taken), memory.total], strict=True)
            largest = max(end - begin for begin, end in gaps)
            rounded = -(-size // ALIGNMENT) * ALIGNMENT
            assert (start is None) == (rounded > largest)
            if start is not None:
                assert start % ALIGNMENT == 0
                assert 0 <= start <= memory.total - rounded
                assert all(start + rounded <= s or s + n <= start for s, n in held.items())
                held[start] = rounded
        elif held:
            start = sorted(held)[which % len(held)]
            del held[start]
            memory.free(start)
        assert memory.used == sum(held.values())
    for start in held:
        memory.free(start)
    assert memory.used == 0
    assert memory.allocate(memory.total) == 0


def test_a_run_can_be_given_back_only_once() -> None:
    memory = KvAllocator(64)
    start = memory.allocate(10)
    assert start is not None
    memory.free(start)
    with pytest.raises(KeyError):
        memory.free(start)


def test_memory_for_less_than_one_run_is_refused() -> None:
    with pytest.raises(EngineError, match="at least 16 positions"):
        KvAllocator(ALIGNMENT - 1)
