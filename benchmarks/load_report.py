"""Writes what a load test found: a page of tables, a plot, and all numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.load_plot import plot
from benchmarks.load_point import Point
from benchmarks.load_result import DOOR_NAMES, Result

NAME = "load_test"
LEGEND = (
    "Milliseconds. p50, p95 and p99 are of the requests that ended within the windows: with fewer than 100 of them p99 "
    "is the slowest. `latency` is from the request to the whole text. A stream's `first token` is from the request to "
    "the first response, which has the first character or the first few. `tokens/s` is output tokens of all requests "
    "over the windows' seconds; `tokens/s each` is the median of a stream's own rate after its first response. Timed "
    "by perf_analyzer, at its end of the connection."
)
STAGES = (
    "Means of a request, in milliseconds, queue + compute. Preprocess, vision and rtprune are from Triton's "
    "statistics, with what perf_analyzer sends before and after its windows; a vision run holds as many requests as "
    "the batch says. The decoder is decoupled and has taken a request before Triton counts any queue, so its queue "
    "(waiting to be admitted) and its decoding (prefill to last token) are from the answers' `TIMINGS`. So is "
    "`first token`: from arrival at the server to the first output token."
)
OVERLOAD = (
    "All requests in one moment, by our client and without a second try, because perf_analyzer ends at the first "
    "refusal. Refused is UNAVAILABLE (HTTP 503)."
)


def write(result: Result, folder: Path) -> str:
    """Write load_test.md, .json and, where a point has numbers, .png into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = "\n".join(markdown(result))
    (folder / f"{NAME}.md").write_text(page, encoding="utf-8")
    content = json.dumps(rounded(asdict(result)), indent=1, ensure_ascii=False)
    (folder / f"{NAME}.json").write_text(content + "\n", encoding="utf-8")
    if any(not each.error for each in result.points):
        plot(result, folder / f"{NAME}.png")
    return page


def rounded(value: Any) -> Any:
    """The same with floats of four significant digits or a thousandth, whichever is finer."""
    if isinstance(value, float):
        return round(value, 3) if abs(value) >= 1 else float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def cell(text: str) -> str:
    """A text that can't break a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def markdown(result: Result) -> list[str]:
    """The page, line by line."""
    lines = ["# Load test", ""]
    lines += [f"* **{name}**: {said}" for name, said in result.conditions.items()]
    lines += ["", "![Throughput, latency and first token against the number of requests](load_test.png)", ""]
    lines += _beside_transformers(result)
    for door in result.doors():
        lines += [f"## {DOOR_NAMES[door]}", "", *table(*_door(result, door))]
    lines += [LEGEND, "", *_refusals(result), "", "## Stages", "", *table(*_stages(result)), STAGES, ""]
    if result.overloads:
        lines += ["## Overload", "", *table(*_overload(result)), OVERLOAD, ""]
        said = [
            (DOOR_NAMES[each.door], cell(sentence))
            for each in result.overloads
            for sentence in each.sentences
        ]
        lines += [*(f"* {door}: {sentence}" for door, sentence in said), ""]
    return lines


def _whole(*values: float) -> list[str]:
    return [f"{value:.0f}" for value in values]


def _beside_transformers(result: Result) -> list[str]:
    base = result.baseline
    head = [
        "best throughput of",
        "pruning",
        "requests at once",
        "pages/s",
        "ratio",
        "p50",
        "p95",
        "p99",
        "tokens/s",
    ]
    rows = []
    if base:
        row = ["transformers, one process, no server", "off", "1", f"{base['pages_per_second']:.2f}", "1.00"]
        rows.append([*row, *_whole(*base["latency_ms"], base["tokens_per_second"])])
    for best in filter(
        None, (result.best(door, each) for door in result.doors() for each in result.prunings())
    ):
        row = [DOOR_NAMES[best.door], best.pruning, str(best.concurrency), f"**{best.pages_per_second:.2f}**"]
        row.append(f"**{best.pages_per_second / base['pages_per_second']:.2f}**" if base else "")
        rows.append([*row, *_whole(*best.latency_ms, best.tokens_per_second)])
    lines = ["## Beside transformers", "", *table(head, rows)]
    if base:
        passes = " and ".join(f"{each['pages_per_second']:.2f}" for each in base["passes"])
        same = "; ".join(f"pruning {name}, {same} of {of}" for name, (same, of) in result.agreement.items())
        lines += [
            f"The baseline ran before the server's points and after them, at {passes} pages/s; the table has both "
            f"together. It ran with {base['choice']}, the fastest of what was tried.",
            "",
            "Answers of the server with exactly the text that transformers read from the same page, unpruned: "
            f"{same}.",
            "",
        ]
    return lines


def _door(result: Result, door: str) -> tuple[list[str], list[list[str]]]:
    streams = door == "stream"
    head = ["pruning", "requests at once", "pages/s", "tokens/s", "latency p50", "p95", "p99"]
    head += ["first token p50", "p95", "p99", "tokens/s each"] if streams else []
    head += ["visual tokens", "requests measured"]
    rows = []
    for each in (point for point in result.points if point.door == door):
        row = [each.pruning, str(each.concurrency)]
        if each.error:
            why = "refused" if each.full else "no numbers"
            rows.append([*row, f"{why}: {cell(each.error)}", *[""] * (len(head) - 3)])
            continue
        row += [f"{each.pages_per_second:.2f}", *_whole(each.tokens_per_second, *each.latency_ms)]
        row += _whole(*each.first_token_ms, each.stream_tokens_per_second) if streams else []
        rows.append([*row, " -> ".join(_whole(*each.visual_tokens)), str(each.requests)])
    return head, rows


def _refusals(result: Result) -> list[str]:
    full = [each for each in result.points if each.full]
    if not full:
        return ["No point of the sweep met UNAVAILABLE: every request that perf_analyzer sent was let in."]
    names = ", ".join(f"{DOOR_NAMES[each.door]} at {each.concurrency}" for each in full)
    return [f"The server was full (UNAVAILABLE) at: {names}; perf_analyzer gives no numbers there."]


def _stages(result: Result) -> tuple[list[str], list[list[str]]]:
    head = ["door", "pruning", "requests at once", "preprocess", "vision", "batch", "rtprune", "decoder"]
    return [*head, "first token"], [_stage_row(each) for each in result.points if not each.error]


def _stage_row(point: Point) -> list[str]:
    cells = {name: f"{use.queue_ms:.1f} + {use.compute_ms:.1f}" for name, use in point.stages.items()}
    row = [
        point.door,
        point.pruning,
        str(point.concurrency),
        cells.get("preprocess", ""),
        cells.get("vision", ""),
    ]
    row.append(f"{point.stages['vision'].batch:.1f}" if "vision" in point.stages else "")
    row.append(cells.get("rtprune", ""))
    row.append(f"{point.timings_ms['decoder_queue']:.1f} + {point.timings_ms['decode']:.1f}")
    return [*row, f"{point.timings_ms['first_token']:.1f}"]


def _overload(result: Result) -> tuple[list[str], list[list[str]]]:
    head = ["door", "sent at once", "answered", "refused", "share refused", "other errors"]
    head += ["refusal p50", "p99", "answer p50", "p99"]
    rows = []
    for each in result.overloads:
        row = [
            DOOR_NAMES[each.door],
            *_whole(each.sent, each.answered, each.refused),
            f"{each.share_refused:.0%}",
        ]
        row.append(str(each.failed))
        for times in (each.refused_ms, each.answered_ms):
            row += _whole(times[0], times[-1]) if times else ["", ""]
        rows.append(row)
    return head, rows
