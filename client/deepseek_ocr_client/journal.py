"""`pages.jsonl`: one line a finished page, with everything; it's also what a run is resumed from."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.output import atomic_write, json_line

if TYPE_CHECKING:
    from typing_extensions import Self  # noqa: UP035 - typing has it from Python 3.11

NAME = "pages.jsonl"
LOCK = ".batch.lock"
VERSION = 1


@dataclass(slots=True)
class DocumentRecord:
    """What the journal holds of a document: its digest, its length, and where each page's line starts."""

    digest: str
    page_count: int
    offsets: dict[int, int] = field(default_factory=dict)


class Journal:
    """Finished pages of an output folder. A line is on disk before its page counts as finished.

    A run that is killed leaves at most one line cut short at the end; opening the journal removes it. A
    folder belongs to one run at a time, and to one set of options: `InvalidRequest` for another, and where it
    can't be written.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = folder / NAME
        self.documents: dict[str, DocumentRecord] = {}
        self._mutex = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder / LOCK)
            header = json_line({"kind": "run", "version": VERSION, "options": options})
            self._options = json.loads(header)["options"]  # as they come back from the file
            if overwrite or not self.path.exists() or not self._read():
                with atomic_write(self.path) as file:
                    file.write(header)
            self._file = self.path.open("ab")
        except OSError as error:
            raise InvalidRequest(f"{folder} can't be written: {error.strerror or error}.") from None

    def done(self, name: str, digest: str) -> set[int]:
        """Pages of a document that are finished; none if the file has changed since."""
        record = self.documents.get(name)
        return set(record.offsets) if record is not None and record.digest == digest else set()

    def drop_stale(self, digests: Mapping[str, str]) -> None:
        """Forget documents whose file has changed, and their lines with them."""
        stale = {
            name for name, known in self.documents.items() if digests.get(name, known.digest) != known.digest
        }
        if not stale:
            return
        self._file.close()
        with self.path.open("rb") as old, atomic_write(self.path) as new:
            for line in old:
                if json.loads(line).get("name") not in stale:
                    new.write(line)
        self._read()
        self._file = self.path.open("ab")

    def add(self, name: str, digest: str, page_count: int, page: int, record: Mapping[str, Any]) -> None:
        """Write a finished page's line and put it on disk."""
        line = json_line(
            {"kind": "page", "name": name, "digest": digest, "pages": page_count, "page": page, **record}
        )
        with self._mutex:
            offset = self._file.tell()
            try:
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise InvalidRequest(f"{self.path} can't be written: {error.strerror or error}.") from None
            self._remember(name, digest, page_count, page, offset)

    def read(self, name: str, page: int) -> dict[str, Any]:
        """A finished page's line."""
        with self.path.open("rb") as file:
            file.seek(self.documents[name].offsets[page])
            line: dict[str, Any] = json.loads(file.readline())
            return line

    def close(self) -> None:
        """Release the folder."""
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> bool:
        """Read the lines that are there; False where there's not even a whole first one."""
        self.documents = {}
        with self.path.open("r+b") as file:
            first = _parse(file.readline())
            if first is None:
                return False
            if first.get("kind") != "run" or first.get("version") != VERSION:
                raise InvalidRequest(
                    f"{self.path} isn't a journal of this program.", "Choose another --output folder."
                )
            _check_options(self.path.parent, first.get("options") or {}, self._options)
            end = file.tell()
            while (line := file.readline()).endswith(b"\n"):
                self._remember(*_page_of(line, self.path), end)
                end = file.tell()
            file.truncate(end)  # a line cut short by a kill
        return True

    def _remember(self, name: str, digest: str, page_count: int, page: int, offset: int) -> None:
        record = self.documents.get(name)
        if record is None or record.digest != digest:
            record = self.documents[name] = DocumentRecord(digest, page_count)
        record.offsets[page] = offset


def _parse(line: bytes) -> dict[str, Any] | None:
    """A whole line's object, or None for one that was cut short or isn't ours."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _page_of(line: bytes, path: Path) -> tuple[str, str, int, int]:
    """(name, digest, page count, page) of a page's line."""
    record = _parse(line) or {}
    try:
        return str(record["name"]), str(record["digest"]), int(record["pages"]), int(record["page"])
    except (KeyError, TypeError, ValueError):
        raise InvalidRequest(
            f"{path} has a line that isn't a page's: {line[:60].decode(errors='replace')!r}.",
            "Remove the line, choose another --output, or start over with --overwrite.",
        ) from None


def _check_options(folder: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [
        f"{name} {there.get(name)!r} instead of {wanted.get(name)!r}"
        for name in sorted({*there, *wanted})
        if there.get(name) != wanted.get(name)
    ]
    if different:
        raise InvalidRequest(
            f"{folder} holds pages that were read with other options: {', '.join(different)}.",
            "Give the same options to resume, choose another --output, or start over with --overwrite.",
        )


def _lock(path: Path) -> IO[bytes]:
    """A lock that the system takes back when the process ends, however it ends."""
    file = path.open("wb")
    try:
        import fcntl
    except ImportError:  # Windows: no lock, and no worse than without the file
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InvalidRequest(
            f"Another run is writing to {path.parent}.", "Wait for it, or choose another --output folder."
        ) from None
    return file
