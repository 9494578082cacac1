"""A compose project under test: its own name, free ports, and what is asked of its containers."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.deploy.engine import Engine, run
from tests.serving.running import free_ports

FILES = ("docker-compose.yml", "docker-compose.override.yml")
PROXY_FILES = ("docker-compose.yml", "deploy/compose.proxy.yml")
SERVER = "triton-cpu"


def compose_command(env: dict[str, str]) -> list[str] | None:
    """`docker compose`, or its forerunner `docker-compose`, or None."""
    if shutil.which("docker") and run(["docker", "compose", "version"], env).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


class Stack:
    """The profile `cpu` of some compose files, started with `docker compose`."""

    def __init__(self, engine: Engine, files: tuple[str, ...], extra: Path | None = None, **env: str) -> None:
        self.engine = engine
        self.http_port, self.grpc_port, self.metrics_port, self.proxy_port = free_ports(4)
        self.env = engine.env | env
        self.env |= {
            "COMPOSE_PROJECT_NAME": f"ocr-test-{secrets.token_hex(4)}",
            "HTTP_PORT": str(self.http_port),
            "GRPC_PORT": str(self.grpc_port),
            "METRICS_PORT": str(self.metrics_port),
            "PROXY_PORT": str(self.proxy_port),
        }
        found = compose_command(self.env)
        assert found is not None
        self._line = [*found, *(part for name in files for part in ("-f", name))]
        self._line += ["-f", str(extra)] if extra else []
        # .env says gpu: the option on the command line has to take its place.
        self._line += ["--profile", "cpu"]

    def compose(self, *arguments: str, timeout: float = 600.0) -> str:
        """What a compose command that must work writes."""
        done = run([*self._line, *arguments], self.env, timeout)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-6000:]}{done.stderr[-6000:]}{self.logs()}"
        return done.stdout + done.stderr

    def logs(self, *services: str) -> str:
        """The end of what all containers wrote, or those of some services."""
        done = run([*self._line, "logs", "--no-color", *services], self.env, 60)
        return (done.stdout + done.stderr)[-12_000:]

    def container(self, service: str = SERVER) -> str:
        """Id of a service's container."""
        done = run([*self._line, "ps", "-q", service], self.env, 60)
        return done.stdout.strip()

    def inspect(self, service: str = SERVER) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        found: dict[str, Any] = json.loads(self.engine.docker("inspect", self.container(service)))[0]
        return found

    def execute(self, *command: str, service: str = SERVER) -> subprocess.CompletedProcess[str]:
        """Run a program in a service's container."""
        return run(["docker", "exec", self.container(service), *command], self.env, 120)

    def wait_healthy(self, restarts: int = 0, timeout: float = 300.0) -> None:
        """Wait until the server is healthy after so many restarts."""
        deadline = time.monotonic() + timeout
        while True:
            facts = self.inspect()
            health = facts["State"].get("Health", {}).get("Status")
            if facts["RestartCount"] >= restarts and facts["State"]["Running"] and health == "healthy":
                return
            assert time.monotonic() < deadline, f"{facts['State']}, {facts['RestartCount']}: {self.logs()}"
            time.sleep(0.5)

    def down(self) -> None:
        """End it, with its volumes."""
        run([*self._line, "down", "--volumes", "--timeout", "5"], self.env)


def without_compose_settings() -> dict[str, str]:
    """This process's environment without settings of Compose's own, so that .env's count."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}
