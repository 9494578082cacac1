"""Finds Triton's perf_analyzer on the PATH (its SDK container), or fetches it into a folder of its own.

The fetched one is NVIDIA's binary out of a wheel of tritonclient, with the two libraries that it links to: CUDA's
runtime out of NVIDIA's wheel, and libb64 out of Debian's archive where the machine has none. Nothing is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path

from rtprune.errors import EngineError, Unavailable

ROOT = Path(__file__).resolve().parent.parent
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
