"""Triton's perf_analyzer: found on the PATH (its SDK container) or fetched, run, and what it leaves read.

The fetched one is NVIDIA's binary out of a wheel of tritonclient, with the two libraries that it links to: CUDA's
runtime out of NVIDIA's wheel, and libb64 out of Debian's archive where the machine has none. Nothing is installed.

Its profile export holds every request that ended inside the measured windows: when it was sent, when each response
came, and all tensors, raw. Its bytes stand in the JSON as they are, so it's no UTF-8 and is read byte by byte.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import ROOT
from deepseek_ocr_client.settings import UNARY_MODEL
from rtprune.errors import EngineError, InvalidInput, Unavailable

CACHE = ROOT / "build" / "perf_analyzer"
REQUIREMENTS = Path(__file__).with_suffix(".txt")
WHEELS = {
    "tritonclient": "tritonclient-2.48.0.data/data/bin/perf_analyzer",
    "nvidia_cuda_runtime_cu12": "nvidia/cuda_runtime/lib/libcudart.so.12",
}
PLATFORMS = ("manylinux1_x86_64", "manylinux2014_x86_64")
BASE64_LIBRARY = "libb64.so.0d"
BASE64_PACKAGE = "libb64-0d"
# SHA-256 of the packages that the fetched binary was tried with.
BASE64_PACKAGES = {"b0e1d6fde8bdccc18c3884144aede064dc82464dd4777275fa80e74c05583e82": "1.2-5+b1, Debian 12"}
FETCH_SECONDS = 600
BYTES = "latin-1"  # one character a byte, both ways
_THREAD = re.compile(r"Thread \[\d+\] had error: (?P<sentence>.+)")
_ERROR = re.compile(r"^(?:[Ee]rror|\S*perf_analyzer): (?P<sentence>.+)", re.MULTILINE)
_ENSEMBLES = re.compile(r"^(?:in ensemble '[^']*', )+")


@dataclass(frozen=True, slots=True)
class PerfAnalyzer:
    """A perf_analyzer that starts: its binary, a folder of libraries for it (or none), its version."""

    binary: Path
    libraries: Path | None
    version: str

    def run(self, options: Sequence[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
        """Run it with `options` for `seconds` at most; its output is kept, its status is the caller's to judge.

        Raises:
            Unavailable: it didn't end in time.
        """
        line = [str(self.binary), *options]
        try:
            return subprocess.run(
                line, env=_environment(self.libraries), capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"perf_analyzer didn't end within {seconds:.0f} s; the server answers too slowly or not at all."
            ) from None


def find_perf_analyzer(cache: Path = CACHE) -> PerfAnalyzer:
    """The one on the PATH, else the one in `cache`, which is filled first where it's empty.

    Raises:
        Unavailable: there is none and it can't be fetched, or it doesn't start; the sentence says why.
        EngineError: as `fetch`.
    """
    on_path = shutil.which("perf_analyzer")
    if on_path is not None:
        return _started(Path(on_path), None)
    if not (cache / "perf_analyzer").is_file():
        fetch(cache)
    return _started(cache / "perf_analyzer", cache)


def fetch(cache: Path) -> None:
    """Put perf_analyzer and its libraries into `cache`, whole or not at all.

    Raises:
        Unavailable: another machine than Linux on x86-64, or a package can't be had.
        EngineError: a package isn't the one that is pinned.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Unavailable(
            "perf_analyzer can be fetched for Linux on x86-64 only; put one on the PATH, or run this in Triton's "
            "SDK container."
        )
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="perf_analyzer-", dir=cache.parent) as name:
        scratch = Path(name)
        made = scratch / "made"
        made.mkdir()
        _from_wheels(scratch, made)
        if not _loads(BASE64_LIBRARY):
            _base64_library(scratch, made)
        (made / "perf_analyzer").chmod(0o755)
        shutil.rmtree(cache, ignore_errors=True)
        made.replace(cache)


def _from_wheels(scratch: Path, made: Path) -> None:
    line = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    line += [part for name in PLATFORMS for part in ("--platform", name)]
    line += ["--only-binary=:all:", "--require-hashes", "-r", str(REQUIREMENTS), "--dest", str(scratch)]
    _call(line, scratch, "perf_analyzer's wheels can't be downloaded")
    for package, member in WHEELS.items():
        wheel = next(scratch.glob(f"{package}-*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            (made / Path(member).name).write_bytes(source.read())


def _base64_library(scratch: Path, made: Path) -> None:
    hint = f"install it ('apt-get install {BASE64_PACKAGE}')"
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Unavailable(f"perf_analyzer needs {BASE64_LIBRARY}, and this isn't Debian or Ubuntu: {hint}.")
    _call(["apt-get", "download", BASE64_PACKAGE], scratch, f"{BASE64_PACKAGE} can't be downloaded; {hint}")
    package = next(scratch.glob(f"{BASE64_PACKAGE}_*.deb"))
    if hashlib.sha256(package.read_bytes()).hexdigest() not in BASE64_PACKAGES:
        known = ", ".join(BASE64_PACKAGES.values())
        raise EngineError(f"{package.name} isn't the package that is pinned here ({known}); {hint}.")
    _call(["dpkg", "-x", str(package), str(scratch / "base64")], scratch, f"{package.name} can't be unpacked")
    library = next((scratch / "base64").rglob(BASE64_LIBRARY))
    (made / BASE64_LIBRARY).write_bytes(library.read_bytes())


def _call(line: Sequence[str], folder: Path, failed: str) -> None:
    try:
        done = subprocess.run(
            line, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{failed}: no answer in {FETCH_SECONDS} s.") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        wrong = [line for line in said if line.startswith(("ERROR", "E:"))] or said[-1:]
        raise Unavailable(f"{failed}: {wrong[-1]}")


def _loads(library: str) -> bool:
    try:
        CDLL(library)
    except OSError:
        return False
    return True


def _environment(libraries: Path | None) -> dict[str, str]:
    if libraries is None:
        return dict(os.environ)
    folders = [str(libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(folders)}


def _started(binary: Path, libraries: Path | None) -> PerfAnalyzer:
    try:
        done = subprocess.run(
            [str(binary), "--version"],
            env=_environment(libraries),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{binary} doesn't start: {error}.") from None
    said = (done.stdout + done.stderr).strip()
    if "Perf Analyzer Version" not in said:
        raise Unavailable(f"{binary} doesn't start: {said.splitlines()[-1] if said else 'it said nothing'}.")
    return PerfAnalyzer(binary, libraries, said.split("Version", 1)[1].split()[0])


def reason(said: str) -> str:
    """perf_analyzer's complaint as one sentence: the server's own where it quotes one."""
    found = _THREAD.search(said) or _ERROR.search(said)
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
    sentence = found["sentence"].strip() if found else (lines[0] if lines else "it said nothing")
    return _ENSEMBLES.sub("", sentence)


def check_options(tool: PerfAnalyzer, options: Sequence[str]) -> None:
    """Refuse options that perf_analyzer doesn't take, before anything is measured.

    Raises:
        InvalidInput: with its own words.
        Unavailable: it didn't end within 30 seconds.
    """
    done = tool.run(["-m", UNARY_MODEL, *options, "--version"], 30)
    if b"Perf Analyzer Version" not in done.stdout + done.stderr:
        said = done.stderr.decode(errors="replace")
        raise InvalidInput(f"perf_analyzer refuses an option: {reason(said).rstrip('.')}.")


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was answered. Times in seconds of perf_analyzer's clock."""

    image: bytes
    sent: float
    first: float  # first response with text: the first token, or a little more of the text
    last: float  # response with the finish reason
    first_tokens: int  # output tokens up to the first response
    visual_tokens: tuple[int, int]  # before pruning, after it
    output_tokens: int
    text: str
    finish_reason: str
    timings: tuple[float, ...]  # TIMINGS of the contract, seconds

    @property
    def latency(self) -> float:
        """Seconds from sending to the whole text."""
        return self.last - self.sent

    @property
    def first_latency(self) -> float:
        """Seconds from sending to the first text."""
        return self.first - self.sent

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens a second after the first response, None where everything came in one."""
        return (
            (self.output_tokens - self.first_tokens) / (self.last - self.first)
            if self.last > self.first
            else None
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """The requests of one measurement and how many seconds its windows lasted."""

    requests: tuple[Request, ...]
    seconds: float


def read_profile(path: Path) -> Profile:
    """The profile export of one concurrency.

    Raises:
        EngineError: it isn't what perf_analyzer 2.48 writes for this server's models.
    """
    try:
        content = json.loads(path.read_bytes().decode(BYTES))
        experiment = content["experiments"][0]
        bounds = experiment["window_boundaries"]
        requests = tuple(_request(entry) for entry in experiment["requests"])
        return Profile(requests, (max(bounds) - min(bounds)) / 1e9)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise EngineError(f"perf_analyzer's profile export can't be read: {error!r}.") from None


def read_report(path: Path) -> dict[str, float]:
    """The one row of the CSV report, latencies in microseconds, columns by perf_analyzer's own names.

    Raises:
        EngineError: it isn't such a report.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: float(value) for name, value in rows[0].items() if name and value}
    except (OSError, ValueError, IndexError) as error:
        raise EngineError(f"perf_analyzer's report can't be read: {error!r}.") from None


def _request(entry: Mapping[str, Any]) -> Request:
    answers = [
        (stamp / 1e9, outputs)
        for stamp, outputs in zip(entry["response_timestamps"], entry["response_outputs"], strict=True)
        if outputs.get("TOKENS")  # a stream ends with an empty response
    ]
    first, last = answers[0], answers[-1]
    tokens = [_numbers(outputs["TOKENS"], "<i4") for _, outputs in answers]
    text = "".join(outputs.get("TEXT", "") for _, outputs in answers).encode(BYTES).decode()
    length = int(_numbers(last[1]["TEXT_LENGTH"], "<i4")[0])
    return Request(
        image=entry["request_inputs"]["IMAGE"].encode(BYTES),
        sent=entry["timestamp"] / 1e9,
        first=first[0],
        last=last[0],
        first_tokens=int(tokens[0][2]),
        visual_tokens=(int(tokens[-1][0]), int(tokens[-1][1])),
        output_tokens=int(tokens[-1][2]),
        text=text[:length],
        finish_reason=last[1]["FINISH_REASON"],
        timings=tuple(float(value) for value in _numbers(last[1]["TIMINGS"], "<f4")),
    )


def _numbers(written: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(written.encode(BYTES), kind)
