"""perf_analyzer is found on the PATH, else fetched whole from pinned packages, else one sentence says why not."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from benchmarks import perf_analyzer
from benchmarks.perf_analyzer import PerfAnalyzer, find_perf_analyzer
from rtprune.errors import EngineError, Unavailable


@pytest.fixture
def nothing_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "perf_analyzer" else which(name))


def test_the_real_one_starts_and_says_its_version(tool: PerfAnalyzer) -> None:
    assert tool.version.count(".") == 2
    assert tool.run(["--version"], 30).returncode == 0


def test_one_on_the_path_comes_first(
    tool: PerfAnalyzer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "perf_analyzer"
    there.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{tool.libraries or ""}" exec "{tool.binary}" "$@"\n')
    there.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = find_perf_analyzer(tmp_path / "cache")
    assert (found.binary, found.libraries, found.version) == (there, None, tool.version)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("nothing_on_path", "tool")
def test_it_is_fetched_once(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    first = find_perf_analyzer(cache)
    stamp = first.binary.stat().st_mtime_ns
    assert find_perf_analyzer(cache) == first
    assert first.binary.stat().st_mtime_ns == stamp
    assert [path.name for path in cache.parent.iterdir()] == ["cache"], "nothing is left beside it"


@pytest.mark.usefixtures("nothing_on_path", "tool")
def test_a_package_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = perf_analyzer.REQUIREMENTS.read_text()
    changed = tmp_path / "changed.txt"
    changed.write_text(pinned.replace("sha256:70748857", "sha256:00000000"))
    assert changed.read_text() != pinned
    monkeypatch.setattr(perf_analyzer, "REQUIREMENTS", changed)
    with pytest.raises(Unavailable, match="wheels can't be downloaded: ERROR: .*DO NOT MATCH"):
        find_perf_analyzer(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("nothing_on_path", "tool")
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="libb64 comes from Debian's archive")
def test_a_library_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_analyzer, "_loads", lambda library: False)
    monkeypatch.setattr(perf_analyzer, "BASE64_PACKAGES", {"0" * 64: "1.0"})
    with pytest.raises((EngineError, Unavailable)) as refused:
        find_perf_analyzer(tmp_path / "cache")
    assert "libb64-0d" in str(refused.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("nothing_on_path")
def test_another_machine_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Unavailable, match="Linux on x86-64 only"):
        find_perf_analyzer(tmp_path / "cache")


@pytest.mark.usefixtures("nothing_on_path")
def test_one_that_does_not_start_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "perf_analyzer"
    broken.write_text("#!/bin/sh\necho 'cannot open shared object file' >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(Unavailable, match="perf_analyzer doesn't start: cannot open shared object file"):
        find_perf_analyzer(tmp_path)


def test_one_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    slow = tmp_path / "perf_analyzer"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    with pytest.raises(Unavailable, match="didn't end within"):
        PerfAnalyzer(slow, None, "0").run([], 0.2)
