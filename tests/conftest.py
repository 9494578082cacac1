"""What every test may ask for: the engines, built once a run, and a real server on free ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.serving.running import RunningServer

ROOT = Path(__file__).resolve().parent.parent

# Tests send Ctrl-C to programs; a shell that started us in the background would have them ignore it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Timings don't belong in tests, so Hypothesis judges no example by its seconds.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# One thread a test process: the pools of several libraries on the same cores slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


SERVERS = ("ocr_server", "endless_server")


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server, and keep tests that share one, or a file's fixtures, in one process."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        server = next((name for name in SERVERS if name in fixtures), None)
        if server is not None:
            item.add_marker("serving")
        group = "docker" if item.get_closest_marker("docker") else server or item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The reference checkpoint that ships with the project."""
    return ROOT / "training" / "checkpoint"


@pytest.fixture(scope="session")
def engines(checkpoint: Path) -> Path:
    """CPU engines of the reference checkpoint, all modes; export skips what is up to date."""
    output = ROOT / "build" / "test-engines"
    output.parent.mkdir(exist_ok=True)
    line = [sys.executable, "-m", "export", "--checkpoint", str(checkpoint), "--target", "cpu"]
    line += ["--modes", "tiny,small,base,large,gundam", "--output", str(output), "all"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the reference's sizes with random weights as large as trained ones, so that errors show."""
    from training.config import checkpoint_config
    from training.random_checkpoint import write_random_checkpoint
    from training.tokenizer import build_tokenizer, save_tokenizer

    folder = tmp_path_factory.mktemp("random-checkpoint")
    write_random_checkpoint(folder, checkpoint_config(build_tokenizer().get_vocab_size()), seed=1)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def random_engines(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CPU engines of the random checkpoint, all modes, through the command line's own entry."""
    from export.__main__ import main

    output = tmp_path_factory.mktemp("random") / "engines"
    assert main(["--checkpoint", str(random_checkpoint), "--output", str(output), "all"]) == 0
    return output


@pytest.fixture(scope="session")
def ocr_server(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real tritonserver with every model, started and watched by our launcher."""
    server = RunningServer(engines, tmp_path_factory.mktemp("server") / "server.log")
    server.start()
    yield server
    assert server.stop() == 0, server.log()


@pytest.fixture(scope="session")
def endless_server(random_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose pages end only with their limits: random weights never write the end, no guard steps in."""
    log = tmp_path_factory.mktemp("endless") / "server.log"
    server = RunningServer(random_engines, log, RTPRUNE_REPETITION_GUARD="false")
    server.start()
    yield server
    assert server.stop() == 0, server.log()
