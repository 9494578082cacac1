"""Measures one point of a load test: one front door, one way to prune, one number of requests at once."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.load_profile import TIMINGS, Profile, read_profile, read_report
from benchmarks.load_stages import StageUse, between, statistics
from benchmarks.perf_analyzer import PerfAnalyzer
from deepseek_ocr_client import OcrClient
from deepseek_ocr_client.settings import STREAM_MODEL, UNARY_MODEL
from rtprune.errors import InvalidInput, Unavailable

PERCENTILES = (50, 95, 99)
WINDOWS = 3  # perf_analyzer reports the last three windows together
ANY_VARIATION = (
    "1000000"  # per cent: the windows are reported however they differ, and the table says how many
)
LONGER = 5
EMPTY = "No valid requests recorded"
_THREAD = re.compile(r"Thread \[\d+\] had error: (?P<sentence>.+)")
_ERROR = re.compile(r"^(?:[Ee]rror|\S*perf_analyzer): (?P<sentence>.+)", re.MULTILINE)
_ENSEMBLES = re.compile(r"^(?:in ensemble '[^']*', )+")
_FULL = re.compile(r"UNAVAILABLE|[Ee]xceeds maximum queue size")


@dataclass(frozen=True, slots=True)
class Door:
    """A front door as perf_analyzer reaches it."""

    name: str
    model: str
    protocol: str

    @property
    def streams(self) -> bool:
        """Whether answers come in pieces."""
        return self.model == STREAM_MODEL


DOORS = {
    door.name: door
    for door in (
        Door("grpc", UNARY_MODEL, "grpc"),
        Door("http", UNARY_MODEL, "http"),
        Door("stream", STREAM_MODEL, "grpc"),
    )
}


@dataclass(frozen=True, slots=True)
class Load:
    """What every point of a run shares: the tool, where the server is, how long to measure, further options."""

    tool: PerfAnalyzer
    client: OcrClient
    urls: Mapping[str, str]  # protocol -> host:port
    window_ms: int
    patience_seconds: float  # for what perf_analyzer does besides its windows
    options: Sequence[str] = ()


@dataclass(slots=True)
class Point:
    """What one point gave. Milliseconds; percentiles are 50, 95 and 99 of the requests that ended in the windows."""

    door: str
    pruning: str
    concurrency: int
    requests: int = 0
    seconds: float = 0.0
    pages_per_second: float = 0.0
    tokens_per_second: float = 0.0  # output tokens of all requests that ended, over the windows' seconds
    latency_ms: list[float] = field(default_factory=list)
    first_token_ms: list[float] = field(default_factory=list)  # streams: the first response with text
    stream_tokens_per_second: float = 0.0  # streams: median of one request's tokens a second after that
    visual_tokens: list[float] = field(default_factory=list)  # mean before pruning, after it
    stages: dict[str, StageUse] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)  # means of the answers' TIMINGS
    finish_reasons: dict[str, int] = field(default_factory=dict)
    report: dict[str, float] = field(default_factory=dict)  # perf_analyzer's own row
    error: str = ""  # why there are no numbers
    full: bool = False  # the error says that the server was full (UNAVAILABLE)


def measure(
    load: Load, door: Door, pruning: str, concurrency: int, data: Path
) -> tuple[Point, Profile | None]:
    """Run perf_analyzer with the requests in `data`; a point without numbers has the reason in `error`.

    perf_analyzer ends at the first error that a request gets, so such a point has no numbers at all. Where no
    request ended within a window, the windows are made twice as long, up to LONGER times.

    Raises:
        ClientError: no server answers any more.
    """
    for again in range(LONGER + 1):
        windows = replace(load, window_ms=load.window_ms * 2**again)
        point, profile = _measure_once(windows, door, pruning, concurrency, data)
        if not point.error.startswith(EMPTY):
            break
    return point, profile


def _measure_once(
    load: Load, door: Door, pruning: str, concurrency: int, data: Path
) -> tuple[Point, Profile | None]:
    point = Point(door.name, pruning, concurrency)
    with tempfile.TemporaryDirectory() as folder:
        report, export = Path(folder) / "report.csv", Path(folder) / "profile.json"
        line = ["-m", door.model, "-u", load.urls[door.protocol], "-i", door.protocol]
        line += ["--streaming"] if door.streams else []
        line += ["--input-data", str(data), "--concurrency-range", f"{concurrency}:{concurrency}"]
        line += ["--measurement-interval", str(load.window_ms), "--max-trials", str(WINDOWS)]
        line += ["--stability-percentage", ANY_VARIATION, "--percentile", "95"]
        line += ["-f", str(report), "--verbose-csv", "--profile-export-file", str(export), *load.options]
        before = statistics(load.client)
        # Its windows last up to a fifth longer than it is told.
        try:
            done = load.tool.run(line, 1.5 * WINDOWS * load.window_ms / 1000 + load.patience_seconds)
        except Unavailable as error:  # it may hang where one of many streams is refused
            point.error = str(error)
            return point, None
        finally:
            point.stages = between(before, statistics(load.client))
        if done.returncode or not export.exists():
            point.error = reason(done.stderr.decode(errors="replace") or done.stdout.decode(errors="replace"))
            if done.returncode < 0:
                point.error = f"perf_analyzer was ended by signal {-done.returncode}: {point.error}"
            point.full = bool(_FULL.search(point.error))
            return point, None
        profile = read_profile(export)
        point.report = read_report(report)
    if not profile.requests:
        point.error = "No request ended within the measured windows; make them longer."
        return point, None
    summarise(point, profile, door.streams)
    return point, profile


def summarise(point: Point, profile: Profile, streams: bool) -> None:
    """Fill a point from the requests that ended in its windows."""
    requests = profile.requests
    point.requests, point.seconds = len(requests), profile.seconds
    point.pages_per_second = point.report["Inferences/Second"]
    point.tokens_per_second = sum(each.output_tokens for each in requests) / profile.seconds
    point.latency_ms = percentiles([each.latency for each in requests])
    if streams:
        point.first_token_ms = percentiles([each.first_latency for each in requests])
        rates = [rate for each in requests if (rate := each.tokens_per_second) is not None]
        point.stream_tokens_per_second = float(np.median(rates)) if rates else 0.0
    point.visual_tokens = [fmean(each.visual_tokens[side] for each in requests) for side in (0, 1)]
    for index, name in enumerate(TIMINGS):
        point.timings_ms[name] = 1000 * fmean(each.timings[index] for each in requests)
    for each in requests:
        point.finish_reasons[each.finish_reason] = point.finish_reasons.get(each.finish_reason, 0) + 1


def percentiles(seconds: Sequence[float]) -> list[float]:
    """50th, 95th and 99th percentile in milliseconds, each the value of a request that was measured."""
    found: Any = np.percentile(np.asarray(seconds) * 1000, PERCENTILES, method="higher")
    return [float(value) for value in found]


def reason(said: str) -> str:
    """perf_analyzer's complaint as one sentence: the server's own where it quotes one."""
    found = _THREAD.search(said) or _ERROR.search(said)
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
    sentence = found["sentence"].strip() if found else (lines[0] if lines else "it said nothing")
    return _ENSEMBLES.sub("", sentence)


def check_options(tool: PerfAnalyzer, options: Sequence[str]) -> None:
    """Refuse options that perf_analyzer doesn't take, before anything is measured.

    Raises:
        InvalidInput: with its own words.
    """
    done = tool.run(["-m", UNARY_MODEL, *options, "--version"], 30)
    if b"Perf Analyzer Version" not in done.stdout + done.stderr:
        said = done.stderr.decode(errors="replace")
        raise InvalidInput(f"perf_analyzer refuses an option: {reason(said).rstrip('.')}.")
