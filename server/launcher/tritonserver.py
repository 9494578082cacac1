"""Finds a tritonserver (a container's, or the nvidia-pytriton wheel's) and writes its command line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from ctypes import CDLL
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rtprune.errors import Unavailable
from server.launcher.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
MODEL_REPOSITORY = ROOT / "model_repository"
STUB = "triton_python_backend_stub"
HTTP_BODY = "--http-max-input-size"  # not in 24.10
DEVICES = Path("/dev")


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver that can be started: its binary, its backends, and libraries to find (or none)."""

    binary: Path
    backends: Path
    libraries: Path | None


def find_installation(runtime: Path) -> Installation:
    """Locate tritonserver: on the PATH first (the production container), else in the wheel.

    The wheel keeps the Python backend apart from its stubs (one per Python version), so a backend folder
    with the stub of this Python is put together under `runtime`; an image that did this when it was built is
    taken as it is, and needs no place to write where programs may run.

    Raises:
        Unavailable: neither is there, or the wheel's needs are not met; the sentence says what to install.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        binary = Path(on_path).resolve()
        return Installation(binary, binary.parent.parent / "backends", None)
    return _from_wheel(runtime)


def _from_wheel(runtime: Path) -> Installation:
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise Unavailable(
            "No tritonserver was found: put one on the PATH (the NVIDIA container has it) or install this "
            "project's 'server' group (`make install`), whose nvidia-pytriton wheel carries one."
        )
    wheel = Path(spec.origin).parent / "tritonserver"
    binary, libraries = wheel / "bin" / "tritonserver", wheel.parent.parent / "nvidia_pytriton.libs"
    if (wheel / "backends" / "python" / STUB).is_file():
        return Installation(binary, wheel / "backends", libraries)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        raise Unavailable(f"The nvidia-pytriton wheel has no Python backend for Python {version}.")
    backends = runtime / "backends"
    shutil.copytree(wheel / "backends", backends, dirs_exist_ok=True)
    shutil.copy2(stub, backends / "python" / stub.name)
    return Installation(binary, backends, libraries)


def python_library_folder() -> Path | None:
    """The folder of this Python's shared library, which the embedded server's stubs link to.

    None where the dynamic loader finds it by itself.

    Raises:
        Unavailable: there is no shared library of this Python.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    if (folder / name).is_file():
        return folder
    try:
        CDLL(name)
    except OSError:
        raise Unavailable(
            f"The embedded tritonserver needs {name}, which is not installed: on Debian or Ubuntu, "
            f"'apt-get install {name.split('.so', maxsplit=1)[0]}'."
        ) from None
    return None


def visible_gpus(devices: Path = DEVICES) -> int:
    """How many NVIDIA GPUs this process may use: what the container was given, narrowed by CUDA_VISIBLE_DEVICES."""
    given = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia[0-9]+", path.name)]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return len(given)
    return min(len(given), len([name for name in named.split(",") if name.strip() not in ("", "-1")]))


def environment(installation: Installation, settings: ServerSettings) -> dict[str, str]:
    """The environment of the server and of the models' Python processes.

    Raises Unavailable where the wheel's server lacks this Python's shared library.
    """
    env = dict(os.environ)
    if installation.libraries is not None:
        folders = [str(installation.libraries)]
        python = python_library_folder()
        if python is not None:
            folders.append(str(python))
        env["LD_LIBRARY_PATH"] = ":".join([*folders, *filter(None, [env.get("LD_LIBRARY_PATH")])])
        # The wheel's stubs run Python isolated, so they don't read PYTHONPATH: they take the packages of the
        # first python3 on the PATH, which is ours only in a shell where the environment is activated.
        folders = [str(Path(sys.executable).parent), *filter(None, [env.get("PATH")])]
        env["PATH"] = os.pathsep.join(folders)
    # The stubs embed Python and know nothing of the virtual environment: name its packages and ours.
    site = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    env["PYTHONPATH"] = ":".join([str(ROOT), *site])
    env["RTPRUNE_ENGINES"] = str(settings.engines.resolve())
    # An idle OpenMP thread that spins takes the core from the model that works.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    return env


def options(binary: Path, env: dict[str, str]) -> frozenset[str]:
    """The options that a tritonserver knows: releases differ, and one that is unknown ends it.

    It is asked, and gets 60 seconds (subprocess.TimeoutExpired).
    """
    told = subprocess.run(  # noqa: S603 - the server's own binary, no shell
        [str(binary), "--help"], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    return frozenset(re.findall(r"^\s*(--[a-z][a-z0-9-]+)", told.stdout + told.stderr, flags=re.MULTILINE))


def command(
    installation: Installation, settings: ServerSettings, shm_prefix: str, known: frozenset[str] = frozenset()
) -> list[str]:
    """The command line: loopback unless asked, models fixed at start, ready only when every model is.

    `known` are the binary's `options`; of those that not every release has, only known ones are used.

    Source of the options: `tritonserver --help` of 2.51 and Triton's secure deployment guide.
    """
    line = [
        str(installation.binary),
        f"--model-repository={MODEL_REPOSITORY}",
        f"--backend-directory={installation.backends}",
        "--model-control-mode=none",
        "--strict-readiness=true",
        "--exit-on-error=true",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={settings.drain_seconds}",
        f"--http-address={settings.host}",
        f"--http-port={settings.http_port}",
        f"--http-thread-count={settings.http_threads}",
        f"--grpc-address={settings.host}",
        f"--grpc-port={settings.grpc_port}",
        f"--grpc-infer-allocation-pool-size={settings.grpc_pool}",
        f"--grpc-http2-min-recv-ping-interval-without-data={settings.grpc_ping_seconds * 1000:.0f}",
        f"--metrics-address={settings.metrics_host or settings.host}",
        f"--metrics-port={settings.metrics_port}",
        "--metrics-config=summary_latencies=true",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={settings.stub_shm_mib * 2**20}",
        f"--log-verbose={1 if settings.verbose else 0}",
    ]
    if HTTP_BODY in known:
        line.append(f"{HTTP_BODY}={settings.http_body_mib * 2**20}")
    if not settings.shared_memory:
        # A client that can name shared memory regions can read other processes' regions: a key nobody has.
        line += [
            f"--grpc-restricted-protocol=shared-memory:off={settings.lock}",
            f"--http-restricted-api=shared-memory:off={settings.lock}",
        ]
    # Loading models, traces and log settings is the operator's business, not a client's.
    for protocol in ("model-repository", "trace", "logging"):
        line += [
            f"--grpc-restricted-protocol={protocol}:off={settings.lock}",
            f"--http-restricted-api={protocol}:off={settings.lock}",
        ]
    return line
