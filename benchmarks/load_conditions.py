"""What a load test's numbers hold for: machine, model, pages, versions, settings."""

from __future__ import annotations

import os
import platform
import shlex
import time
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean

import psutil

from benchmarks.load_pages import LoadPage
from benchmarks.load_point import WINDOWS
from benchmarks.machine import cores, cpu_name
from rtprune.errors import OcrError
from rtprune.manifest import Manifest

REFERENCE = Path(__file__).resolve().parent.parent / "training" / "checkpoint"
PACKAGES = ("tritonclient", "onnxruntime", "torch", "transformers", "numpy")
BUSY = 25.0  # per cent of the processor that other programs may use before the page warns
WARNING = (
    " (**by other programs: the numbers are too low and vary, and the ratios to one process are too high, because "
    "several processes get more of a shared machine than one**)"
)
OF_NO_EFFECT = ("_PORT", "_LOCK", "_FILE", "_URL")


def conditions(
    args: Namespace, line: Sequence[str], pages: Sequence[LoadPage], server: str, tool: str
) -> dict[str, str]:
    """Names and sentences, in the order of the page; to be taken before the first request.

    `line`: the arguments as they were given. `server`, `tool`: versions of Triton and of perf_analyzer.
    """
    packages = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _installed(name)))
    started = time.strftime("%Y-%m-%d %H:%M %Z")
    found = {
        "Command": f"`{shlex.join(['python', '-m', 'benchmarks.load_test', *line])}`, {started}",
        "Machine": f"{_machine()}. Server, perf_analyzer and baseline share it",
        "Model": _model(args),
        "Pages": _pages(args, pages),
        "Measurement": f"closed loop; for each point {WINDOWS} windows of {args.window:g} s (perf_analyzer makes them "
        "up to a fifth longer, and they are doubled where no request ended in one), reported together however they "
        "vary. Doors and prunings take turns at each number of "
        "requests at once",
        "Versions": f"Triton {server}, perf_analyzer {tool}, Python {platform.python_version()}, {packages}",
        "Settings": _settings(),
    }
    if args.options:
        found["perf_analyzer's options"] = f"`{shlex.join(args.options)}`"
    return found


def _machine() -> str:
    busy = psutil.cpu_percent(interval=1.0)
    load = f"load average {os.getloadavg()[0]:.1f}, " if hasattr(os, "getloadavg") else ""
    memory = psutil.virtual_memory().total / 2**30
    found = (
        f"{cpu_name()}, {cores()} cores, {memory:.0f} GiB; {load}{busy:.0f} % of the processor busy in the second "
        "before the first request"
    )
    return found if busy < BUSY else found + WARNING


def _model(args: Namespace) -> str:
    checkpoint: Path = args.checkpoint
    is_reference = checkpoint.resolve() == REFERENCE
    name = "the small reference model, not DeepSeek-OCR" if is_reference else checkpoint.name
    try:
        facts = Manifest.load(args.engines).facts()
    except OcrError:
        return f"{name}; the server's engines are not on this machine"
    vision = next(iter(facts["vision"].values()))
    return f"{name}; engines for {facts['target']}: vision {vision}, decoder {facts['decoder']}"


def _pages(args: Namespace, pages: Sequence[LoadPage]) -> str:
    kilobytes = fmean(len(page.image) for page in pages) / 1000
    characters = fmean(len(page.text) for page in pages)
    length = f", {characters:.0f} characters each on average" if characters else ""
    kind = (
        f"from {', '.join(args.input)}"
        if args.input
        else "rendered, with words that the model was not trained on"
    )
    return (
        f"{len(pages)} different ones, {kind}, {kilobytes:.0f} kB of image{length}; mode {args.mode}, prompt "
        f"{args.prompt!r}, {args.max_tokens} output tokens at most"
    )


def _settings() -> str:
    chosen = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("RTPRUNE_", "OCR_")) and not name.endswith(OF_NO_EFFECT)
    }
    return ", ".join(f"{name}={value}" for name, value in chosen.items()) or "all defaults"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
