"""The load test's command line from end to end, and the page that it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.load_test.__main__ import levels, main
from benchmarks.load_test.measure import ENDPOINTS, Overload, Point, StageUse, between
from benchmarks.load_test.perf_analyzer import PerfAnalyzer
from benchmarks.load_test.report import Result, cell, markdown, rounded, write
from rtprune.errors import InvalidInput
from tests.serving.running import RunningServer, free_ports

SHORT = ["--window", "1.5", "--pages", "3", "--concurrency", "2", "--max-tokens", "200"]


@pytest.fixture
def line(ocr_server: RunningServer, tool: PerfAnalyzer, tmp_path: Path) -> list[str]:
    address = ["--grpc-url", ocr_server.grpc_url, "--http-url", ocr_server.http_url]
    return [*address, *SHORT, "--engines", str(ocr_server.engines), "--output", str(tmp_path / "results")]


@pytest.mark.serving
def test_a_run_leaves_a_page_a_plot_and_all_numbers(line: list[str], tmp_path: Path) -> None:
    assert main([*line, "--overload", "4"]) == 0
    folder = tmp_path / "results"
    assert sorted(path.name for path in folder.iterdir()) == [
        "load_test.json",
        "load_test.md",
        "load_test.png",
    ]
    assert (folder / "load_test.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "load_test.json").read_text())
    assert [(each["endpoint"], each["pruning"]) for each in found["points"]] == [
        (endpoint, pruning) for endpoint in ENDPOINTS for pruning in ("dynamic", "off")
    ]
    assert all(each["requests"] > 0 and each["error"] == "" for each in found["points"])
    assert found["baseline"]["pages_per_second"] > 0
    same, of = found["agreement"]["off"]
    assert same == of > 0, "without pruning the server reads what transformers reads"
    assert [each["answered"] for each in found["overloads"]] == [4, 4]
    page = (folder / "load_test.md").read_text()
    for word in ("**Machine**", "load average", "perf_analyzer 2.", "Triton 2.", "transformers, one process",
                 "not DeepSeek-OCR", "mode tiny", "No point of the sweep met UNAVAILABLE"):  # fmt: skip
        assert word in page
    assert_tables_are_whole(page)


@pytest.mark.serving
def test_pages_and_shares_of_the_users_own(line: list[str], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    options = ["--input", str(root / "examples" / "page.png"), "--pruning", "0.7", "--endpoints", "stream"]
    assert (
        main(
            [
                *line,
                *options,
                "--no-baseline",
                "--overload",
                "0",
                "--",
                "--grpc-compression-algorithm",
                "none",
            ]
        )
        == 0
    )
    found = json.loads((tmp_path / "results" / "load_test.json").read_text())
    assert (found["baseline"], found["overloads"]) == ({}, [])
    (point,) = found["points"]
    assert point["pruning"] == "r=0.7"
    assert point["visual_tokens"][1] < point["visual_tokens"][0]
    assert "page.png" in found["conditions"]["Pages"]
    assert "--grpc-compression-algorithm none" in found["conditions"]["perf_analyzer's options"]


@pytest.mark.usefixtures("tool")
@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--concurrency", "0"], 2, "--concurrency must be numbers from 1 to 1024"),
        (
            ["--endpoints", "grpc,back"],
            2,
            "--endpoints takes grpc, http, stream with commas between them, not 'back'",
        ),
        (["--pruning", "little"], 2, "--pruning takes dynamic, off and shares like 0.7, not 'little'"),
        (["--pruning", "1.5"], 2, "retention must be dynamic, off, or a share above 0 and at most 1"),
        (["--window", "0"], 2, "--window and --pages must be more than 0"),
        (["--input", "no-such-page.png"], 2, "There is no file no-such-page.png"),
        (["--", "--nope"], 2, "perf_analyzer refuses an option: unrecognized option '--nope'"),
        ([], 1, "No server answers"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    options: list[str], status: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    line = ["--grpc-url", nobody, "--http-url", nobody, "--output", str(tmp_path / "results"), *options]
    assert main(line) == status
    said = capsys.readouterr().err.splitlines()
    assert sentence in said[-1]
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "results").exists()


@pytest.mark.serving
def test_a_server_that_refuses_every_page_leaves_no_results(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-tokens", "100000000", "--no-baseline", "--overload", "0", "--endpoints", "grpc"]
    assert main([*line, *options]) == 1
    assert "Nothing could be measured: INVALID_ARGUMENT: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "results").exists()


def assert_tables_are_whole(page: str) -> None:
    """Every row of a table has as many cells as its head."""
    width = 0
    for row in page.splitlines():
        if not row.startswith("|"):
            width = 0
            continue
        cells = len(re.split(r"(?<!\\)\|", row))
        width = width or cells
        assert cells == width, row


def point(endpoint: str, **facts: object) -> Point:
    made = Point(endpoint, "off", 4)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def measured(endpoint: str) -> Point:
    return point(
        endpoint,
        requests=7,
        pages_per_second=3.5,
        tokens_per_second=200.0,
        latency_ms=[1.0, 2.0, 3.0],
        first_token_ms=[0.5, 0.6, 0.7] if endpoint == "stream" else [],
        visual_tokens=[73.0, 60.0],
        stages={"vision": StageUse(7, 1.5, 20.0, 2.0)},
        timings_ms={"queue": 0.1, "decode": 9.0, "first_token": 4.0},
    )


def test_a_refused_point_is_said_in_the_table_and_below(tmp_path: Path) -> None:
    refused = point("stream", error="UNAVAILABLE: full | really\nfull", full=True)
    burst = Overload("http", 10, answered=7, refused=3, answered_ms=[1.0, 2.0, 3.0], sentences=["full | up"])
    result = Result({"Machine": "this"}, [measured("grpc"), measured("stream"), refused], [burst])
    page = write(result, tmp_path)
    assert_tables_are_whole(page)
    assert "refused: UNAVAILABLE: full \\| really full" in page
    assert "The server was full (UNAVAILABLE) at: gRPC, stream at 4" in page
    assert "| 30% |" in page
    assert (tmp_path / "load_test.png").exists()


def test_without_any_number_there_is_no_plot(tmp_path: Path) -> None:
    write(Result({}, [point("grpc", error="no")]), tmp_path)
    assert not (tmp_path / "load_test.png").exists()


def test_ratios_are_of_the_best_point() -> None:
    slow, fast = measured("grpc"), measured("grpc")
    fast.pages_per_second, fast.concurrency = 9.0, 8
    passes = [{"pages_per_second": 2.0}, {"pages_per_second": 4.0}]
    base = {
        "pages_per_second": 3.0,
        "tokens_per_second": 10.0,
        "latency_ms": [1.0, 1.0, 1.0],
        "choice": "1 thread",
    }
    page = "\n".join(markdown(Result({}, [slow, fast], baseline=base | {"passes": passes})))
    assert "| gRPC, whole answer | off | 8 | **9.00** | **3.00** |" in page
    assert "at 2.00 and 4.00 pages/s" in page


def test_stage_means_are_of_what_happened_between() -> None:
    def model(count: int, runs: int, nanoseconds: int) -> dict[str, object]:
        parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
        stats = {part: {"count": str(count), "ns": str(nanoseconds)} for part in parts}
        return {"execution_count": str(runs), "inference_stats": stats}

    before = {"vision": model(10, 10, 10**9), "rtprune": model(4, 4, 5)}
    after = {
        "vision": model(14, 12, 10**9 + 8_000_000),
        "rtprune": model(4, 4, 5),
        "preprocess": model(2, 2, 2_000_000),
    }
    assert between(before, after) == {
        "vision": StageUse(4, 2.0, 6.0, 2.0),
        "preprocess": StageUse(2, 1.0, 3.0, 1.0),
    }


def test_small_things() -> None:
    assert levels("4, 1,4") == [1, 4]
    for wrong in ("", "1,,2", "-1", "2048", "two"):
        with pytest.raises(InvalidInput):
            levels(wrong)
    assert cell("a|b\nc") == "a\\|b c"
    assert rounded({"a": [1.23456, 0.000123456, 7]}) == {"a": [1.235, 0.0001235, 7]}
