"""Measures: one point of a load test (endpoint, pruning, requests at once) and a burst beyond the server's bounds."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.load_test.pages import LoadPage
from benchmarks.load_test.perf_analyzer import PerfAnalyzer, Profile, read_profile, read_report, reason
from deepseek_ocr_client import (
    AsyncOcrClient,
    ClientError,
    ClientSettings,
    OcrClient,
    OcrOptions,
    ServerUnavailable,
)
from deepseek_ocr_client.settings import STREAM_MODEL, UNARY_MODEL
from rtprune.contract import TIMINGS
from rtprune.errors import Unavailable

# The decoder isn't among them: it's decoupled and takes a request at once, so Triton counts neither its queue nor its
# work. What it took stands in the answers' TIMINGS.
STAGES = ("preprocess", "vision", "rtprune")
COMPUTE = ("compute_input", "compute_infer", "compute_output")
PERCENTILES = (50, 95, 99)
WINDOWS = 3  # perf_analyzer reports the last three windows together
ANY_VARIATION = (
    "1000000"  # per cent: the windows are reported however they differ, and the table says how many
)
LONGER = 5
EMPTY = "No valid requests recorded"
_REQUEST_ID = re.compile(r"^\[request id: [^]]*\] ")  # Triton's own refusals begin with it
_FULL = re.compile(r"UNAVAILABLE|[Ee]xceeds maximum queue size")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as perf_analyzer reaches it."""

    name: str
    model: str
    protocol: str

    @property
    def streams(self) -> bool:
        """Whether answers come in pieces."""
        return self.model == STREAM_MODEL


ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint("grpc", UNARY_MODEL, "grpc"),
        Endpoint("http", UNARY_MODEL, "http"),
        Endpoint("stream", STREAM_MODEL, "grpc"),
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


@dataclass(frozen=True, slots=True)
class StageUse:
    """Means over a stage's requests: milliseconds a request queued and was computed, requests a run of the model."""

    requests: int
    queue_ms: float
    compute_ms: float
    batch: float


@dataclass(slots=True)
class Point:
    """What one point gave. Milliseconds; percentiles are 50, 95 and 99 of the requests that ended in the windows."""

    endpoint: str
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
    load: Load, endpoint: Endpoint, pruning: str, concurrency: int, data: Path
) -> tuple[Point, Profile | None]:
    """Run perf_analyzer with the requests in `data`; a point without numbers has the reason in `error`.

    perf_analyzer ends at the first error that a request gets, so such a point has no numbers at all. Where no
    request ended within a window, the windows are made twice as long, up to LONGER times.

    Raises:
        ClientError: no server answers any more.
        EngineError: what perf_analyzer wrote can't be read.
    """
    for again in range(LONGER + 1):
        windows = replace(load, window_ms=load.window_ms * 2**again)
        point, profile = _measure_once(windows, endpoint, pruning, concurrency, data)
        if not point.error.startswith(EMPTY):
            break
    return point, profile


def _measure_once(
    load: Load, endpoint: Endpoint, pruning: str, concurrency: int, data: Path
) -> tuple[Point, Profile | None]:
    point = Point(endpoint.name, pruning, concurrency)
    with tempfile.TemporaryDirectory() as folder:
        report, export = Path(folder) / "report.csv", Path(folder) / "profile.json"
        line = ["-m", endpoint.model, "-u", load.urls[endpoint.protocol], "-i", endpoint.protocol]
        line += ["--streaming"] if endpoint.streams else []
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
    summarise(point, profile, endpoint.streams)
    return point, profile


def summarise(point: Point, profile: Profile, streams: bool) -> None:
    """Fill a point that has its `report` from the requests that ended in its windows; there must be one."""
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
    """50th, 95th and 99th percentile of `seconds` in milliseconds, each the value of a request that was measured."""
    found: Any = np.percentile(np.asarray(seconds) * 1000, PERCENTILES, method="higher")
    return [float(value) for value in found]


def statistics(client: OcrClient) -> dict[str, Mapping[str, Any]]:
    """Triton's statistics by model (counts and nanoseconds since the server's start).

    Raises:
        ClientError: no server answers.
    """
    found = client.call("get_inference_statistics", as_json=True)
    return {model["name"]: model for model in found["model_stats"]}


def between(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> dict[str, StageUse]:
    """What happened to each stage from one look to the other; stages without a request are left out."""
    found = {}
    for stage in STAGES:
        earlier, later = before.get(stage, {}), after.get(stage, {})
        requests = _grown(earlier, later, "success", "count")
        if not requests:
            continue
        runs = int(later.get("execution_count", 0)) - int(earlier.get("execution_count", 0))
        compute = sum(_grown(earlier, later, part, "ns") for part in COMPUTE)
        queue = _grown(earlier, later, "queue", "ns")
        found[stage] = StageUse(
            requests, queue / requests / 1e6, compute / requests / 1e6, requests / max(runs, 1)
        )
    return found


def _grown(before: Mapping[str, Any], after: Mapping[str, Any], part: str, kind: str) -> int:
    return _count(after, part, kind) - _count(before, part, kind)


def _count(model: Mapping[str, Any], part: str, kind: str) -> int:
    # JSON out of protobuf: zeros are left out, 64-bit numbers are strings.
    return int(model.get("inference_stats", {}).get(part, {}).get(kind, 0))


@dataclass(slots=True)
class Overload:
    """How one burst ended. Milliseconds; percentiles are 50, 95 and 99."""

    endpoint: str
    sent: int
    answered: int = 0
    refused: int = 0  # UNAVAILABLE
    failed: int = 0  # anything else; it must be none
    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)  # what the server said, each once

    @property
    def share_refused(self) -> float:
        """Share of the requests that were refused, 0 to 1."""
        return self.refused / self.sent


def burst(
    url: str,
    endpoint: str,
    pages: Sequence[LoadPage],
    options: OcrOptions,
    count: int,
    settings: ClientSettings,
) -> Overload:
    """Send `count` pages at once to `url` (`http://...`: whole answers; else gRPC streams) and wait for all.

    Nothing is tried twice. `endpoint`: the name in the result.
    """
    without_retry = replace(settings, retries=0, concurrency=count)
    return asyncio.run(_burst(url, endpoint, pages, options, count, without_retry))


async def _burst(
    url: str,
    endpoint: str,
    pages: Sequence[LoadPage],
    options: OcrOptions,
    count: int,
    settings: ClientSettings,
) -> Overload:
    found = Overload(endpoint, count)
    answered: list[float] = []
    refused: list[float] = []
    async with AsyncOcrClient(url, settings=settings) as client:

        async def read(number: int) -> None:
            started = time.perf_counter()
            try:
                await client.read(pages[number % len(pages)].image, options)
                found.answered += 1
                answered.append(time.perf_counter() - started)
            except ClientError as error:
                sentence = _REQUEST_ID.sub("", str(error))
                if isinstance(error, ServerUnavailable) and error.answered:
                    found.refused += 1
                    refused.append(time.perf_counter() - started)
                else:
                    found.failed += 1
                if sentence not in found.sentences:
                    found.sentences.append(sentence)

        await asyncio.gather(*(read(number) for number in range(count)))
    found.answered_ms = percentiles(answered) if answered else []
    found.refused_ms = percentiles(refused) if refused else []
    return found
