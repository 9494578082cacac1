"""The benchmarks are scripts beside each other; their tests import them as they import one another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rtprune.errors import Unavailable

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

if TYPE_CHECKING:
    from perf_analyzer import PerfAnalyzer


@pytest.fixture(scope="session")
def tool() -> PerfAnalyzer:
    """The real perf_analyzer, from the PATH or fetched once."""
    from perf_analyzer import find_perf_analyzer

    try:
        return find_perf_analyzer()
    except Unavailable as error:
        pytest.skip(str(error))
