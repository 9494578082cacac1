"""Writes the manifest and puts verified engines in the place of those in use, keeping one step back."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.decoder import WEIGHTS as DECODER_WEIGHTS
from export.job import Job
from export.steps import Done, installed, sync_folder
from export.tokens import TOKENIZER, VISUAL_TOKENS
from export.vision import WEIGHTS as VISION_WEIGHTS
from export.vision import graph_name
from rtprune.manifest import DecoderEntry, Manifest, VisionEntry

PACKAGES = (
    "deepseek-ocr-rtprune",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-llm",
)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


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


def publish(job: Job, keep: set[str]) -> None:
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
