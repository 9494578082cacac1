"""The steps for a GPU: TensorRT-LLM's checkpoint, TensorRT plans and TensorRT-LLM's engine, and their manifest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.build import KEY_FILE, BatchProfile, DecoderBuild, build_decoder, build_vision, machine
from export.family import DECODER_PREFIXES
from export.job import Job
from export.manifests import manifest_of
from export.progress import bar, say
from export.sources import Sources
from export.store import Done, Step, code_and_versions, link_or_copy, read_done
from export.vision import WEIGHTS as VISION_WEIGHTS
from export.vision import graph_name
from rtprune.errors import InvalidInput
from rtprune.manifest import DecoderEntry, Manifest, VisionEntry

GRAPHS, CHECKPOINT, PLANS, ENGINE = "graphs", "checkpoint", "plans", "trtllm"
TIMING_CACHE = "timing.cache"


def dtype_name(precision: str) -> str:
    """TensorRT-LLM's name of what the decoder computes in; INT8 weights are computed with in BF16."""
    return "float16" if precision == "fp16" else "bfloat16"


class TrtllmCheckpoint:
    """The decoder as `trtllm-build` reads it."""

    folder = CHECKPOINT
    keeps_partial = False

    def title(self, job: Job) -> str:
        """What the user reads while it runs."""
        return f"TensorRT-LLM checkpoint ({job.decoder_precision})"

    def key(self, job: Job, sources: Sources) -> dict[str, Any]:
        """Everything that the checkpoint depends on."""
        code = code_and_versions(("gpu.py", "trtllm.py", "safetensors_writer.py"), ())
        return {"sources": sources.hashes, "precision": job.decoder_precision, "code": code}

    def bytes_needed(self, job: Job, sources: Sources) -> int:
        """The weights in 16 bits, whatever trtllm-build makes of them."""
        return 2 * sources.checkpoint.parameters(*DECODER_PREFIXES) + 1_000_000

    def run(self, job: Job, sources: Sources, out: Path) -> dict[str, Any]:
        """Convert, tensor by tensor. Raises InvalidInput for what the graph can't hold."""
        from export.trtllm import convert

        source = sources.checkpoint
        others = tuple(name for name in source.keys() if not name.startswith(DECODER_PREFIXES))  # noqa: SIM118
        with bar("TensorRT-LLM checkpoint", self.bytes_needed(job, sources), "B") as shown:
            convert(
                source,
                source.config["language_config"],
                out,
                precision="float16" if job.decoder_precision == "fp16" else "bfloat16",
                weight_only="int8" if job.decoder_precision == "int8" else None,
                ignored=others,
                on_tensor=lambda _, written: shown.update(written),
            )
        return {"precision": job.decoder_precision}


class VisionPlans:
    """TensorRT plans of the staged graphs. A plan that is whole and of the same key is never built again."""

    folder = PLANS
    keeps_partial = True

    def title(self, job: Job) -> str:
        """What the user reads while it runs."""
        return f"TensorRT plans ({', '.join(map(str, job.sides))} px, {job.vision_precision})"

    def key(self, job: Job, sources: Sources) -> dict[str, Any]:
        """The graphs, the machine and the batch."""
        return {
            "graphs": found(job, GRAPHS).key,
            "machine": machine(),
            "batch": job.vision_max_batch,
            "code": code_and_versions(("gpu.py", "build.py"), ()),
        }

    def bytes_needed(self, job: Job, sources: Sources) -> int:
        """Each plan holds all weights."""
        weights = found(job, GRAPHS).file(VISION_WEIGHTS).bytes
        return int(1.2 * weights * len(job.sides))

    def run(self, job: Job, sources: Sources, out: Path) -> dict[str, Any]:
        """Build one plan after the other; returns what each was built for."""
        before = job.output / PLANS
        for path in before.glob("*") if before.is_dir() else ():
            if not (out / path.name).exists() and path.suffix in (".plan", ".json"):
                link_or_copy(str(path), str(out / path.name))
        graphs, built = job.staging / GRAPHS, {}
        profile = BatchProfile(largest=job.vision_max_batch)
        with bar("TensorRT plans", len(job.sides), "plan") as shown:
            for side in job.sides:
                built[str(side)] = build_vision(
                    graphs / graph_name(side),
                    out / plan_name(side),
                    profile,
                    companions=(graphs / VISION_WEIGHTS,),
                    timing_cache=out / TIMING_CACHE,
                )
                shown.update()
        wanted = {name for side in job.sides for name in (plan_name(side), f"{plan_name(side)}.{KEY_FILE}")}
        for path in out.iterdir():
            if path.name not in wanted | {TIMING_CACHE}:
                path.unlink()
        return {"precision": job.vision_precision, "max_batch": job.vision_max_batch, "built_for": built}


class DecoderEngine:
    """TensorRT-LLM's engine of the staged checkpoint."""

    folder = ENGINE
    keeps_partial = True

    def title(self, job: Job) -> str:
        """What the user reads while it runs."""
        return f"TensorRT-LLM engine ({job.decoder_precision})"

    def key(self, job: Job, sources: Sources) -> dict[str, Any]:
        """The checkpoint, the machine and the settings of the build."""
        command = DecoderBuild().command("trtllm-build", Path("in"), Path("out"), Path("cache"))
        code = code_and_versions(("gpu.py", "build.py"), ("tensorrt-llm",))
        return {
            "checkpoint": found(job, CHECKPOINT).key,
            "machine": machine(),
            "command": command,
            "code": code,
        }

    def bytes_needed(self, job: Job, sources: Sources) -> int:
        """The engine holds all weights."""
        return int(1.2 * found(job, CHECKPOINT).file("rank0.safetensors").bytes)

    def run(self, job: Job, sources: Sources, out: Path) -> dict[str, Any]:
        """Run trtllm-build, its lines passed on; returns what the engine was built for."""
        built_for = build_decoder(
            job.staging / CHECKPOINT,
            out / "engine",
            DecoderBuild(),
            timing_cache=out / TIMING_CACHE,
            checkpoint_sha256=found(job, CHECKPOINT).file("rank0.safetensors").sha256,
            on_line=say,
        )
        return {"precision": job.decoder_precision, "built_for": built_for}


BUILT: tuple[Step, ...] = (VisionPlans(), DecoderEngine())


def plan_name(side: int) -> str:
    """Name of the plan of one input side."""
    return f"vision-{side}.plan"


def found(job: Job, folder: str) -> Done:
    """What an earlier step left in staging or in the engines in use. Raises InvalidInput when it hasn't been done."""
    done = read_done(job.staging, folder) or read_done(job.output, folder)
    if done is None:
        raise InvalidInput(
            f"Neither {job.staging} nor {job.output} holds {folder}; run the steps vision, decoder and references "
            "first, where transformers 5 is installed."
        )
    return done


def stage(job: Job, folder: str) -> None:
    """Bring a step's files into staging, from the engines in use if need be. Raises InvalidInput as `found`."""
    found(job, folder)
    if read_done(job.staging, folder) is None:
        partial = job.staging / f"{folder}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(job.output / folder, partial, copy_function=link_or_copy)
        partial.rename(job.staging / folder)


def gpu_manifest(job: Job, done: Mapping[str, Done]) -> Manifest:
    """The manifest of GPU engines. `done`: the steps by folder."""
    plans, engine = done[PLANS], done[ENGINE]
    vision = tuple(
        VisionEntry(
            side=side,
            engine="tensorrt",
            precision=plans.facts["precision"],
            file=plans.file(plan_name(side)),
            max_batch=plans.facts["max_batch"],
            built_for=plans.facts["built_for"][str(side)],
        )
        for side in job.sides
    )
    files = tuple(file for file in engine.files if file.path.startswith(f"{ENGINE}/engine/"))
    decoder = DecoderEntry(
        engine="tensorrt_llm",
        precision=engine.facts["precision"],
        folder=f"{ENGINE}/engine",
        files=files,
        built_for=engine.facts["built_for"],
    )
    return manifest_of(job, done["tokens"], vision, decoder)
