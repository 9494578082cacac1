"""What the benchmarks' tests share: the real perf_analyzer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rtprune.errors import Unavailable

if TYPE_CHECKING:
    from benchmarks.load_test.perf_analyzer import PerfAnalyzer


@pytest.fixture(scope="session")
def tool() -> PerfAnalyzer:
    """The real perf_analyzer, from the PATH or fetched once."""
    from benchmarks.load_test.perf_analyzer import find_perf_analyzer

    try:
        return find_perf_analyzer()
    except Unavailable as error:
        pytest.skip(str(error))
