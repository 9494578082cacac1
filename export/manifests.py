"""The manifest of the engines that an export made."""

from __future__ import annotations

from collections.abc import Mapping

from export.build import PLAN
from export.decoder import FOLDER as DECODER
from export.job import Job
from export.store import StepOutput, installed
from export.tokens import FOLDER as TOKENS
from export.tokens import TOKENIZER, VISUAL_TOKENS
from export.vision import WEIGHTS, graph_name
from rtprune.manifest import DecoderEntry, Manifest, VisionEntry

VISION, GRAPHS, CHECKPOINT, ENGINE = "vision", "graphs", "checkpoint", "trtllm"
"""Folders: graphs that a CPU runs, graphs that plans are built from, what TensorRT-LLM reads, what it runs."""
PACKAGES = (
    "rtprune",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-llm",
)


def plan_folder(side: int) -> str:
    """Folder of the TensorRT plan of one input side in px."""
    return f"plan-{side}"


def cpu_manifest(job: Job, outputs: Mapping[str, StepOutput]) -> Manifest:
    """The manifest of CPU engines. `outputs`: the steps' by folder."""
    vision, decoder = outputs[VISION], outputs[DECODER]
    entries = tuple(
        VisionEntry(
            side=side,
            engine="onnxruntime",
            precision=vision.facts["precision"],
            file=vision.file(graph_name(side)),
            companions=(vision.file(WEIGHTS),),
        )
        for side in job.sides
    )
    entry = DecoderEntry(
        engine="pytorch", precision=decoder.facts["precision"], folder=DECODER, files=decoder.files
    )
    return _manifest(job, outputs[TOKENS], entries, entry)


def gpu_manifest(job: Job, outputs: Mapping[str, StepOutput]) -> Manifest:
    """The manifest of GPU engines. `outputs`: the steps' by folder."""
    engine = outputs[ENGINE]
    vision = tuple(
        VisionEntry(
            side=side,
            engine="tensorrt",
            precision=outputs[GRAPHS].facts["precision"],
            file=outputs[plan_folder(side)].file(PLAN),
            max_batch=job.vision_max_batch,
            built_for=outputs[plan_folder(side)].facts["built_for"],
        )
        for side in job.sides
    )
    decoder = DecoderEntry(
        engine="tensorrt_llm",
        precision=outputs[CHECKPOINT].facts["precision"],
        folder=ENGINE,
        files=engine.files,
        built_for=engine.facts["built_for"],
    )
    return _manifest(job, outputs[TOKENS], vision, decoder)


def _manifest(
    job: Job, tokens: StepOutput, vision: tuple[VisionEntry, ...], decoder: DecoderEntry
) -> Manifest:
    model = ("family", "model", "hidden_size", "vocab_size", "context_length", "special_tokens", "sources")
    return Manifest(
        **{name: tokens.facts[name] for name in model},
        target=job.target,
        modes=job.modes,
        vision=vision,
        visual_tokens=tokens.file(VISUAL_TOKENS),
        tokenizer_file=tokens.file(TOKENIZER),
        decoder=decoder,
        versions={name: found for name in PACKAGES if (found := installed(name)) != "none"},
    )
