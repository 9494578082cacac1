"""The checkpoint that an export reads, with the SHA-256 of its files, which are hashed once."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from export.checkpoint import Checkpoint
from export.family import special_token_ids
from export.progress import bar
from rtprune.manifest import sha256_of

CACHE = "sources.json"


class Sources:
    """The checkpoint, and hashes that are taken from an earlier run where size and time of a file are the same."""

    def __init__(self, folder: Path, caches: tuple[Path, ...]) -> None:
        self._folder = folder
        self._caches = caches

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, opened and checked. Raises InvalidInput."""
        return Checkpoint.open(self._folder)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens by name. Raises InvalidInput."""
        return special_token_ids(
            self.checkpoint.folder / "tokenizer.json", self.checkpoint.architecture.decoder.vocab_size
        )

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file of the checkpoint that is read, by name."""
        return {entry["name"]: entry["sha256"] for entry in self.entries}

    @cached_property
    def entries(self) -> list[dict[str, str]]:
        """Name, size, time and hash of each file: what the next run's cache is."""
        known = {(e["path"], e["size"], e["time"]): e["sha256"] for e in self._cached()}
        entries, files = [], self.checkpoint.files()
        with bar("hashing the checkpoint", sum(f.stat().st_size for f in files if f.is_file()), "B") as shown:
            for file in files:
                stat = file.stat()
                place = (str(file.resolve()), str(stat.st_size), str(stat.st_mtime_ns))
                sha256 = known.get(place) or sha256_of(file)
                shown.update(stat.st_size)
                path, size, time = place
                entries.append(
                    {"name": file.name, "path": path, "size": size, "time": time, "sha256": sha256}
                )
        return entries

    def _cached(self) -> list[dict[str, str]]:
        for cache in self._caches:
            try:
                entries = json.loads((cache / CACHE).read_text(encoding="utf-8"))
                return [{name: str(value) for name, value in entry.items()} for entry in entries]
            except (OSError, ValueError, TypeError, AttributeError):
                continue
        return []
