"""The full-size run, at the reference checkpoint's size: the same code, every step, and its report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import full_size
from rtprune.errors import EngineError

pytestmark = pytest.mark.slow("exports a checkpoint of the reference's size, step by step")


@pytest.mark.timeout(600)
def test_the_same_run_at_reference_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results" / "page.md"
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.txt").write_text("not the run's")
    assert full_size.main(["--scale", "reference", "--work", str(work), "--results", str(results)]) == 0
    page = results.read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and " s | " in line]
    assert len(rows) == len(full_size.steps(work, "reference"))
    assert "348 tensors, 5,806,976 parameters" in rows[0]
    assert "vision 640 px, fp32: relative error" in page
    assert "vision 1024 px, fp32: relative error" in page
    assert page.endswith("\n")
    assert [p.name for p in work.iterdir()] == ["mine.txt"], "the run's files are gone, others are not"


def test_a_step_that_fails_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = str(tmp_path / "work")
    assert full_size.main(["--scale", "reference", "--work", work, "--only", "vision"]) == 1
    assert "failed with status 1" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_unknown_steps_and_a_small_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = str(tmp_path / "work")
    assert full_size.main(["--only", "everything", "--work", work]) == 1
    assert "no step 'everything'; there are write, vision" in capsys.readouterr().err
    monkeypatch.setattr(full_size, "DISK", 10**18)
    assert full_size.main(["--work", work]) == 1
    assert "GB are needed" in capsys.readouterr().err


def test_a_step_is_measured_by_itself(tmp_path: Path) -> None:
    """Its peak is its own, not that of this process, which has PyTorch loaded."""
    ballast = bytearray(b"x") * 400_000_000
    small = full_size.measure("small", [sys.executable, "-c", "print('first'); print('last')"])
    code = "x = bytearray(b'x') * 300_000_000; print('verified vision 640 px'); print('ready')"
    large = full_size.measure("large", [sys.executable, "-c", code])
    assert small.says == "last"
    assert large.says == "vision 640 px"
    assert small.peak < 100e6 < len(ballast)
    assert large.peak - small.peak > 250e6
    with pytest.raises(EngineError, match="bad failed with status 3"):
        full_size.measure("bad", [sys.executable, "-c", "raise SystemExit(3)"])
