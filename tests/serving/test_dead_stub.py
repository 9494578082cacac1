"""A model's process that dies ends the server, which Triton alone would not notice; the launcher starts another."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.serving import calls, metrics
from tests.serving.running import RunningServer
from tests.serving.test_modes import page

pytestmark = pytest.mark.serving


def shared_memory(server: RunningServer) -> list[str]:
    """The regions that this server's launcher named: other servers may run beside it."""
    assert server.process is not None
    return [path.name for path in Path("/dev/shm").glob(f"ocr_{server.process.pid}_*")]


def test_a_killed_stub_ends_the_server(engines: Path, tmp_path: Path) -> None:
    server = RunningServer(engines, tmp_path / "server.log")
    server.start()
    assert shared_memory(server)
    processes = server.processes()
    server.stubs()["vision"].send_signal(signal.SIGKILL)
    assert server.process is not None
    launcher = server.process
    metrics.wait_for(lambda: launcher.poll() is not None, 60)  # Triton alone would never end
    assert launcher.returncode == 1
    assert "The process of the model vision (pid" in server.log()
    assert not any(process.is_running() for process in processes)
    assert not shared_memory(server), "shared memory was given back"


def test_the_launcher_restarts_as_often_as_it_is_told(engines: Path, tmp_path: Path) -> None:
    server = RunningServer(engines, tmp_path / "server.log", OCR_RESTARTS="1")
    server.start()
    server.stubs()["decoder"].send_signal(signal.SIGKILL)
    server.wait_ready(count=2)
    assert calls.unary(server, page(512, 512, "back"), mode="tiny", max_tokens=4).reason
    assert server.stop(signal.SIGTERM) == 0
    assert not shared_memory(server), "shared memory was given back"


def test_a_stop_lets_open_requests_finish(engines: Path, tmp_path: Path) -> None:
    server = RunningServer(engines, tmp_path / "server.log")
    server.start()
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(
            calls.unary,
            server,
            page(512, 512, "last page"),
            mode="tiny",
            max_tokens=60,
            prompt=calls.FREE_OCR,
        )
        metrics.wait_for(
            lambda: (
                metrics.total(metrics.read(server), "ocr_stage_requests_total", 'stage="rtprune"') >= 2
                or pending.done()
            ),
            30,
        )
        assert server.stop() == 0
        assert pending.result(timeout=10).reason in ("stop", "length", "repetition")


def test_a_stub_that_hangs_ends_the_server_and_a_busy_one_does_not(engines: Path, tmp_path: Path) -> None:
    server = RunningServer(engines, tmp_path / "server.log", OCR_HANG_SECONDS="6", OCR_RESTARTS="1")
    server.start()
    image = page(1280, 1280, "every core and lock is busy")

    def read(number: int) -> str:
        return calls.stream(
            server, image, f"{number}", mode=("large", "tiny")[number % 2], max_tokens=60
        ).reason

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(read, range(64)))
    assert "no sign of life" not in server.log()
    vision = server.stubs()["vision"]
    vision.send_signal(signal.SIGSTOP)
    server.wait_ready(count=2)
    assert f"The process of the model vision (pid {vision.pid}) gave no sign of life for 6 s" in server.log()
    assert not vision.is_running()
    assert calls.unary(server, image, mode="tiny", max_tokens=4).reason
    assert server.stop() == 0


def test_a_pause_of_the_launcher_is_no_hang_of_the_models(engines: Path, tmp_path: Path) -> None:
    server = RunningServer(engines, tmp_path / "server.log", OCR_HANG_SECONDS="4")
    server.start()
    assert server.process is not None
    everyone = [psutil.Process(server.process.pid), *server.processes()]
    for process in everyone:
        process.suspend()
    time.sleep(7)
    for process in everyone:  # the launcher first: it looks before the models have beaten again
        process.resume()
    time.sleep(3)
    assert server.process.poll() is None, server.log()
    assert calls.unary(server, page(512, 512, "back"), mode="tiny", max_tokens=4).reason
    assert server.stop() == 0
