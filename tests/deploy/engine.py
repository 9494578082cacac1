"""A Docker engine for tests: the one that answers, or one of our own with its data under build/docker."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "docker"


def run(line: list[str], env: dict[str, str], timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; nothing is raised for its exit status."""
    return subprocess.run(
        line,
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
    )


class Engine:
    """Where `docker` and Compose find their engine; `own` where it is ours and nobody else's images are in it."""

    def __init__(self, env: dict[str, str], own: bool) -> None:
        self.env = env
        self.own = own

    def docker(self, *arguments: str, timeout: float = 600.0) -> str:
        """Standard output of a docker command that must work."""
        done = run(["docker", *arguments], self.env, timeout)
        assert done.returncode == 0, (
            f"docker {' '.join(arguments)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
        return done.stdout.strip()

    def has_image(self, name: str) -> bool:
        """Whether an image is there without asking a registry."""
        return run(["docker", "image", "inspect", name], self.env).returncode == 0

    def build(self, name: str, dockerfile: str) -> None:
        """Make an image from a Dockerfile without files."""
        done = subprocess.run(
            ["docker", "build", "--network", "host", "-t", name, "-"],
            input=dockerfile, env=self.env, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


class OwnDaemon:
    """A dockerd that lives as long as the tests; its images and build cache stay for the next run."""

    def __init__(self, run_folder: Path) -> None:
        self._run = run_folder
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Engine:
        """Start it, after a neighbour's has ended. Skips the test where none can run."""
        if os.geteuid() != 0:
            pytest.skip("no Docker engine answers, and only root can start one")
        if shutil.which("dockerd") is None or shutil.which("docker") is None:
            pytest.skip("no Docker engine answers, and dockerd is not installed")
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._lock = (FOLDER / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        log_path = self._run / "dockerd.log"
        socket = self._run / "docker.sock"
        line = ["dockerd", "--data-root", str(FOLDER / "data"), "--exec-root", str(self._run / "exec")]
        line += ["--pidfile", str(self._run / "pid"), "--host", f"unix://{socket}"]
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                line, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        env = os.environ | {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"}
        deadline = time.monotonic() + 60
        while run(["docker", "info"], env).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = log_path.read_text(errors="replace").strip().splitlines()[-1:]
                self.stop()
                pytest.skip(f"dockerd does not start here: {' '.join(last)}")
            time.sleep(0.2)
        return Engine(env, own=True)

    def stop(self) -> None:
        """End it and its containers."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        # dockerd leaves its own network namespace mounted, and the folder could not be removed.
        for mounted in Path("/proc/self/mounts").read_text().splitlines():
            if mounted.split()[1].startswith(f"{self._run}/"):
                subprocess.run(["umount", "--lazy", mounted.split()[1]], check=False)
        if self._lock is not None:
            self._lock.close()


def running_engine() -> Engine | None:
    """The engine that answers already, if there is one."""
    if shutil.which("docker") is None or run(["docker", "info"], dict(os.environ)).returncode != 0:
        return None
    return Engine(dict(os.environ), own=False)
