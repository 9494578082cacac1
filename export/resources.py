"""Checks before the work whether disk and memory are enough for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from rtprune.errors import InvalidInput

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def require_disk(folder: Path, size: int) -> None:
    """Raise InvalidInput unless the disk that `folder` will be on has `size` bytes free."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise InvalidInput(
            f"{existing} has {free / 1e9:.2f} GB free, and the export needs {size / 1e9:.2f} GB there."
        )


def require_memory(size: int, what: str) -> None:
    """Raise InvalidInput unless `size` bytes of memory are free, as far as that can be known."""
    free = available_memory()
    if free is not None and free < size:
        raise InvalidInput(f"{what} needs {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free.")


def available_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that can still be used, by the machine's count and by the container's limit; None if unknown."""
    found = []
    try:
        lines = meminfo.read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        found.append(limit - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)
