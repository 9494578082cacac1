"""Starting the server: what is found, what the command line says, what a user reads when something is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rtprune.errors import Unavailable
from server.launcher import launch, tritonserver
from server.launcher.cli import main
from server.launcher.process import ServerProcess
from server.launcher.settings import ServerSettings

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_wheels_server_is_found_with_the_stub_of_this_python(tmp_path: Path) -> None:
    found = tritonserver.find_installation(tmp_path)
    assert found.binary.is_file()
    assert (found.backends / "python" / "triton_python_backend_stub").is_file()


def test_a_server_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "opt" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent))
    found = tritonserver.find_installation(tmp_path)
    assert (found.binary, found.libraries) == (binary, None)
    assert found.backends == tmp_path / "opt" / "backends"


def test_no_server_at_all_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tritonserver, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="No tritonserver was found"):
        tritonserver.find_installation(tmp_path)


def test_the_defaults_are_closed(tmp_path: Path) -> None:
    found = tritonserver.find_installation(tmp_path)
    line = tritonserver.command(found, ServerSettings(), "prefix_")
    for option in (
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--model-control-mode=none",
        "--strict-readiness=true",
        "--exit-on-error=true",
    ):
        assert option in line
    closed = {
        part.split("=")[1].split(":")[0] for part in line if part.startswith("--grpc-restricted-protocol")
    }
    assert closed == {"shared-memory", "model-repository", "trace", "logging"}
    opened = tritonserver.command(found, ServerSettings(shared_memory=True), "prefix_")
    assert not any("shared-memory" in part for part in opened)


def test_every_option_is_one_of_the_real_server(tmp_path: Path) -> None:
    found = tritonserver.find_installation(tmp_path)
    env = tritonserver.environment(found, ServerSettings())
    known = tritonserver.options(found.binary, env)
    used = {
        part.split("=")[0] for part in tritonserver.command(found, ServerSettings(), "prefix_", known)[1:]
    }
    assert used <= known


def test_http_bodies_are_bounded_where_the_server_can(tmp_path: Path) -> None:
    found = tritonserver.find_installation(tmp_path)
    settings = ServerSettings(http_body_mib=3)
    bound = "--http-max-input-size=3145728"
    assert bound not in tritonserver.command(found, settings, "prefix_")
    assert bound in tritonserver.command(found, settings, "prefix_", frozenset({"--http-max-input-size"}))


def test_the_options_of_a_server_are_read_from_its_help(tmp_path: Path) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text(
        "#!/bin/sh\necho '  --http-max-input-size <integer>'\necho '\tSee --other for more' >&2\n"
    )
    binary.chmod(0o755)
    assert tritonserver.options(binary, {}) == {"--http-max-input-size"}


def test_an_image_that_put_the_backend_together_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = tmp_path / "pytriton" / "tritonserver" / "backends" / "python" / tritonserver.STUB
    backend.parent.mkdir(parents=True)
    backend.touch()
    spec = SimpleNamespace(origin=str(tmp_path / "pytriton" / "__init__.py"))
    monkeypatch.setattr(tritonserver, "find_spec", lambda name: spec)
    runtime = tmp_path / "runtime"
    assert tritonserver.find_installation(runtime).backends == backend.parent.parent
    assert not runtime.exists()


@pytest.mark.parametrize(
    ("cuda", "count"), [(None, 2), ("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("0,1,2,3", 2), ("GPU-5a", 1)]
)
def test_the_gpus_of_a_container_are_counted(
    cuda: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if cuda is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cuda)
    assert tritonserver.visible_gpus(tmp_path) == count


def test_more_than_one_gpu_is_said_at_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: 4)
    launch.warn_of_gpus()
    assert "uses one GPU and sees 4" in caplog.text


def test_a_server_that_was_not_started_says_so() -> None:
    with pytest.raises(Unavailable, match="was not started"):
        ServerProcess(ServerSettings()).failure()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--engines", "nowhere", "serve"], 1, "holds no engines"),
        (["--http-port", "0", "serve"], 2, "http_port is wrong"),
        (["run", "--"], 2, "needs a command"),
        (["--grpc-port", "9", "ready"], 1, "could not read a page"),
    ],
)
def test_the_command_line_answers_in_a_sentence(arguments: list[str], status: int, sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(action in text for action in ("serve", "run", "ready"))
