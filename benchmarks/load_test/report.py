"""Writes what a load test found: a page of tables, a plot, and all numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load_test.measure import Overload, Point
from benchmarks.measuring import table

NAME = "load_test"
ENDPOINT_NAMES = {"grpc": "gRPC, whole answer", "http": "HTTP, whole answer", "stream": "gRPC, stream"}
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

COLOURS = dict(zip(ENDPOINT_NAMES, ("C0", "C1", "C2"), strict=True))
STYLES = ("-o", "--s", ":^", "-.D")  # by way to prune; a fifth starts again


@dataclass(slots=True)
class Result:
    """A whole run. `conditions`: what the numbers hold for, in the order of the page."""

    conditions: dict[str, str]
    points: list[Point] = field(default_factory=list)
    overloads: list[Overload] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, list[int]] = field(
        default_factory=dict
    )  # pruning -> same text as baseline, of requests

    def of(self, endpoint: str, pruning: str) -> list[Point]:
        """Points with numbers of one endpoint and one way to prune."""
        wanted = (endpoint, pruning)
        return [each for each in self.points if (each.endpoint, each.pruning) == wanted and not each.error]

    def best(self, endpoint: str, pruning: str) -> Point | None:
        """The point with the highest throughput, None where none has numbers."""
        return max(self.of(endpoint, pruning), key=lambda each: each.pages_per_second, default=None)

    def endpoints(self) -> list[str]:
        """Endpoints that were measured, in order."""
        return list(dict.fromkeys(each.endpoint for each in self.points))

    def prunings(self) -> list[str]:
        """Ways to prune that were measured, in order."""
        return list(dict.fromkeys(each.pruning for each in self.points))


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


def cell(text: str) -> str:
    """A text that can't break a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def markdown(result: Result) -> list[str]:
    """The page, line by line."""
    lines = ["# Load test", ""]
    lines += [f"* **{name}**: {said}" for name, said in result.conditions.items()]
    lines += ["", "![Throughput, latency and first token against the number of requests](load_test.png)", ""]
    lines += _beside_transformers(result)
    for endpoint in result.endpoints():
        lines += [f"## {ENDPOINT_NAMES[endpoint]}", "", *table(*_endpoint_table(result, endpoint)), ""]
    lines += [LEGEND, "", *_refusals(result), "", "## Stages", "", *table(*_stages(result)), "", STAGES, ""]
    if result.overloads:
        lines += ["## Overload", "", *table(*_overload(result)), "", OVERLOAD, ""]
        said = [
            (ENDPOINT_NAMES[each.endpoint], cell(sentence))
            for each in result.overloads
            for sentence in each.sentences
        ]
        lines += [*(f"* {endpoint}: {sentence}" for endpoint, sentence in said), ""]
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
        None, (result.best(endpoint, each) for endpoint in result.endpoints() for each in result.prunings())
    ):
        row = [
            ENDPOINT_NAMES[best.endpoint],
            best.pruning,
            str(best.concurrency),
            f"**{best.pages_per_second:.2f}**",
        ]
        row.append(f"**{best.pages_per_second / base['pages_per_second']:.2f}**" if base else "")
        rows.append([*row, *_whole(*best.latency_ms, best.tokens_per_second)])
    lines = ["## Beside transformers", "", *table(head, rows), ""]
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


def _endpoint_table(result: Result, endpoint: str) -> tuple[list[str], list[list[str]]]:
    streams = endpoint == "stream"
    head = ["pruning", "requests at once", "pages/s", "tokens/s", "latency p50", "p95", "p99"]
    head += ["first token p50", "p95", "p99", "tokens/s each"] if streams else []
    head += ["visual tokens", "requests measured"]
    rows = []
    for each in (point for point in result.points if point.endpoint == endpoint):
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
    names = ", ".join(f"{ENDPOINT_NAMES[each.endpoint]} at {each.concurrency}" for each in full)
    return [f"The server was full (UNAVAILABLE) at: {names}; perf_analyzer gives no numbers there."]


def _stages(result: Result) -> tuple[list[str], list[list[str]]]:
    head = ["endpoint", "pruning", "requests at once", "preprocess", "vision", "batch", "rtprune", "decoder"]
    return [*head, "first token"], [_stage_row(each) for each in result.points if not each.error]


def _stage_row(point: Point) -> list[str]:
    cells = {name: f"{use.queue_ms:.1f} + {use.compute_ms:.1f}" for name, use in point.stages.items()}
    row = [
        point.endpoint,
        point.pruning,
        str(point.concurrency),
        cells.get("preprocess", ""),
        cells.get("vision", ""),
    ]
    row.append(f"{point.stages['vision'].batch:.1f}" if "vision" in point.stages else "")
    row.append(cells.get("rtprune", ""))
    row.append(f"{point.timings_ms['queue']:.1f} + {point.timings_ms['decode']:.1f}")
    return [*row, f"{point.timings_ms['first_token']:.1f}"]


def _overload(result: Result) -> tuple[list[str], list[list[str]]]:
    head = ["endpoint", "sent at once", "answered", "refused", "share refused", "other errors"]
    head += ["refusal p50", "p99", "answer p50", "p99"]
    rows = []
    for each in result.overloads:
        row = [
            ENDPOINT_NAMES[each.endpoint],
            *_whole(each.sent, each.answered, each.refused),
            f"{each.share_refused:.0%}",
        ]
        row.append(str(each.failed))
        for times in (each.refused_ms, each.answered_ms):
            row += _whole(times[0], times[-1]) if times else ["", ""]
        rows.append(row)
    return head, rows


def plot(result: Result, path: Path) -> None:
    """Write the picture: three panels, a line for each endpoint and way to prune, the baseline across."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    pages, latency, first = axes
    for number, pruning in enumerate(result.prunings()):
        style = STYLES[number % len(STYLES)]
        for endpoint in result.endpoints():
            points = result.of(endpoint, pruning)
            if not points:
                continue
            x = [each.concurrency for each in points]
            look: dict[str, Any] = {"color": COLOURS[endpoint], "markersize": 4}
            pages.plot(
                x,
                [each.pages_per_second for each in points],
                style,
                label=f"{ENDPOINT_NAMES[endpoint]}, pruning {pruning}",
                **look,
            )
            latency.plot(x, [each.latency_ms[0] for each in points], style, **look)
            latency.plot(x, [each.latency_ms[1] for each in points], style, alpha=0.3, **look)
            if endpoint == "stream":
                for at, name, alpha in ((0, "p50", 1.0), (1, "p95", 0.3)):
                    y = [each.first_token_ms[at] for each in points]
                    first.plot(x, y, style, alpha=alpha, label=f"{name}, pruning {pruning}", **look)
    if result.baseline:
        line: dict[str, Any] = {"color": "0.35", "linewidth": 1, "linestyle": "-."}
        pages.axhline(result.baseline["pages_per_second"], label="transformers, one process", **line)
        latency.axhline(result.baseline["latency_ms"][0], **line)
    pages.set(title="throughput", ylabel="pages/s")
    latency.set(title="latency: p50, pale p95", ylabel="ms from the request to the whole text")
    first.set(title="stream: first token", ylabel="ms from the request to the first text")
    levels = sorted({each.concurrency for each in result.points if not each.error})
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(levels, [str(level) for level in levels])
        axis.minorticks_off()
        axis.set_xlabel("requests at once")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    if first.lines:
        first.legend(fontsize=8)
    figure.legend(*pages.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(result.conditions.get("Model", ""), fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
