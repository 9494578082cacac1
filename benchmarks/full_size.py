"""Exports a random checkpoint of DeepSeek-OCR's exact size on this machine, and measures each step.

`python -m benchmarks.full_size` takes about 30 GB of disk and the better part of an hour on two cores; `--scale
reference` runs the same code on the reference checkpoint's sizes in a minute. Every step is a process of its own,
so that its peak memory is its own: the export's steps are run by their command line, as a user runs them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rtprune.errors import EngineError, InvalidInput, OcrError

Scale = Literal["full", "reference"]
WAITER = """
import os, sys
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
os.write(int(sys.argv[1]), str(usage.ru_maxrss).encode())
sys.exit(abs(os.waitstatus_to_exitcode(status)))
"""
"""Runs a command and tells its peak. A process inherits its parent's peak, so the parent must be a small one."""
RESULTS = Path("benchmarks/results/full_size.md")
SIDES = {"small": 640, "base": 1024}
DISK = 30 * 10**9
MEASURED = "measured.json"
"""What each step took, so that the page still holds them when only some are run again."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One step: its wall time in seconds, its peak resident memory and what it wrote, in bytes, and its own words."""

    name: str
    seconds: float
    peak: int
    written: int
    says: str = ""


# --- Steps that run in a process of their own -----------------------------------------------------------------------


def write_checkpoint(folder: Path, scale: Scale) -> str:
    """Write the random checkpoint, with a tokenizer; returns its numbers of tensors and parameters."""
    from export.hf_tensors import CONFIG
    from training.config import checkpoint_config
    from training.random_checkpoint import write_random_checkpoint
    from training.tokenizer import build_tokenizer, save_tokenizer

    config = CONFIG if scale == "full" else checkpoint_config(build_tokenizer().get_vocab_size())
    count, parameters = write_random_checkpoint(folder, config)
    save_tokenizer(folder)
    return f"{count:,} tensors, {parameters:,} parameters"


def load_decoder(folder: Path) -> str:
    """Open the CPU decoder in BF16; returns how many seconds that took. Raises EngineError for broken files."""
    import torch

    from rtprune.decoder.engines.torch.model import TorchDecoder

    started = time.perf_counter()
    model = TorchDecoder(folder, torch.bfloat16, torch.device("cpu"))
    return f"{model.config.num_hidden_layers} layers loaded in {time.perf_counter() - started:.1f} s"


def compare_decoder(checkpoint: Path, folder: Path) -> str:
    """Compare the CPU decoder's logits with transformers'; returns a sentence."""
    from benchmarks.decoder_check import compare

    return compare(checkpoint, folder)


def convert_decoder(checkpoint: Path, output: Path) -> str:
    """Write the decoder as a TensorRT-LLM checkpoint; returns its megabytes. Raises InvalidInput as `convert`."""
    from export.checkpoint import Checkpoint
    from export.trtllm import convert

    source = Checkpoint.open(checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    size = convert(source, source.architecture.decoder, output, after_tensor=source.close)
    return f"{size / 1e6:,.1f} MB of weights"


# --- Measuring ------------------------------------------------------------------------------------------------------


def measure(name: str, command: list[str], *written: Path) -> Measurement:
    """Run a command to its end and measure it; EngineError when it fails.

    What it verified, or else what it printed last, becomes `says`.
    """
    say(f"\n== {name}\n$ {shlex.join(command)}\n")
    started = time.perf_counter()
    read, write = os.pipe()
    # An argument list of this module's own making, without a shell.
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", WAITER, str(write), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=[write],
    )
    os.close(write)
    lines = []
    for line in process.stdout or ():
        say(line)
        if line.strip():
            lines.append(line.strip())
    code = process.wait()
    with os.fdopen(read) as answer:
        peak = int(answer.read() or 0) * 1024
    if code:
        raise EngineError(f"{name} failed with status {code}.")
    seconds = time.perf_counter() - started
    size = sum(size_of(path) for path in written)
    verified = [line.removeprefix("verified ") for line in lines if line.startswith("verified vision")]
    return Measurement(name, seconds, peak, size, "; ".join(verified or lines[-1:]))


def say(text: str) -> None:
    """Show text at once: a step's output is watched while it runs."""
    sys.stdout.write(text)
    sys.stdout.flush()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def machine() -> str:
    """Processor, cores that this process may use, and memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{names[0] if names else platform.machine()}, {cores} cores, {memory:.0f} GiB"


def report(measurements: list[Measurement], scale: Scale) -> str:
    """The measurements as a Markdown page."""
    rows = [
        f"| {m.name} | {m.seconds:,.0f} s | {m.peak / 1e9:.2f} GB | {m.written / 1e9:.2f} GB | {m.says} |"
        for m in measurements
    ]
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "onnx", "onnxruntime"))
    title = "DeepSeek-OCR's exact size" if scale == "full" else "the reference checkpoint's size"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return "\n".join(
        [
            f"# Export at {title}",
            "",
            f"Random weights. Written by `python -m benchmarks.full_size --scale {scale}` on "
            f"{datetime.now(UTC):%Y-%m-%d}.",
            "",
            f"- Machine: {machine()}; load of the last minutes at the end: {load}.",
            f"- Versions: Python {platform.python_version()}, {versions}.",
            "- Peak memory is the step's largest resident size, mapped files included.",
            "",
            "| step | time | peak memory | written | |",
            "|---|---:|---:|---:|---|",
            *rows,
            "",
        ]
    )


# --- The whole ------------------------------------------------------------------------------------------------------


def steps(work: Path, scale: Scale) -> dict[str, tuple[str, list[str], list[Path]]]:
    """Every step by its short name: title, command, and what it writes."""
    checkpoint, cpu, gpu = work / "checkpoint", work / "cpu", work / "gpu"
    # Where the export's steps write until they are verified; the GPU's verification needs a GPU.
    staging, graphs = work / "cpu.staging", work / "graphs.staging"

    def own(step: str) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.full_size", "--step", step]
        return [*command, "--scale", scale, "--work", str(work)]

    def cli(step: str, target: str = "cpu", output: Path = cpu) -> list[str]:
        command = [sys.executable, "-m", "export", "--checkpoint", str(checkpoint), "--target", target]
        return [*command, "--modes", ",".join(SIDES), "--output", str(output), step]

    sides = " and ".join(f"{side} px" for side in SIDES.values())
    return {
        "write": ("write a random checkpoint", own("write"), [checkpoint]),
        "vision": (f"vision graphs for {sides}, FP32", cli("vision"), [staging / "vision"]),
        "decoder": ("decoder weights for the CPU", cli("decoder"), [staging / "decoder"]),
        "verify": ("verify: ONNX Runtime against PyTorch, weights read back", cli("verify"), []),
        "load": ("load the CPU decoder", own("load"), []),
        "logits": ("CPU decoder against transformers, FP32", own("logits"), []),
        "graphs": (
            f"vision graphs for {sides} for TensorRT, FP16",
            cli("vision", "gpu", work / "graphs"),
            [graphs / "graphs"],
        ),
        "convert": ("decoder to a TensorRT-LLM checkpoint, BF16", own("convert"), [gpu]),
    }


def run_step(step: str, work: Path, scale: Scale) -> str:
    """Run one of the steps that are this module's own; returns what it found.

    Raises InvalidInput for another, EngineError where the decoder isn't there yet or can't be opened.
    """
    from rtprune.manifest import Manifest

    if step == "write":
        return write_checkpoint(work / "checkpoint", scale)
    if step in ("load", "logits"):
        decoder = work / "cpu" / Manifest.load(work / "cpu").decoder.folder
        return load_decoder(decoder) if step == "load" else compare_decoder(work / "checkpoint", decoder)
    if step == "convert":
        return convert_decoder(work / "checkpoint", work / "gpu")
    raise InvalidInput(f"There is no step {step!r}.")


def run(work: Path, scale: Scale, only: list[str], results: Path | None, keep: bool) -> None:
    """Run the steps in order and write the results; the files go at the end unless they are to be kept.

    only: names of steps, none for all.

    Raises:
        InvalidInput: an unknown step, or too little disk.
        EngineError: a step that failed.
    """
    planned = steps(work, scale)
    unknown = [name for name in only if name not in planned]
    if unknown:
        raise InvalidInput(f"There is no step {unknown[0]!r}; there are {', '.join(planned)}.")
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if scale == "full" and free < DISK:
        raise InvalidInput(f"{work} has {free / 1e9:.0f} GB free, and {DISK / 1e9:.0f} GB are needed.")
    kept = work / MEASURED
    try:
        done = recall(kept) if only else {}
        for name, (title, command, paths) in planned.items():
            if not only or name in only:
                done[name] = measure(title, command, *paths)
                kept.write_text(json.dumps({name: asdict(one) for name, one in done.items()}, indent=2))
        page = report([done[name] for name in planned if name in done], scale)
        say("\n" + page)
        if results is not None:
            results.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(page)
    finally:
        if not keep:
            remove_files(work)


def recall(file: Path) -> dict[str, Measurement]:
    """What an earlier run measured, of which only some steps are run again."""
    if not file.exists():
        return {}
    return {name: Measurement(**one) for name, one in json.loads(file.read_text(encoding="utf-8")).items()}


def remove_files(work: Path) -> None:
    """Remove what the steps wrote, and `work` itself if nothing else is in it."""
    for name in ("checkpoint", "cpu", "cpu.staging", "cpu.previous", "gpu", "graphs.staging"):
        shutil.rmtree(work / name, ignore_errors=True)
    for name in ("cpu.lock", "graphs.lock", MEASURED):
        (work / name).unlink(missing_ok=True)
    if not any(work.iterdir()):
        work.rmdir()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--scale", choices=["full", "reference"], default="full")
    parser.add_argument("--work", type=Path, default=Path("engines.full-size"), help="folder for the files")
    parser.add_argument("--results", type=Path, help=f"page to write; {RESULTS} at full size")
    parser.add_argument(
        "--only", default="", help="steps to run, by name and comma, on an earlier run's files"
    )
    parser.add_argument("--keep", action="store_true", help="keep the files")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.step:
            say(run_step(options.step, options.work, options.scale) + "\n")
        else:
            only = [name for name in options.only.split(",") if name]
            results = options.results or (RESULTS if options.scale == "full" and not only else None)
            run(options.work, options.scale, only, results, options.keep)
    except OcrError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
