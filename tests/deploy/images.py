"""The images under test and what they are built from, where no registry can be reached."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.engine import FOLDER, ROOT, Engine, run

# Debian's python3.11-venv depends on a virtual package that debootstrap does not resolve: python3-distutils.
PACKAGES = "python3.11,python3.11-venv,python3-distutils,libpython3.11,ca-certificates"
WHEELHOUSE = ROOT / "build" / "wheelhouse"
PORT = 18741  # the same each time: a build argument is part of Docker's cache key
CPU_DOCKERFILE = ROOT / "deploy" / "docker" / "cpu.Dockerfile"


def base_image() -> str:
    """The name that the CPU image's Dockerfile asks for."""
    (found,) = re.findall(r"^ARG BASE=(\S+)$", CPU_DOCKERFILE.read_text(), flags=re.MULTILINE)
    return str(found)


def provide(engine: Engine, name: str) -> bool:
    """Have an image by pulling it, if a registry answers. Skips on an engine that isn't ours where none does."""
    if engine.has_image(name) or run(["docker", "pull", "-q", name], engine.env).returncode == 0:
        return True
    if not engine.own:
        pytest.skip(f"{name} can't be pulled, and stand-ins are made only in an engine of our own")
    return False


def provide_base(engine: Engine) -> None:
    """The Python base image: pulled, or Debian's Python under its name."""
    name = base_image()
    if provide(engine, name):
        return
    archive = FOLDER / "debian-python.tar"
    if not archive.is_file():
        _debootstrap(archive)
    engine.docker("import", "--change", 'CMD ["python3"]', str(archive), name)


def provide_nginx(engine: Engine, name: str) -> None:
    """The proxy's image: pulled, or Debian's nginx under its name."""
    if provide(engine, name):
        return
    provide_base(engine)
    install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light"
    engine.build(name, f"FROM {base_image()}\nRUN {install} && rm -rf /var/lib/apt/lists/*\n")


def _debootstrap(archive: Path) -> None:
    if shutil.which("debootstrap") is None:
        pytest.skip("no base image can be pulled, and debootstrap is not installed")
    root = archive.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    line = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
    done = run(line, dict(os.environ))
    if done.returncode != 0:
        pytest.skip(f"no base image can be pulled, and debootstrap failed: {done.stdout[-300:]}")
    for unused in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / unused)
        (root / unused / "partial").mkdir(parents=True)
    # The official image's Python is in /usr/local and answers to both names.
    (root / "usr/local/bin/python3").symlink_to("/usr/bin/python3.11")
    (root / "usr/local/bin/python").symlink_to("python3")
    partial = archive.with_suffix(".partial")
    subprocess.run(["tar", "-C", str(root), "-cf", str(partial), "."], check=True)
    partial.rename(archive)
    shutil.rmtree(root)


def _download_wheels() -> None:
    """What pip installs in the images, from wherever this machine's pip takes it."""
    script, constraints = ROOT / "deploy/docker/requirements.py", ROOT / "constraints.txt"
    line = [sys.executable, str(script), "preprocess", "vision", "decoder", "server", "export"]
    line += ["--project", str(ROOT / "pyproject.toml"), "--constraints", str(constraints)]
    needs = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256((needs + constraints.read_text()).encode()).hexdigest()
    stamp = WHEELHOUSE / "complete"
    if stamp.is_file() and stamp.read_text() == key:
        return
    shutil.rmtree(WHEELHOUSE, ignore_errors=True)
    WHEELHOUSE.mkdir(parents=True)
    lines = CPU_DOCKERFILE.read_text(encoding="utf-8").splitlines()
    (default,) = (line.partition("=")[2] for line in lines if line.startswith("ARG TORCH_INDEX="))
    index = os.environ.get("TORCH_INDEX", default)
    torch = [each for each in needs.splitlines() if each.startswith("torch==")]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--retries", "1", "-d", str(WHEELHOUSE)]
    pip += ["-c", str(constraints)]
    for extra in ([*(["--extra-index-url", index] if index else []), *torch], needs.split()):
        done = run([*pip, *extra], dict(os.environ))
        if done.returncode != 0:
            pytest.skip(f"the images' packages can't be downloaded: {done.stderr[-300:]}")
        if list(WHEELHOUSE.glob("nvidia_cu*")):
            pytest.skip("PyTorch's CPU wheel can't be had here, and its CUDA packages would fill the image")
    stamp.write_text(key)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), handler)
    except OSError:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def build_arguments(engine: Engine) -> Iterator[list[str]]:
    """`--build-arg` options under which the images' pip finds its packages; none where it has the index itself."""
    if not engine.own:
        yield []
        return
    _download_wheels()
    with _served(WHEELHOUSE) as url:
        values = {"TORCH_INDEX": "", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": url}
        yield [part for name, value in values.items() for part in ("--build-arg", f"{name}={value}")]
