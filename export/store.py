"""The store of an export: a folder for each step's output under a key, written whole or not at all, swapped in as one.

Steps write to `Job.staging`. What is there or in the engines in use under the same key is taken as it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from export.job import Job
from export.progress import Stopwatch, say
from rtprune.errors import EngineError, InvalidInput
from rtprune.manifest import FileEntry, Manifest, sha256_of

NOTE = "step.json"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
ONE_NAME = ".weights"
"""Files of weights beside an ONNX graph: onnx takes one with two names for an attack, and refuses it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One folder of the engines, what it depends on, and the function that writes it.

    command: the command line's step that runs it beside `all`; empty for every one.
    depends_on: inputs and settings, as JSON.
    code, packages: source files of export, and installed packages, that decide what is written.
    bytes_needed: disk space that it takes.
    write: writes the files into the empty folder that it gets; returns facts for the manifest.
    """

    folder: str
    title: str
    depends_on: Mapping[str, Any]
    code: tuple[str, ...]
    bytes_needed: int
    write: Callable[[Path], dict[str, Any]]
    packages: tuple[str, ...] = ()
    command: str = ""

    @property
    def key(self) -> str:
        """What tells this output from every other: SHA-256 of inputs, settings and programs."""
        return digest({**self.depends_on, "programs": code_and_versions(self.code, self.packages)})


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step wrote: its key, its facts for the manifest, and its files, relative to the engines folder."""

    key: str
    facts: dict[str, Any]
    files: tuple[FileEntry, ...]

    def file(self, name: str) -> FileEntry:
        """The entry of a file of the step by its name. Raises InvalidInput when the step wrote none of that name."""
        for entry in self.files:
            if entry.path.endswith(f"/{name}"):
                return entry
        raise InvalidInput(
            f"What was exported before holds no {name}; run the step that writes it with these options first."
        )


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256, hex digits, of content as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_and_versions(code: tuple[str, ...], packages: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of source files of export, this one among them, and versions of packages."""
    here = Path(__file__).parent
    parts = {name: sha256_of(here / name) for name in (Path(__file__).name, *code)}
    return parts | {package: installed(package) for package in packages}


def installed(package: str) -> str:
    """A package's version, or "none"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def read_output(root: Path, folder: str, key: str | None = None) -> StepOutput | None:
    """What a step left in `root`/`folder`, if its files are all there and (where one is given) it has this key."""
    try:
        note = json.loads((root / folder / NOTE).read_text(encoding="utf-8"))
        output = StepOutput(note["key"], note["facts"], tuple(map(FileEntry.model_validate, note["files"])))
        whole = all((root / entry.path).stat().st_size == entry.bytes for entry in output.files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return output if whole and key in (None, output.key) else None


def read_outputs(root: Path, keys: Mapping[str, str | None]) -> dict[str, StepOutput] | None:
    """All outputs by folder, or None if one is missing or has another key. None for a key takes any."""
    found = {folder: read_output(root, folder, key) for folder, key in keys.items()}
    whole = {folder: output for folder, output in found.items() if output is not None}
    return whole if len(whole) == len(found) else None


def find_output(job: Job, folder: str) -> StepOutput:
    """What an earlier step left in staging or in the engines in use. Raises InvalidInput when it hasn't been run."""
    output = read_output(job.staging, folder) or read_output(job.output, folder)
    if output is None:
        raise InvalidInput(
            f"Neither {job.staging} nor {job.output} holds {folder}; run the steps vision, decoder and references "
            "first, where transformers 5 is installed."
        )
    return output


def bytes_to_write(job: Job, step: Step) -> int:
    """Bytes of disk that `run_step` will take, where the disk has hard links."""
    key = step.key
    if read_output(job.staging, step.folder, key):
        return 0
    used = read_output(job.output, step.folder, key)
    if used is None:
        return step.bytes_needed
    return sum(file.bytes for file in used.files if file.path.endswith(ONE_NAME))


def run_step(job: Job, step: Step) -> None:
    """Have a step's output in staging: written now, or what an earlier run of the same key left.

    Raises:
        EngineError: safetensors couldn't write; OSError for every other file.
    """
    key, watch = step.key, Stopwatch()
    if read_output(job.staging, step.folder, key) or read_output(job.output, step.folder, key):
        stage(job, step.folder, key)
        say(f"{step.title}: up to date")
        return
    with _folder(job.staging / step.folder) as partial:
        try:
            facts = step.write(partial)
        except SafetensorError as error:
            raise EngineError(
                f"{step.title} couldn't be written: {error}. The engines in use are as they were."
            ) from error
        size = _write_note(partial, step.folder, key, facts)
    say(f"{step.title}: {size / 1e6:,.1f} MB in {watch}")


def stage(job: Job, folder: str, key: str | None = None) -> None:
    """Bring an output of the engines in use into staging, unless one of that key (None: of any) is there."""
    if read_output(job.staging, folder, key) is None:
        with _folder(job.staging / folder) as partial:
            shutil.copytree(job.output / folder, partial, copy_function=link_or_copy, dirs_exist_ok=True)


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `target` when the block ends well, and is gone when it doesn't."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    sync(target.parent)


def _write_note(partial: Path, folder: str, key: str, facts: dict[str, Any]) -> int:
    """Have the files on the disk, and a note beside them that names them; returns their bytes."""
    files = []
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        path.chmod(
            0o644
        )  # safetensors leaves its files to their owner alone; a container's plain user reads them too
        sync(path)
        name = f"{folder}/{path.relative_to(partial).as_posix()}"
        files.append(FileEntry(path=name, sha256=sha256_of(path), bytes=path.stat().st_size).model_dump())
    write_json(partial / NOTE, {"key": key, "facts": facts, "files": files})
    return sum(file["bytes"] for file in files)


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


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk, so that no crash takes them back."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap(job: Job, keep: set[str]) -> None:
    """Let staging take the place of the engines in use, which become `<output>.previous`.

    keep: names in staging that belong to the engines; everything else is removed first. Where the system can
    exchange two names in one step, there is no moment without engines; the folder is always the old or the
    new one as a whole. Raises EngineError when a file of the manifest is missing.
    """
    for path in job.staging.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    Manifest.load(job.staging)
    sync(job.staging)
    if not job.output.exists():
        job.staging.rename(job.output)
    else:
        shutil.rmtree(job.previous, ignore_errors=True)
        if exchange(job.staging, job.output):
            job.staging.rename(job.previous)
        else:
            job.output.rename(job.previous)
            job.staging.rename(job.output)
    sync(job.output.parent)


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
