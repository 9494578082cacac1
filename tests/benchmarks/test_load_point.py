"""One point of a load test: the real perf_analyzer against the real server, and what is read out of its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load_test.measure import ENDPOINTS, STAGES, Load, burst, measure, percentiles
from benchmarks.load_test.pages import LoadPage, rendered_pages, write_input_data
from benchmarks.load_test.perf_analyzer import (
    PerfAnalyzer,
    Profile,
    check_options,
    read_profile,
    read_report,
    reason,
)
from deepseek_ocr_client import ClientSettings, OcrClient, OcrOptions
from deepseek_ocr_client.request import Retention
from rtprune.errors import EngineError, InvalidInput
from tests.serving.calls import FREE_OCR
from tests.serving.running import RunningServer

SETTINGS = ClientSettings()
MAX_TOKENS = 40


@pytest.fixture(scope="module")
def pages() -> list[LoadPage]:
    return rendered_pages("tiny", 3, seed=1)


def load_of(server: RunningServer, tool: PerfAnalyzer, client: OcrClient, patience: float = 60) -> Load:
    return Load(tool, client, {"grpc": server.grpc_url, "http": server.http_url}, 700, patience)


@pytest.fixture
def load(ocr_server: RunningServer, tool: PerfAnalyzer) -> Iterator[Load]:
    with OcrClient(ocr_server.grpc_url, settings=SETTINGS) as client:
        yield load_of(ocr_server, tool, client)


@pytest.fixture(scope="module")
def small_server(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that is full with a handful of pages."""
    limits = {"RTPRUNE_MAX_RUNNING": "1", "RTPRUNE_MAX_WAITING": "1", "RTPRUNE_MAX_ENCODING": "1"}
    server = RunningServer(engines, tmp_path_factory.mktemp("small") / "server.log", **limits)
    server.start()
    yield server
    server.stop()


def options(retention: Retention | None = None, mode: str = "tiny") -> OcrOptions:
    return OcrOptions(mode, FREE_OCR, retention, MAX_TOKENS)


def data_of(folder: Path, pages: list[LoadPage], chosen: OcrOptions) -> Path:
    path = folder / "input.json"
    write_input_data(path, pages, chosen, SETTINGS)
    return path


def near_the_middle(value: float, values: list[float]) -> bool:
    """Whether `value` is the median, or as near to it as one way to round a rank is to another."""
    ranked, middle = sorted(values), len(values) // 2
    return ranked[max(middle - 1, 0)] - 0.002 <= value <= ranked[min(middle + 1, len(values) - 1)] + 0.002


@pytest.mark.serving
@pytest.mark.parametrize("retention", ["dynamic", "off"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_point_has_every_request_with_what_the_server_answered(
    endpoint: str, retention: Retention, load: Load, pages: list[LoadPage], tmp_path: Path
) -> None:
    chosen = options(retention)
    point, profile = measure(load, ENDPOINTS[endpoint], "some", 2, data_of(tmp_path, pages, chosen))
    assert point.error == ""
    assert profile is not None
    assert point.requests == len(profile.requests) > 0
    alone = {page.image: load.client.read(page.image, chosen) for page in pages}
    for request in profile.requests:
        result = alone[request.image]  # a page that was sent, byte for byte
        assert request.text == result.text
        assert request.visual_tokens == (result.visual_tokens, result.kept_tokens)
        assert request.output_tokens == result.output_tokens
        assert request.finish_reason == result.finish_reason
        assert request.sent < request.first <= request.last
        assert 0 < request.first_tokens <= request.output_tokens
    if retention == "off":
        assert point.visual_tokens[0] == point.visual_tokens[1]
    assert sum(point.finish_reasons.values()) == point.requests
    assert set(point.stages) == set(STAGES)
    assert all(use.requests >= point.requests for use in point.stages.values())
    assert point.latency_ms == sorted(point.latency_ms)
    assert bool(point.first_token_ms) == ENDPOINTS[endpoint].streams


@pytest.mark.serving
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_our_times_are_perf_analyzers_own(
    endpoint: str, load: Load, pages: list[LoadPage], tmp_path: Path
) -> None:
    """Its report has the median in microseconds: of whole answers for streams too, whatever it says of them."""
    point, profile = measure(load, ENDPOINTS[endpoint], "dynamic", 2, data_of(tmp_path, pages, options()))
    assert profile is not None, point.error
    assert near_the_middle(point.report["p50 latency"] / 1e6, [each.latency for each in profile.requests])
    assert point.pages_per_second == pytest.approx(point.requests / point.seconds, rel=0.2)


@pytest.mark.serving
def test_windows_that_are_too_short_for_a_page_are_made_longer(
    load: Load, pages: list[LoadPage], tmp_path: Path
) -> None:
    data = data_of(tmp_path, pages, options())
    point, profile = measure(replace(load, window_ms=20), ENDPOINTS["stream"], "dynamic", 2, data)
    assert point.error == ""
    assert profile is not None
    assert point.seconds > 3 * 0.02 * 1.3  # longer than asked for, the fifth that it always adds included


@pytest.mark.serving
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_refused_request_is_the_servers_own_sentence(
    endpoint: str, load: Load, pages: list[LoadPage], tmp_path: Path
) -> None:
    point, profile = measure(
        load, ENDPOINTS[endpoint], "dynamic", 1, data_of(tmp_path, pages, options(mode="huge"))
    )
    assert profile is None
    assert point.error.startswith("INVALID_ARGUMENT: MODE must be one of tiny,")
    assert not point.full


@pytest.mark.serving
def test_a_full_server_is_told_from_a_failing_one(
    small_server: RunningServer, tool: PerfAnalyzer, pages: list[LoadPage], tmp_path: Path
) -> None:
    with OcrClient(small_server.grpc_url, settings=SETTINGS) as client:
        load = load_of(small_server, tool, client)
        point, profile = measure(load, ENDPOINTS["grpc"], "dynamic", 12, data_of(tmp_path, pages, options()))
    assert profile is None
    assert point.full, point.error


@pytest.mark.serving
@pytest.mark.parametrize("endpoint", ["stream", "http"])
def test_beyond_the_bounds_requests_are_refused_and_the_rest_is_read(
    endpoint: str, small_server: RunningServer, pages: list[LoadPage]
) -> None:
    url = small_server.grpc_url if endpoint == "stream" else f"http://{small_server.http_url}"
    found = burst(url, endpoint, pages, options(), 24, SETTINGS)
    assert found.failed == 0, found.sentences
    assert found.answered + found.refused == found.sent == 24
    assert found.answered > 0
    assert found.refused > 0
    assert 0 < found.share_refused < 1
    assert len(found.answered_ms) == len(found.refused_ms) == 3
    assert found.sentences
    assert not any("request id" in sentence for sentence in found.sentences)


def test_an_option_that_perf_analyzer_does_not_take_is_refused(tool: PerfAnalyzer) -> None:
    check_options(tool, [])
    check_options(tool, ["--grpc-compression-algorithm", "gzip"])
    with pytest.raises(InvalidInput, match="unrecognized option '--nope'"):
        check_options(tool, ["--nope"])
    with pytest.raises(InvalidInput, match="Invalid value provided: soon"):
        check_options(tool, ["--measurement-interval", "soon"])


def test_there_must_be_pages(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no pages"):
        data_of(tmp_path, [], options())


def test_rendered_pages_differ_and_are_the_same_again() -> None:
    first = rendered_pages("small", 4, seed=3)
    assert first == rendered_pages("small", 4, seed=3)
    assert len({page.image for page in first}) == len({page.text for page in first}) == 4


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("error: failed to get model metadata: no\n\n", "failed to get model metadata: no"),
        ("/x/perf_analyzer: unrecognized option '--a'\nUsage: ...\nII. more", "unrecognized option '--a'"),
        (
            "Failed to maintain load.\nThread [0] had error: in ensemble 'a', in ensemble 'b', UNAVAILABLE: full.\n\n"
            "Thread [1] had error: other.\n",
            "UNAVAILABLE: full.",
        ),
        (
            "WARNING: few\n\nNo valid requests recorded. Wait longer.\n\n",
            "No valid requests recorded. Wait longer.",
        ),
        ("", "it said nothing"),
    ],
)
def test_complaints_become_one_sentence(said: str, sentence: str) -> None:
    assert reason(said) == sentence


@given(st.text())
def test_any_complaint_becomes_one_line(said: str) -> None:
    assert reason(said)
    assert len(reason(said).splitlines()) == 1


@given(st.lists(st.floats(0, 1e4), min_size=1))
def test_percentiles_are_values_that_were_measured(seconds: list[float]) -> None:
    found = percentiles(seconds)
    assert found == sorted(found)
    assert set(found) <= {1000 * value for value in seconds}
    assert found[-1] <= 1000 * max(seconds)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_profile_are_refused(content: bytes) -> None:
    with pytest.raises(EngineError, match="can't be read"):
        read_profile(_Bytes(content))  # type: ignore[arg-type]


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read_bytes(self) -> bytes:
        return self._content


@pytest.mark.parametrize("change", ["requests", "window_boundaries", "experiment"])
def test_a_profile_that_lacks_something_is_refused(change: str, tmp_path: Path) -> None:
    whole = {"experiment": {}, "requests": [], "window_boundaries": [0, 10**9]}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"experiments": [whole]}))
    assert read_profile(path) == Profile((), 1.0)
    short = {name: value for name, value in whole.items() if name != change}
    path.write_text(json.dumps({"experiments": [short] if change != "experiment" else []}))
    with pytest.raises(EngineError):
        read_profile(path)


@pytest.mark.parametrize("content", ["", "Concurrency\n", "Concurrency,p50 latency\n1,soon\n"])
def test_a_report_without_a_row_of_numbers_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    path.write_text(content)
    with pytest.raises(EngineError, match="report can't be read"):
        read_report(path)
