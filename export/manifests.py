"""The manifest of the engines that an export made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.decoder import WEIGHTS as DECODER_WEIGHTS
from export.job import Job
from export.store import Done, installed
from export.tokens import TOKENIZER, VISUAL_TOKENS
from export.vision import WEIGHTS as VISION_WEIGHTS
from export.vision import graph_name
from rtprune.manifest import DecoderEntry, Manifest, VisionEntry

PACKAGES = (
    "rtprune",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-llm",
)


def cpu_manifest(job: Job, done: Mapping[str, Done]) -> Manifest:
    """The manifest of CPU engines. `done`: the steps by folder."""
    vision, decoder = done["vision"], done["decoder"]
    entries = tuple(
        VisionEntry(
            side=side,
            engine="onnxruntime",
            precision=vision.facts["precision"],
            file=vision.file(graph_name(side)),
            companions=(vision.file(VISION_WEIGHTS),),
        )
        for side in job.sides
    )
    entry = DecoderEntry(
        engine="pytorch",
        precision=decoder.facts["precision"],
        folder="decoder",
        files=(decoder.file("config.json"), decoder.file(DECODER_WEIGHTS)),
    )
    return manifest_of(job, done["tokens"], entries, entry)


def manifest_of(job: Job, tokens: Done, vision: tuple[VisionEntry, ...], decoder: DecoderEntry) -> Manifest:
    """A manifest of these engines, with what the tokens step knows of the model."""
    facts: dict[str, Any] = tokens.facts
    return Manifest(
        **{
            k: facts[k]
            for k in ("family", "hidden_size", "vocab_size", "context_length", "special_tokens", "sources")
        },
        target=job.target,
        modes=job.modes,
        vision=vision,
        visual_tokens=tokens.file(VISUAL_TOKENS),
        tokenizer_file=tokens.file(TOKENIZER),
        decoder=decoder,
        versions={name: found for name in PACKAGES if (found := installed(name)) != "none"},
    )
