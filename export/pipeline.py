"""The order of an export's steps for each target, from the checkpoint to engines in use."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

from export.decoder import CpuDecoder
from export.gpu import BUILT, CHECKPOINT, GRAPHS, TrtllmCheckpoint, gpu_manifest, stage
from export.job import FACTS, Job
from export.manifests import cpu_manifest
from export.progress import say
from export.references import FOLDER as REFERENCES
from export.references import References
from export.resources import require_disk, require_memory
from export.sources import CACHE, Sources
from export.store import (
    ONE_NAME,
    Done,
    Step,
    code_and_versions,
    digest,
    read_done,
    run_step,
    swap,
    write_json,
)
from export.tokens import Tokens
from export.verify import CODE as VERIFY_CODE
from export.verify import memory_needed, verify_cpu
from export.verify_engines import verify_engines
from export.vision import VisionGraphs
from rtprune.errors import EngineError, InvalidInput
from rtprune.manifest import MANIFEST, Manifest

REPORT = "verified.json"
STAGED_FOR_BUILD = (Tokens.folder, GRAPHS, CHECKPOINT, REFERENCES)


def steps_of(job: Job, command: str) -> list[Step]:
    """The steps of a command that read the checkpoint; `build` has none."""
    cpu = job.target == "cpu"
    vision = VisionGraphs(job.target)
    decoder: Step = CpuDecoder() if cpu else TrtllmCheckpoint()
    references: list[Step] = [] if cpu else [References()]
    steps: dict[str, list[Step]] = {
        "vision": [Tokens(), vision],
        "decoder": [Tokens(), decoder],
        "references": [Tokens(), *references],
        "build": [],
        "verify": [],
        "all": [Tokens(), vision, decoder, *references],
    }
    return steps[command]


def has_tensorrt() -> bool:
    """Whether this is the environment that builds."""
    return importlib.util.find_spec("tensorrt") is not None


def run(job: Job, command: str) -> None:
    """Run one command; `verify` and `all` end with the engines in use.

    Raises:
        InvalidInput: a checkpoint that isn't right, a step that is missing, or too little disk or memory.
        EngineError: a build that failed, or engines that don't compute what the checkpoint does.
    """
    sources = Sources(job.checkpoint, (job.staging, job.output))
    if command == "all" and in_use(job, sources):
        say(f"{job.output}: up to date")
        return
    steps = steps_of(job, command)
    if steps:
        _check_room(job, sources, steps)
        job.staging.mkdir(parents=True, exist_ok=True)
        write_json(job.staging / CACHE, sources.entries)
        write_json(job.staging / FACTS, job.facts)
        for step in steps:
            run_step(step, job, sources)
    if job.target == "cpu":
        if command == "build":
            say("nothing to build for a CPU")
    elif command == "build" or (command == "all" and has_tensorrt()):
        build(job, sources)
    elif command == "all":
        say(
            f"{job.staging}: ready to be built; on the GPU machine, in the TensorRT-LLM container, run the steps "
            "build and verify with the same --output"
        )
        return
    if command in ("verify", "all"):
        verify_and_swap(job, sources)


def build(job: Job, sources: Sources) -> None:
    """Build plans and engine from what the other steps wrote, which is brought into staging with them."""
    _check_room(job, sources, BUILT)
    job.staging.mkdir(parents=True, exist_ok=True)
    for folder in STAGED_FOR_BUILD:
        stage(job, folder)
    write_json(job.staging / FACTS, job.facts)
    for step in BUILT:
        run_step(step, job, sources)


def verify_and_swap(job: Job, sources: Sources) -> None:
    """Verify what is staged and let it become the engines in use; with nothing staged, verify those."""
    trust = job.target == "gpu"
    done = _done(job, sources, staged=True, trust=trust)
    if done is None and _done(job, sources, staged=False, trust=trust) is None:
        raise InvalidInput(
            f"There is nothing to verify for these options at {job.output}; run the other steps first."
        )
    if job.target == "cpu":
        require_memory(memory_needed(job, sources), "Verifying")
    root = job.output if done is None else job.staging
    if done is not None:
        write_json(root / MANIFEST, _manifest(job, done).model_dump(mode="json"))
    checks = verify_cpu(root, job, sources) if job.target == "cpu" else verify_engines(root)
    if done is not None:
        write_json(root / REPORT, {"key": _verify_key(done), "checks": checks})
        swap(job, {MANIFEST, REPORT, CACHE, FACTS, *done})
        say(f"{job.output}: ready")


def in_use(job: Job, sources: Sources) -> bool:
    """Whether the engines in use are what this job would write, verified."""
    if job.target == "gpu" and not has_tensorrt():
        return False
    done = _done(job, sources, staged=False)
    if done is None:
        return False
    try:
        report = json.loads((job.output / REPORT).read_text(encoding="utf-8"))
        expected = _manifest(job, done).model_dump()
        return bool(report["key"] == _verify_key(done)) and Manifest.load(job.output).model_dump() == expected
    except (OSError, ValueError, KeyError, TypeError, EngineError):
        return False


def _manifest(job: Job, done: Mapping[str, Done]) -> Manifest:
    return cpu_manifest(job, done) if job.target == "cpu" else gpu_manifest(job, done)


def _verify_key(done: Mapping[str, Done]) -> str:
    keys: dict[str, Any] = {folder: one.key for folder, one in done.items()}
    code = code_and_versions((*VERIFY_CODE, "verify_engines.py"), ("transformers", "onnxruntime"))
    return digest(keys | code)


def _done(job: Job, sources: Sources, *, staged: bool, trust: bool = False) -> dict[str, Done] | None:
    """All steps as they lie in staging or in the engines in use, or None if one is missing or has another key.

    trust: take the steps before `build` as they are; a GPU machine hasn't the checkpoint, and other versions.
    """
    root = job.staging if staged else job.output
    found: dict[str, Done] = {}
    for step in steps_of(job, "all"):
        done = read_done(root, step.folder, None if trust else digest(step.key(job, sources)))
        if done is None:
            return None
        found[step.folder] = done
    for step in BUILT if job.target == "gpu" else ():
        done = read_done(root, step.folder, digest(step.key(job, sources)))
        if done is None:
            return None
        found[step.folder] = done
    return found


def _check_room(job: Job, sources: Sources, steps: Sequence[Step]) -> None:
    needed = 0
    for step in steps:
        key = digest(step.key(job, sources))
        if read_done(job.staging, step.folder, key):
            continue
        done = read_done(job.output, step.folder, key)
        copied = [file.bytes for file in done.files if file.path.endswith(ONE_NAME)] if done else []
        needed += sum(copied) if done else step.bytes_needed(job, sources)
    require_disk(job.output, needed)
