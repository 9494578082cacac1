"""The store of steps' files: a folder for each step with its key, written whole or not at all, swapped in as one."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from export.job import Job
from export.progress import Stopwatch, say
from rtprune.manifest import FileEntry, Manifest, sha256_of

if TYPE_CHECKING:
    from export.sources import Sources

NOTE = "step.json"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
ONE_NAME = ".weights"
"""Files of weights beside an ONNX graph: onnx takes one with two names for an attack, and refuses it."""


class Step(Protocol):
    """One part of the engines folder: a folder of its own, and what it depends on."""

    folder: str
    keeps_partial: bool
    """Whether an interrupted run's files are of use to the next, because the step knows which are whole."""

    def title(self, job: Job) -> str:
        """What the user reads while it runs."""
        ...

    def key(self, job: Job, sources: Sources) -> dict[str, Any]:
        """Everything that what it writes depends on."""
        ...

    def bytes_needed(self, job: Job, sources: Sources) -> int:
        """Disk space that it takes."""
        ...

    def run(self, job: Job, sources: Sources, out: Path) -> dict[str, Any]:
        """Write its files into the folder `out`; returns facts for the manifest."""
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """A step whose files are all there."""

    key: str
    facts: dict[str, Any]
    files: tuple[FileEntry, ...]
    """Paths relative to the engines folder."""

    def file(self, name: str) -> FileEntry:
        """The entry of a file of the step by its name."""
        return next(entry for entry in self.files if entry.path.endswith(f"/{name}"))


def digest(key: dict[str, Any]) -> str:
    """SHA-256 of a key, whatever the order of its parts."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def code_and_versions(modules: tuple[str, ...], packages: tuple[str, ...]) -> dict[str, str]:
    """What of the programs themselves decides a step's files: source files of export, versions of packages.

    This file writes for all of them, so it always counts.
    """
    here = Path(__file__).parent
    parts = {module: sha256_of(here / module) for module in (Path(__file__).name, *modules)}
    return parts | {package: installed(package) for package in packages}


def installed(package: str) -> str:
    """A package's version, or "none"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def read_done(root: Path, folder: str, key: str | None = None) -> Done | None:
    """What a step left in `root`/`folder`, if it is whole and (where one is given) has this key."""
    try:
        note = json.loads((root / folder / NOTE).read_text(encoding="utf-8"))
        done = Done(note["key"], note["facts"], tuple(FileEntry.model_validate(f) for f in note["files"]))
        whole = all((root / entry.path).stat().st_size == entry.bytes for entry in done.files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return done if whole and key in (None, done.key) else None


def run_step(step: Step, job: Job, sources: Sources) -> Done:
    """Do a step, or take what an earlier run of the same key left in staging or in the engines in use.

    Files are written to `<folder>.partial` and appear under their own name when they are whole and on disk.
    """
    key = digest(step.key(job, sources))
    watch = Stopwatch()
    found = read_done(job.staging, step.folder, key)
    if found:
        say(f"{step.title(job)}: up to date")
        return found
    target, partial = job.staging / step.folder, job.staging / f"{step.folder}.partial"
    if read_done(job.output, step.folder, key):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(job.output / step.folder, partial, copy_function=link_or_copy)
        return _appear(partial, target, job, step.folder, f"{step.title(job)}: up to date", key)
    if not step.keeps_partial:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        facts = step.run(job, sources, partial)
        _write_note(partial, step.folder, key, facts)
    except BaseException:
        if not step.keeps_partial:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    done = _appear(partial, target, job, step.folder, "", key)
    say(f"{step.title(job)}: {sum(f.bytes for f in done.files) / 1e6:,.1f} MB in {watch}")
    return done


def _appear(partial: Path, target: Path, job: Job, folder: str, line: str, key: str) -> Done:
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    sync_folder(target.parent)
    if line:
        say(line)
    done = read_done(job.staging, folder, key)
    if done is None:
        raise OSError(f"{target} changed while it was written")
    return done


def _write_note(partial: Path, folder: str, key: str, facts: dict[str, Any]) -> None:
    files = []
    for path in sorted(p for p in partial.rglob("*") if p.is_file() and p != partial / NOTE):
        sync_file(path)
        relative = path.relative_to(partial).as_posix()
        entry = FileEntry(path=f"{folder}/{relative}", sha256=sha256_of(path), bytes=path.stat().st_size)
        files.append(entry.model_dump())
    write_json(partial / NOTE, {"key": key, "facts": facts, "files": files})


def link_or_copy(source: str, target: str) -> str:
    """A second name for a file, or a copy where the disk has no hard links or the file may not have two names."""
    try:
        if source.endswith(ONE_NAME):
            shutil.copyfile(source, target)
        else:
            os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write whose content takes the place of `path` when the block ends well; else `path` is as it was."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that `path` holds all of it or what it held before."""
    with atomic(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def sync_file(path: Path) -> None:
    """Have a file's content on the disk, so that no crash leaves it shorter than its note says."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Have a folder's names on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap(job: Job, keep: set[str]) -> None:
    """Let staging take the place of the engines in use, which become `<output>.previous`.

    keep: names in staging that belong to the engines; everything else is removed first. Where the system can
    exchange two names in one step, there is no moment without engines; the folder is always the old or the
    new one as a whole.
    """
    for path in job.staging.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    Manifest.load(job.staging)
    sync_folder(job.staging)
    if not job.output.exists():
        job.staging.rename(job.output)
    else:
        shutil.rmtree(job.previous, ignore_errors=True)
        if exchange(job.staging, job.output):
            job.staging.rename(job.previous)
        else:
            job.output.rename(job.previous)
            job.staging.rename(job.output)
    sync_folder(job.output.parent)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step with renameat2; False where the kernel or the disk can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return int(renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)) == 0


@contextmanager
def only_one(job: Job) -> Iterator[None]:
    """Wait until no other export writes to the same output."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with job.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another export to {job.output}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
