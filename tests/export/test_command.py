"""`python -m export` as a user runs it: real processes, killed, interrupted and out of disk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file, save_file

from export.__main__ import main
from export.pipeline import REPORT
from rtprune.errors import EngineError
from rtprune.manifest import MANIFEST, Manifest

pytestmark = pytest.mark.slow("runs whole exports in processes of their own")

ROOT = Path(__file__).resolve().parents[2]


def line(checkpoint: Path, output: Path, step: str = "all", *more: str) -> list[str]:
    options = ["--checkpoint", str(checkpoint), "--modes", "tiny", "--output", str(output), *more]
    return [sys.executable, "-m", "export", *options, step]


def call(checkpoint: Path, output: Path, step: str = "all", *more: str) -> int:
    return main(line(checkpoint, output, step, *more)[3:])


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def engines(random_checkpoint: Path, tmp_path: Path) -> Path:
    """Engines in use, of mode tiny."""
    output = tmp_path / "engines"
    assert call(random_checkpoint, output) == 0
    return output


def test_everything_is_in_the_manifest(random_engines: Path, random_checkpoint: Path) -> None:
    manifest = Manifest.load(random_engines)
    manifest.verify_hashes()
    assert manifest.modes == ("tiny", "small", "base", "large", "gundam")
    assert manifest.sides == (512, 640, 1024, 1280)
    assert (manifest.hidden_size, manifest.context_length) == (160, 8192)
    assert manifest.special_tokens["<image>"] > 0
    assert set(manifest.sources) == {"config.json", "tokenizer.json", "model-00001-of-000001.safetensors"}
    assert manifest.versions["torch"]
    assert manifest.decoder.precision == "fp32"
    named = {file.path for file in manifest.files()} | {MANIFEST, REPORT, "sources.json", "job.json"}
    steps = {path for path in content(random_engines) if path.endswith("/step.json")}
    assert set(content(random_engines)) == named | steps, "nothing lies about that the manifest doesn't name"
    checks = json.loads((random_engines / REPORT).read_text())["checks"]
    assert sum(check["name"].startswith("vision") for check in checks) == 4
    source = load_file(next(random_checkpoint.glob("*.safetensors")))
    written = load_file(next((manifest.folder / "decoder").glob("*.safetensors")))
    assert all((written[name] == source[name].float()).all() for name in written)
    assert len(written) == 250


def test_the_second_time_nothing_is_done(
    engines: Path, random_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in engines.rglob("*")}
    assert call(random_checkpoint, engines) == 0
    assert "up to date" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in engines.rglob("*")} == before
    assert not engines.with_name("engines.previous").exists()


def test_a_changed_setting_repeats_its_step_and_keeps_one_step_back(
    engines: Path, random_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(engines)
    inode = (engines / "vision" / "vision-512.onnx").stat().st_ino
    assert call(random_checkpoint, engines, "all", "--decoder-precision", "bf16") == 0
    said = capsys.readouterr().err
    assert "vision graphs (512 px, fp32): up to date" in said
    assert "decoder weights for PyTorch (bf16): up to date" not in said
    assert Manifest.load(engines).decoder.precision == "bf16"
    assert (engines / "vision" / "vision-512.onnx").stat().st_ino == inode, "linked, not written again"
    onnx.checker.check_model(
        str(engines / "vision" / "vision-512.onnx")
    )  # which refuses weights with two names
    assert content(engines.with_name("engines.previous")) == before
    assert not engines.with_name("engines.staging").exists()


def test_a_changed_checkpoint_repeats_the_export(
    engines: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(random_checkpoint, tmp_path / "copy")
    file = next(copy.glob("*.safetensors"))
    weights = load_file(file)
    weights["model.image_newline"] += 1
    save_file(weights, file)
    assert call(copy, engines) == 0
    tokens = load_file(engines / "tokens" / "visual_tokens.safetensors")
    assert (tokens["image_newline"] == weights["model.image_newline"].float()).all()


def test_steps_one_by_one_are_all(
    random_checkpoint: Path, engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "apart"
    for step in ("vision", "decoder", "build"):
        assert call(random_checkpoint, output, step) == 0
        assert not output.exists(), "nothing is in use before it is verified"
    assert call(random_checkpoint, output, "verify") == 0
    assert content(output).keys() == content(engines).keys()
    assert content(output)[MANIFEST] == content(engines)[MANIFEST]
    capsys.readouterr()
    assert call(random_checkpoint, output, "verify") == 0
    assert "verified vision 512 px" in capsys.readouterr().err, "what is in use can be verified again"


def test_what_does_not_verify_never_replaces_what_is_in_use(
    engines: Path, random_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(engines)
    assert call(random_checkpoint, engines, "vision", "--modes", "tiny,small") == 0
    assert call(random_checkpoint, engines, "decoder", "--modes", "tiny,small") == 0
    staged = engines.with_name("engines.staging") / "vision" / "vision.weights"
    damaged = bytearray(staged.read_bytes())
    damaged[len(damaged) // 2] ^= 0x40
    staged.write_bytes(damaged)
    capsys.readouterr()
    assert call(random_checkpoint, engines, "verify", "--modes", "tiny,small") == 1
    assert "vision.weights has changed since it was exported" in capsys.readouterr().err
    assert content(engines) == before


def test_a_graph_that_computes_something_else_is_not_put_in_use(
    engines: Path,
    random_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The comparison itself, with a tolerance that no float32 keeps."""
    before = content(engines)
    monkeypatch.setattr("export.verify.TOLERANCE", {"fp32": 1e-9})
    assert call(random_checkpoint, engines, "all", "--modes", "small") == 1
    assert "vision 640 px, fp32: the relative error is" in capsys.readouterr().err
    assert content(engines) == before


def test_verify_without_anything_says_so(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(random_checkpoint, tmp_path / "engines", "verify") == 1
    assert "nothing to verify" in capsys.readouterr().err


@pytest.mark.parametrize("point", ["tokens", "vision.partial", "vision", MANIFEST])
def test_a_kill_leaves_nothing_half_written(random_checkpoint: Path, tmp_path: Path, point: str) -> None:
    """SIGKILL as soon as `point` is in staging: no engines, or whole ones; the next run goes on."""
    output, staging = tmp_path / "engines", tmp_path / "engines.staging"
    process = subprocess.Popen(line(random_checkpoint, output), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (staging / point).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    if output.exists():
        Manifest.load(output).verify_hashes()
    else:
        with pytest.raises(EngineError, match="holds no engines"):
            Manifest.load(output)
    assert call(random_checkpoint, output) == 0
    Manifest.load(output).verify_hashes()
    assert not staging.exists()


def test_a_kill_leaves_the_engines_in_use(engines: Path, random_checkpoint: Path) -> None:
    before = content(engines)
    command = line(random_checkpoint, engines, "all", "--modes", "small")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    partial = engines.with_name("engines.staging") / "vision.partial"
    while not partial.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert content(engines) == before


def test_ctrl_c_is_one_sentence(random_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "engines"
    command = line(random_checkpoint, output, "all", "--modes", "base")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "engines.staging" / "tokens").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted. Finished steps are kept" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not output.exists()


@pytest.mark.parametrize(("step", "limit"), [("vision", 2_000_000), ("decoder", 5_000_000)])
def test_a_disk_that_fills_is_one_sentence(
    engines: Path, random_checkpoint: Path, step: str, limit: int
) -> None:
    """Writes beyond a size limit fail as they do on a full disk, in our writer and in the library's."""
    before = content(engines)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        line(random_checkpoint, engines, step, "--modes", "small", "--decoder-precision", "bf16"),
        cwd=ROOT,
        preexec_fn=small_files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "The engines in use are as they were." in done.stderr
    assert "Traceback" not in done.stderr
    assert content(engines) == before
    staging = engines.with_name("engines.staging")
    assert not [p for p in staging.rglob("*") if "partial" in p.name], "nothing half-written is left"


def test_no_room_is_told_before_the_work(
    random_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1000))
    assert call(random_checkpoint, tmp_path / "engines") == 1
    assert "GB free, and the export needs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) or not (tmp_path / "engines.staging").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--modes", "huge"], "There is no mode 'huge'; there are tiny, small, base, large, gundam."),
        (["--target", "tpu"], "There is no target 'tpu'"),
        (["--checkpoint", "/nowhere"], "There is no checkpoint folder /nowhere."),
    ],
)
def test_bad_input_is_one_sentence(
    random_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    assert call(random_checkpoint, tmp_path / "engines", "all", *arguments) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_a_cpu_needs_no_build_and_for_that_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path / "nowhere", tmp_path / "engines", "build") == 0
    assert capsys.readouterr().err == "nothing to build for a CPU\n"


def test_two_exports_at_once_wait_for_each_other(random_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "engines"
    both = [
        subprocess.Popen(line(random_checkpoint, output), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("waiting for another export" in text for text in said)
    Manifest.load(output).verify_hashes()


def test_a_disk_without_hard_links_gets_copies(
    engines: Path, random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert call(random_checkpoint, engines, "all", "--decoder-precision", "bf16") == 0
    Manifest.load(engines).verify_hashes()


def test_a_system_that_cannot_exchange_names_renames(
    engines: Path, random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(engines)
    monkeypatch.setattr("export.store.exchange", lambda first, second: False)
    assert call(random_checkpoint, engines, "all", "--decoder-precision", "bf16") == 0
    assert Manifest.load(engines).decoder.precision == "bf16"
    assert content(engines.with_name("engines.previous")) == before
