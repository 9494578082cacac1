"""Disk and memory are looked at before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.resources import available_memory, require_disk, require_memory
from rtprune.errors import InvalidInput


def test_a_full_disk_is_told_with_what_is_needed(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(InvalidInput, match=r"GB free, and the export needs 1000000.00 GB there"):
        require_disk(tmp_path / "engines", 10**15)


def test_memory_is_the_machines_or_the_containers_whichever_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    1000 kB\n")
    assert available_memory(meminfo, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_memory(meminfo, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_memory(meminfo, tmp_path) == 4000
    assert available_memory(tmp_path / "none", tmp_path / "none") is None


def test_too_little_memory_is_told() -> None:
    require_memory(1, "Verifying")
    with pytest.raises(InvalidInput, match="Verifying needs 1000000.0 GB of memory"):
        require_memory(10**15, "Verifying")
