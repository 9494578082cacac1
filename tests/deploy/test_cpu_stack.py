"""The profile without a GPU in a real engine: it reads pages, is confined, comes back when killed, drains."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deepseek_ocr_client import OcrClient
from deepseek_ocr_client.score import character_error_rate
from server.launcher.settings import ServerSettings
from tests.deploy.engine import ROOT
from tests.deploy.stack import Stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
PAGE = ROOT / "examples" / "page.png"
LONG_PAGE = ROOT / "examples" / "long_page.png"
TRUTH = (ROOT / "examples" / "page.txt").read_text()
KILL = """
import os, psutil, sys
found = [p.pid for p in psutil.process_iter() if sys.argv[1] in " ".join(p.cmdline()) and p.pid != os.getpid()]
os.kill(found[0], 9)
"""


def read(stack: Stack, page: Path = PAGE) -> str:
    with OcrClient(f"127.0.0.1:{stack.grpc_port}") as client:
        return client.ocr(page, mode="tiny").markdown


def status(stack: Stack) -> dict[str, str]:
    """Lines of the server's /proc/self/status by name."""
    text = stack.execute("cat", "/proc/1/status").stdout
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_a_page_is_read_through_the_published_ports(stack: Stack) -> None:
    assert character_error_rate(read(stack), TRUTH) < 0.1
    with OcrClient(f"http://127.0.0.1:{stack.http_port}") as client:
        assert character_error_rate(client.ocr(PAGE, mode="tiny").markdown, TRUTH) < 0.1


def test_ports_are_published_on_loopback_only(stack: Stack) -> None:
    published = stack.inspect()["NetworkSettings"]["Ports"]
    assert sorted(published) == ["8000/tcp", "8001/tcp", "8002/tcp"]
    assert {each["HostIp"] for ports in published.values() for each in ports} == {"127.0.0.1"}


def test_the_server_runs_without_rights(stack: Stack) -> None:
    facts = status(stack)
    assert facts["Uid"].split() == ["1000"] * 4
    assert facts["Gid"].split() == ["1000"] * 4
    for capabilities in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert int(facts[capabilities], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"


@pytest.mark.parametrize(
    "path", ["/app/x", "/engines/x", "/opt/venv/x", "/etc/x", "/x", "/engines/current/x"]
)
def test_nothing_that_stays_can_be_written(stack: Stack, path: str) -> None:
    done = stack.execute("touch", path)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_what_is_written_to_tmp_cannot_be_run(stack: Stack) -> None:
    script = "printf '#!/bin/sh\\necho ran\\n' > /tmp/x && chmod +x /tmp/x && /tmp/x"
    done = stack.execute("sh", "-c", script)
    assert "ran" not in done.stdout
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize("tool", ["pip", "pip3", "gcc", "cc", "make", "ld"])
def test_no_tool_that_builds_is_in_the_image(stack: Stack, tool: str) -> None:
    assert stack.execute("sh", "-c", f"command -v {tool}").returncode != 0
    assert stack.execute("python", "-m", "pip", "--version").returncode != 0
    assert stack.execute("python", "-c", "import ensurepip").returncode != 0


def test_limits_are_set(stack: Stack) -> None:
    host = stack.inspect()["HostConfig"]
    assert host["Memory"] == 6 * 2**30
    assert host["PidsLimit"] == 2048
    assert host["ShmSize"] == 2**30
    assert host["LogConfig"]["Config"] == {"max-file": "5", "max-size": "10m"}


def test_the_image_says_what_it_is(stack: Stack) -> None:
    labels = stack.inspect()["Config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"] == "deepseek-ocr-rtprune-cpu"


def test_a_second_export_finds_everything_in_place(stack: Stack) -> None:
    assert "up to date" in stack.compose("run", "--rm", "export-cpu")


@pytest.mark.parametrize("victim", ["bin/tritonserver", "model_repository/decoder"])
def test_it_comes_back_by_itself_when_a_part_is_killed(stack: Stack, victim: str) -> None:
    before = stack.inspect()["RestartCount"]
    done = stack.execute("python", "-c", KILL, victim)
    assert done.returncode == 0, done.stderr
    stack.wait_healthy(restarts=before + 1)
    assert character_error_rate(read(stack), TRUTH) < 0.1


def test_stopping_lets_open_pages_finish(stack: Stack) -> None:
    started, ended = threading.Semaphore(0), []

    def page() -> None:
        with (
            OcrClient(f"127.0.0.1:{stack.grpc_port}") as client,
            client.stream(LONG_PAGE, mode="tiny", retention=1) as stream,
        ):
            for count, _ in enumerate(stream):
                if count == 0:
                    started.release()
            ended.append(stream.result.finish_reason)

    pages = [threading.Thread(target=page) for _ in range(8)]
    for each in pages:
        each.start()
    for _ in pages:
        assert started.acquire(timeout=60)
    assert len(ended) < len(pages), "every page had ended before the stop"
    stack.compose("stop")
    for each in pages:
        each.join(60)
    assert len(ended) == len(pages)
    assert not {"cancelled", "timeout"} & set(ended)
    assert stack.inspect()["State"]["ExitCode"] == 0
    assert f"open requests get {stack_drain()} s" in stack.logs()


def stack_drain() -> int:
    """DRAIN of .env."""
    lines = (ROOT / ".env").read_text().splitlines()
    (drain,) = [int(line.removeprefix("DRAIN=")) for line in lines if line.startswith("DRAIN=")]
    assert drain > ServerSettings().drain_seconds
    return drain
