"""One running tritonserver: start, ready, watch its model processes, stop within the drain limit."""

from __future__ import annotations

import ctypes
import http.client
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import BinaryIO

import psutil

from rtprune.errors import Unavailable
from server.launcher.settings import ServerSettings
from server.launcher.tritonserver import command, environment, find_installation, options

STUB = "triton_python"  # Linux keeps 15 characters of a process name
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives, not a temporary file
HEARTBEATS = "OCR_HEARTBEATS"  # as `server.triton.heartbeat` reads it
LOOK_SECONDS = 2.0  # counted at most from one look at a heartbeat to the next
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Ask Linux to end the server when the launcher is killed outright: no orphan keeps the ports."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _model(stub: psutil.Process) -> str:
    """The model's name: the stub's first argument is .../NAME/VERSION/model.py."""
    try:
        arguments = stub.cmdline()
    except psutil.Error:
        return "?"
    return Path(arguments[1]).parents[1].name if len(arguments) > 1 else "?"


class ServerProcess:
    """A tritonserver and its model processes.

    Triton goes on answering ready when a model's process is killed, and that model's requests hang; so
    whoever starts it here has to call `failure()` now and then.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._runtime = Path(tempfile.mkdtemp(prefix="ocr-server-"))
        self._heartbeats = self._runtime / "heartbeats"
        self._heartbeats.mkdir()
        self._beats: dict[int, tuple[bytes, float, float]] = {}  # last beat, seconds it stood, when we looked
        self._shm_prefix = f"ocr_{os.getpid()}_{self._runtime.name[-8:]}_"
        self._stubs: dict[psutil.Process, str] = {}  # its model's name; a dead one can't be asked any more
        self._process: subprocess.Popen[bytes] | None = None
        # The models and Triton write here; without a file, to the launcher's own output.
        self._log: BinaryIO | None = settings.log_file.open("wb") if settings.log_file else None

    @property
    def pid(self) -> int:
        """Process id of tritonserver itself. Raises Unavailable before it was started."""
        return self._running().pid

    @property
    def stubs(self) -> list[int]:
        """Process ids of the models' Python processes, ascending; none before the server was ready."""
        return sorted(stub.pid for stub in self._stubs)

    def start(self) -> None:
        """Start the server and don't wait for it. Raises Unavailable where none is installed."""
        installation = find_installation(self._runtime)
        env = environment(installation, self.settings) | {HEARTBEATS: str(self._heartbeats)}
        self._process = subprocess.Popen(  # noqa: S603 - an argument list of our own, no shell
            command(installation, self.settings, self._shm_prefix, options(installation.binary, env)),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT if self._log else None,
            start_new_session=True,  # Ctrl-C is for the launcher, which stops the server in order
            preexec_fn=_die_with_parent,
        )

    def wait_ready(self, stop: threading.Event) -> None:
        """Wait until every model is loaded and its engines have run once.

        Raises:
            Unavailable: the server ended, wasn't ready within `start_seconds`, or `stop` was set meanwhile.
        """
        deadline = time.monotonic() + self.settings.start_seconds
        while not self.http_ready():
            code = self._running().poll()
            if code is not None:
                where = f"the log {self.settings.log_file}" if self.settings.log_file else "its log above"
                raise Unavailable(
                    f"tritonserver ended with status {code} before it was ready; {where} says why."
                )
            if time.monotonic() > deadline:
                raise Unavailable(f"The server was not ready within {self.settings.start_seconds:.0f} s.")
            if stop.wait(0.2):
                raise Unavailable("The server was stopped before it was ready.")
        self._stubs = {stub: _model(stub) for stub in self._children() if stub.name().startswith(STUB)}

    def http_ready(self) -> bool:
        """Whether Triton's own readiness probe answers 200; connecting and the answer may take 2 seconds each."""
        connection = http.client.HTTPConnection(self.probe_host, self.settings.http_port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    @property
    def probe_host(self) -> str:
        """Where a client on this machine reaches the server."""
        return "127.0.0.1" if self.settings.host in ("0.0.0.0", "::", "") else self.settings.host  # noqa: S104

    def failure(self) -> str:
        """What is wrong with the running server, in one sentence; empty where nothing is.

        Raises Unavailable before it was started.
        """
        code = self._running().poll()
        if code is not None:
            return f"tritonserver ended with status {code}."
        for stub, model in self._stubs.items():
            if self._hangs(stub.pid):
                return (
                    f"The process of the model {model} (pid {stub.pid}) gave no sign of life for "
                    f"{self.settings.hang_seconds:g} s, so the server is ended."
                )
            try:
                dead = not stub.is_running() or stub.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                dead = True
            if dead:
                return (
                    f"The process of the model {model} (pid {stub.pid}) died; Triton does not notice, "
                    "so the server is ended."
                )
        return ""

    def _hangs(self, pid: int) -> bool:
        """Whether a model's process has stood still for `hang_seconds` of the time that we ourselves ran.

        Counted in looks and not by the clock: a machine or container that was suspended stood still as a whole.
        """
        try:
            beat = (self._heartbeats / str(pid)).read_bytes()
        except OSError:
            return False  # it hasn't begun
        now = time.monotonic()
        before, stood, looked = self._beats.get(pid, (b"", 0.0, now))
        stood = stood + min(now - looked, LOOK_SECONDS) if beat == before else 0.0
        self._beats[pid] = (beat, stood, now)
        return stood > self.settings.hang_seconds > 0

    def stop(self, drain_seconds: float | None = None) -> int:
        """End the server: SIGTERM, then SIGKILL after the drain limit. Returns its exit status, 0 where none ran.

        drain_seconds: None is the setting's, which Triton has too, and 2 more.
        """
        process = self._process
        if process is None:
            self._clean()
            return 0
        drain = self.settings.drain_seconds + 2 if drain_seconds is None else drain_seconds
        children = self._children()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=drain)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._end_children(children)
        self._clean()
        return process.returncode

    def _end_children(self, children: list[psutil.Process]) -> None:
        for child in psutil.wait_procs(children, timeout=2)[1]:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=2)

    def _clean(self) -> None:
        for region in SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)
        shutil.rmtree(self._runtime, ignore_errors=True)
        if self._log:
            self._log.close()

    def _children(self) -> list[psutil.Process]:
        try:
            found: list[psutil.Process] = psutil.Process(self._running().pid).children(recursive=True)
            return found
        except psutil.NoSuchProcess:
            return list(self._stubs)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise Unavailable("The server was not started.")
        return self._process
