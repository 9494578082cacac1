"""A server under test: `python -m server serve` on free ports, with its log in a file."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import tritonclient.grpc as triton

ROOT = Path(__file__).resolve().parent.parent.parent


# Below what Linux gives to outgoing connections, and a range for each test process: no two take the same one.
_PORTS = itertools.cycle(range(20000, 21000))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    ports: list[int] = []
    while len(ports) < count:
        port = next(_PORTS) + 1000 * _WORKER
        with socket.socket() as each:
            try:
                each.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
    return ports


class RunningServer:
    """The launcher, the tritonserver below it, and where to reach it."""

    def __init__(self, engines: Path, log_path: Path, **environment: str) -> None:
        self.engines = engines
        self.log_path = log_path
        self.environment = environment
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.http_url = f"127.0.0.1:{self.http_port}"
        self.grpc_url = f"127.0.0.1:{self.grpc_port}"
        self.metrics_url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 180.0) -> None:
        """Start and wait until a page can be read."""
        line = [sys.executable, "-m", "server", "--engines", str(self.engines)]
        line += ["--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        line += ["--metrics-port", str(self.metrics_port), "serve"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=os.environ | self.environment
            )
        self.wait_ready(timeout)

    def wait_ready(self, timeout: float = 180.0, count: int = 1) -> None:
        """Wait for the launcher's word that it is ready, the `count`th time."""
        deadline = time.monotonic() + timeout
        while self.log().count("server: Ready:") < count:
            assert self.process is not None
            assert self.process.poll() is None, f"the launcher ended: {self.log()}"
            assert time.monotonic() < deadline, f"not ready in {timeout} s: {self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        """Everything that the launcher, Triton and the models wrote."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_since(self, mark: int) -> str:
        """The log from a length on."""
        return self.log()[mark:]

    def processes(self) -> list[psutil.Process]:
        """The launcher's descendants: tritonserver and the models' processes."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def stubs(self) -> dict[str, psutil.Process]:
        """The models' processes by model name (one of several instances)."""
        found = {}
        for process in self.processes():
            line = process.cmdline()
            if line and "triton_python_backend_stub" in line[0]:
                model = Path(line[1]).parent.parent.name
                found[model] = process
        return found

    def client(self) -> triton.InferenceServerClient:
        """A gRPC client of Triton's own."""
        return triton.InferenceServerClient(self.grpc_url)

    def stop(self, how: int = signal.SIGINT, timeout: float = 60.0) -> int:
        """Ask the launcher to stop and wait. Returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout)
