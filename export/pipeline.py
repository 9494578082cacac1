"""An export from the checkpoint to engines in use: its steps for each target, in the order in which they run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export import build, decoder, references, tokens, trtllm, verify, verify_engines, vision
from export.checkpoint import HASHES, Checkpoint
from export.family import DECODER_PREFIXES
from export.job import FACTS, Job
from export.manifests import CHECKPOINT, ENGINE, GRAPHS, VISION, cpu_manifest, gpu_manifest, plan_folder
from export.progress import say
from export.resources import require_disk
from export.store import (
    Step,
    StepOutput,
    bytes_to_write,
    code_and_versions,
    digest,
    find_output,
    read_outputs,
    run_step,
    stage,
    swap,
    write_json,
)
from rtprune.errors import EngineError, InvalidInput
from rtprune.manifest import MANIFEST, Manifest

WRITTEN_ELSEWHERE: dict[str, str | None] = dict.fromkeys(
    (tokens.FOLDER, GRAPHS, CHECKPOINT, references.FOLDER)
)
"""Folders of gpu_steps. Any key will do: a GPU machine may lack the checkpoint."""
REPORT = "verified.json"

Keys = Mapping[str, str | None]


def run(job: Job, command: str) -> None:
    """Run one command; `verify` and `all` end with the engines in use.

    Raises:
        InvalidInput: a checkpoint that isn't right, a step that is missing, or too little disk or memory.
        EngineError: a build that failed, or engines that don't compute what the checkpoint does.
    """
    if job.target == "cpu":
        _run_cpu(job, command)
    else:
        _run_gpu(job, command)


def cpu_steps(job: Job, checkpoint: Checkpoint) -> list[Step]:
    """What the CPU's engines consist of."""
    precision = decoder.chosen_precision(job, checkpoint)
    return [
        _tokens(checkpoint),
        _graphs(VISION, job, checkpoint),
        Step(
            decoder.FOLDER,
            f"decoder weights for PyTorch ({precision})",
            {"sources": checkpoint.hashes, "precision": precision},
            decoder.CODE,
            decoder.bytes_needed(job, checkpoint),
            lambda out: decoder.write_decoder(checkpoint, precision, out),
            command="decoder",
        ),
    ]


def gpu_steps(job: Job, checkpoint: Checkpoint) -> list[Step]:
    """What a GPU's engines are built from; transformers is installed where these run."""
    return [
        _tokens(checkpoint),
        _graphs(GRAPHS, job, checkpoint),
        Step(
            CHECKPOINT,
            f"TensorRT-LLM checkpoint ({job.decoder_precision})",
            {"sources": checkpoint.hashes, "precision": job.decoder_precision},
            trtllm.CODE,
            2 * checkpoint.parameters(*DECODER_PREFIXES) + 1_000_000,
            lambda out: trtllm.write_checkpoint(checkpoint, job.decoder_precision, out),
            command="decoder",
        ),
        Step(
            references.FOLDER,
            f"reference outputs ({len(job.sides)} sizes, {len(references.PROMPTS)} prompts)",
            {"sources": checkpoint.hashes, "sides": job.sides},
            references.CODE,
            references.bytes_needed(job, checkpoint),
            lambda out: references.write_references(job, checkpoint, out),
            packages=("torch", "transformers"),
            command="references",
        ),
    ]


def build_steps(job: Job, before: Mapping[str, StepOutput]) -> list[Step]:
    """What is built on the GPU machine, which may lack the checkpoint, from the outputs `before` of gpu_steps.

    Raises InvalidInput when they lack a graph, EngineError without TensorRT or a GPU.
    """
    machine = build.machine()
    return [*(_plan(job, side, before[GRAPHS], machine) for side in job.sides), _engine(job, before, machine)]


def _tokens(checkpoint: Checkpoint) -> Step:
    return Step(
        tokens.FOLDER,
        "tokenizer and layout tokens",
        {"sources": checkpoint.hashes},
        tokens.CODE,
        2_000_000
        + sum(f.stat().st_size for f in checkpoint.files() if f.name == tokens.TOKENIZER and f.exists()),
        lambda out: tokens.write_tokens(checkpoint, out),
    )


def _graphs(folder: str, job: Job, checkpoint: Checkpoint) -> Step:
    return Step(
        folder,
        f"vision graphs ({', '.join(map(str, job.sides))} px, {job.vision_precision})",
        {
            "sources": checkpoint.hashes,
            "sides": job.sides,
            "precision": job.vision_precision,
            "target": job.target,
        },
        vision.CODE,
        vision.bytes_needed(job, checkpoint),
        lambda out: vision.write_graphs(job, checkpoint, out),
        packages=("torch", "onnx"),
        command="vision",
    )


def _plan(job: Job, side: int, graphs: StepOutput, machine: dict[str, str]) -> Step:
    graph, weights = graphs.file(vision.graph_name(side)), graphs.file(vision.WEIGHTS)
    profile = build.profile_of(job)
    built_for = machine | {
        "graph": digest({"graph": graph.sha256, "weights": weights.sha256}),
        "batch": f"1,{profile.best},{profile.largest}",
    }
    return Step(
        plan_folder(side),
        f"TensorRT plan ({side} px, {graphs.facts['precision']})",
        built_for,
        build.CODE,
        int(1.2 * weights.bytes),
        lambda out: build.write_plan(job, graph, built_for, out),
    )


def _engine(job: Job, before: Mapping[str, StepOutput], machine: dict[str, str]) -> Step:
    checkpoint = before[CHECKPOINT]
    built_for = machine | {
        "tensorrt_llm": build.TRTLLM_VERSION,
        "checkpoint": checkpoint.key,
        "settings": digest({"options": build.DecoderBuild().options}),
    }
    return Step(
        ENGINE,
        f"TensorRT-LLM engine ({checkpoint.facts['precision']})",
        built_for,
        build.CODE,
        int(1.2 * checkpoint.file(trtllm.WEIGHTS).bytes),
        lambda out: build.write_engine(job, CHECKPOINT, built_for, out),
        packages=("tensorrt-llm",),
    )


def has_tensorrt() -> bool:
    """Whether this is the environment that builds."""
    return importlib.util.find_spec("tensorrt") is not None


def _run_cpu(job: Job, command: str) -> None:
    if command == "build":
        say("nothing to build for a CPU")
        return
    checkpoint = Checkpoint.open(job.checkpoint, (job.staging, job.output))
    steps = cpu_steps(job, checkpoint)
    keys = _keys(steps)
    if command == "all" and _in_use(job, keys, cpu_manifest):
        say(f"{job.output}: up to date")
        return
    if command != "verify":
        _run_steps(job, steps, command, checkpoint)
    if command in ("verify", "all"):
        _verify_and_swap(job, keys, cpu_manifest, lambda root: verify.verify_cpu(root, checkpoint))


def _run_gpu(job: Job, command: str) -> None:
    if command not in ("build", "verify"):
        checkpoint = Checkpoint.open(job.checkpoint, (job.staging, job.output))
        steps = gpu_steps(job, checkpoint)
        used = read_outputs(job.output, _keys(steps)) if command == "all" and has_tensorrt() else None
        if used and _in_use(job, _keys(steps) | _keys(build_steps(job, used)), gpu_manifest):
            say(f"{job.output}: up to date")
            return
        _run_steps(job, steps, command, checkpoint)
        if command == "all" and not has_tensorrt():
            say(
                f"{job.staging}: ready to be built; on the GPU machine, in the TensorRT-LLM container, run the "
                "steps build and verify with the same --output"
            )
        if command != "all" or not has_tensorrt():
            return
    if command == "verify" and not any(read_outputs(r, WRITTEN_ELSEWHERE) for r in (job.staging, job.output)):
        raise _nothing_to_verify(job)
    before = {folder: find_output(job, folder) for folder in WRITTEN_ELSEWHERE}
    steps = build_steps(job, before)
    if command in ("build", "all"):
        require_disk(job.output, sum(bytes_to_write(job, step) for step in steps))
        for folder in WRITTEN_ELSEWHERE:
            stage(job, folder)
        _run_steps(job, steps, "all")
    if command in ("verify", "all"):
        keys = WRITTEN_ELSEWHERE | _keys(steps)
        _verify_and_swap(job, keys, gpu_manifest, verify_engines.verify_engines)


def _keys(steps: Sequence[Step]) -> dict[str, str | None]:
    return {step.folder: step.key for step in steps}


def _run_steps(job: Job, steps: Sequence[Step], command: str, checkpoint: Checkpoint | None = None) -> None:
    """Run those of the steps that belong to a command, once there is room for all of them."""
    wanted = [step for step in steps if command == "all" or step.command in ("", command)]
    require_disk(job.output, sum(bytes_to_write(job, step) for step in wanted))
    job.staging.mkdir(parents=True, exist_ok=True)
    write_json(job.staging / FACTS, job.facts)
    if checkpoint is not None:
        write_json(job.staging / HASHES, checkpoint.hash_entries)
    for step in wanted:
        run_step(job, step)


def _verify_and_swap(
    job: Job,
    keys: Keys,
    manifest: Callable[[Job, Mapping[str, StepOutput]], Manifest],
    check: Callable[[Path], list[dict[str, Any]]],
) -> None:
    """Verify what is staged and let it become the engines in use; with nothing staged, verify those."""
    outputs = read_outputs(job.staging, keys)
    if outputs is None:
        if read_outputs(job.output, keys) is None:
            raise _nothing_to_verify(job)
        check(job.output)
        return
    write_json(job.staging / MANIFEST, manifest(job, outputs).model_dump(mode="json"))
    checks = check(job.staging)
    write_json(job.staging / REPORT, {"key": _verify_key(outputs), "checks": checks})
    swap(job, {MANIFEST, REPORT, HASHES, FACTS, *outputs})
    say(f"{job.output}: ready")


def _nothing_to_verify(job: Job) -> InvalidInput:
    return InvalidInput(
        f"There is nothing to verify for these options at {job.output}; run the other steps first."
    )


def _in_use(job: Job, keys: Keys, manifest: Callable[[Job, Mapping[str, StepOutput]], Manifest]) -> bool:
    """Whether the engines in use are what this job would write, verified."""
    outputs = read_outputs(job.output, keys)
    if outputs is None:
        return False
    try:
        report = json.loads((job.output / REPORT).read_text(encoding="utf-8"))
        same = Manifest.load(job.output).model_dump() == manifest(job, outputs).model_dump()
        return same and bool(report["key"] == _verify_key(outputs))
    except (OSError, ValueError, KeyError, TypeError, EngineError):
        return False


def _verify_key(outputs: Mapping[str, StepOutput]) -> str:
    programs = code_and_versions((*verify.CODE, *verify_engines.CODE), ("transformers", "onnxruntime"))
    return digest({folder: output.key for folder, output in outputs.items()} | programs)
