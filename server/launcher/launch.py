"""Keeps one server up: starts it, watches it, restarts or gives up as the settings say, stops it cleanly."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType

from rtprune.errors import OcrError
from rtprune.manifest import Manifest
from server.launcher.process import ServerProcess
from server.launcher.readiness import read_small_page
from server.launcher.settings import ServerSettings
from server.launcher.tritonserver import visible_gpus

log = logging.getLogger("server")
POLL_SECONDS = 0.5


def warn_of_gpus() -> None:
    """Say so where there are more GPUs than the one that a server uses."""
    gpus = visible_gpus()
    if gpus > 1:
        log.warning(
            "This server uses one GPU and sees %d: name one with NVIDIA_VISIBLE_DEVICES or "
            "CUDA_VISIBLE_DEVICES; more GPUs are more servers.",
            gpus,
        )


class Launcher:
    """Runs the server until it is told to stop, a command ends, or it died too often."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._stop = threading.Event()

    def serve(self) -> int:
        """Serve until SIGINT or SIGTERM. Returns 0 after a clean stop, 1 when the server died for good."""
        self._handle_signals()
        deaths = 0
        while True:
            server = ServerProcess(self.settings)
            reason = self._serve_once(server)
            if not reason:
                return 0
            deaths += 1
            log.error("%s", reason)
            if deaths > self.settings.restarts:
                log.error("Giving up after %d restarts.", self.settings.restarts)
                return 1
            log.warning("Restart %d of %d.", deaths, self.settings.restarts)

    def run(self, arguments: Sequence[str]) -> int:
        """Start the server, run one command against it, stop it.

        Returns the command's status, negative where a signal ended it, or 1 where the server didn't come up.
        """
        self._handle_signals()
        server = ServerProcess(self.settings)
        try:
            self._come_up(server)
            child = subprocess.Popen(arguments)  # noqa: S603 - the caller's own command, no shell
            while child.poll() is None:
                reason = server.failure()
                if self._stop.is_set() or reason:
                    child.terminate()
                    log.error("%s", reason or "Stopped.")
                try:
                    child.wait(timeout=POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
            return child.returncode
        except OcrError as error:
            log.error("%s", error)
            return 1
        finally:
            server.stop()

    def _serve_once(self, server: ServerProcess) -> str:
        """Run one server to its end. Returns why it died, or nothing when it was asked to stop."""
        drain: float | None = None
        try:
            self._come_up(server)
            log.info(
                "Ready: HTTP %s:%d, gRPC :%d, metrics :%d. Ctrl-C stops.",
                self.settings.host,
                self.settings.http_port,
                self.settings.grpc_port,
                self.settings.metrics_port,
            )
            while not self._stop.wait(POLL_SECONDS):
                reason = server.failure()
                if reason:
                    drain = self.settings.dead_stub_seconds
                    return reason
            log.info("Stopping: open requests get %d s.", self.settings.drain_seconds)
            return ""
        except OcrError as error:
            drain = 1.0
            return "" if self._stop.is_set() else str(error)
        finally:
            server.stop(drain)

    def _come_up(self, server: ServerProcess) -> None:
        manifest = Manifest.load(self.settings.engines)
        log.info("Engines in %s: %s", manifest.folder, json.dumps(manifest.facts()))
        warn_of_gpus()
        log.info("Starting tritonserver ...")
        server.start()
        server.wait_ready(self._stop)
        read_small_page(server.probe_host, self.settings.grpc_port)

    def _handle_signals(self) -> None:
        def stop(_signal: int, _frame: FrameType | None) -> None:
            self._stop.set()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
