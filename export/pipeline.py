"""The order of an export's steps for each target, from the checkpoint to engines in use."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from export.decoder import CpuDecoder
from export.job import Job
from export.progress import say
from export.publish import cpu_manifest, publish
from export.resources import require_disk, require_memory
from export.sources import CACHE, Sources
from export.steps import Done, Step, code_and_versions, digest, read_done, run_step, write_json
from export.tokens import Tokens
from export.verify import CODE as VERIFY_CODE
from export.verify import memory_needed, verify_cpu
from export.vision import VisionGraphs
from rtprune.errors import EngineError, InvalidInput
from rtprune.manifest import MANIFEST, Manifest

REPORT = "verified.json"
COMMANDS = ("vision", "decoder", "build", "verify", "all")


def cpu_steps(command: str) -> list[Step]:
    """The steps of a command for target cpu; nothing has to be built there."""
    steps: dict[str, list[Step]] = {
        "vision": [Tokens(), VisionGraphs("cpu")],
        "decoder": [Tokens(), CpuDecoder()],
        "build": [],
        "verify": [],
        "all": [Tokens(), CpuDecoder(), VisionGraphs("cpu")],
    }
    return steps[command]


def export_cpu(job: Job, command: str) -> None:
    """Run one command for target cpu; `verify` and `all` end with the engines in use.

    Raises:
        InvalidInput: a checkpoint that isn't right, or too little disk or memory.
        EngineError: what was written doesn't compute what the checkpoint does.
    """
    sources = Sources(job.checkpoint, (job.staging, job.output))
    steps = cpu_steps(command)
    if command == "build":
        say("nothing to build for a CPU")
        return
    if command == "all" and _in_use(job, sources, steps):
        say(f"{job.output}: up to date")
        return
    _check_room(job, sources, steps)
    job.staging.mkdir(parents=True, exist_ok=True)
    write_json(job.staging / CACHE, sources.entries)
    for step in steps:
        run_step(step, job, sources)
    if command in ("verify", "all"):
        verify_and_publish(job, sources)


def verify_and_publish(job: Job, sources: Sources) -> None:
    """Verify what is staged and let it become the engines in use; with nothing staged, verify those."""
    steps = cpu_steps("all")
    done = _done(job, sources, steps, staged=True)
    if done is None:
        if _done(job, sources, steps, staged=False) is None:
            raise InvalidInput(
                f"There is nothing to verify for these options at {job.output}; run the steps vision and decoder first."
            )
        verify_cpu(job.output, job, sources)
        return
    require_memory(memory_needed(job, sources), "Verifying")
    write_json(job.staging / MANIFEST, cpu_manifest(job, done).model_dump(mode="json"))
    checks = verify_cpu(job.staging, job, sources)
    write_json(job.staging / REPORT, {"key": _verify_key(done), "checks": checks})
    publish(job, {MANIFEST, REPORT, CACHE, *done})
    say(f"{job.output}: ready")


def _in_use(job: Job, sources: Sources, steps: Sequence[Step]) -> bool:
    """Whether the engines in use are what this job would write, verified."""
    done = _done(job, sources, steps, staged=False)
    if done is None:
        return False
    try:
        report = json.loads((job.output / REPORT).read_text(encoding="utf-8"))
        expected = cpu_manifest(job, done).model_dump()
        return bool(report["key"] == _verify_key(done)) and Manifest.load(job.output).model_dump() == expected
    except (OSError, ValueError, KeyError, TypeError, EngineError):
        return False


def _verify_key(done: dict[str, Done]) -> str:
    keys: dict[str, Any] = {folder: one.key for folder, one in done.items()}
    return digest(keys | code_and_versions(VERIFY_CODE, ("transformers", "onnxruntime")))


def _done(job: Job, sources: Sources, steps: Sequence[Step], *, staged: bool) -> dict[str, Done] | None:
    """All steps as they lie in staging or in the engines in use, or None if one of them isn't there."""
    root = job.staging if staged else job.output
    found = {step.folder: read_done(root, step.folder, digest(step.key(job, sources))) for step in steps}
    whole = {folder: done for folder, done in found.items() if done is not None}
    return whole if len(whole) == len(found) else None


def _check_room(job: Job, sources: Sources, steps: Sequence[Step]) -> None:
    needed = 0
    for step in steps:
        key = digest(step.key(job, sources))
        if not any(read_done(root, step.folder, key) for root in (job.staging, job.output)):
            needed += step.bytes_needed(job, sources)
    require_disk(job.output, needed)


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


def run(job: Job, command: str) -> None:
    """Run one command for the job's target."""
    if job.target == "cpu":
        export_cpu(job, command)
    else:
        raise InvalidInput("gpu: not yet")
