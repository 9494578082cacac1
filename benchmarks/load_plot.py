"""Draws a load test: throughput, latency and the streams' first token against the requests at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.load_result import DOOR_NAMES, Result

COLOURS = dict(zip(DOOR_NAMES, ("C0", "C1", "C2"), strict=True))
STYLES = ("-o", "--s", ":^", "-.D")  # by way to prune; a fifth starts again


def plot(result: Result, path: Path) -> None:
    """Write the picture: three panels, a line for each door and way to prune, the baseline across."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    pages, latency, first = axes
    for number, pruning in enumerate(result.prunings()):
        style = STYLES[number % len(STYLES)]
        for door in result.doors():
            points = result.of(door, pruning)
            if not points:
                continue
            x = [each.concurrency for each in points]
            look: dict[str, Any] = {"color": COLOURS[door], "markersize": 4}
            pages.plot(
                x,
                [each.pages_per_second for each in points],
                style,
                label=f"{DOOR_NAMES[door]}, pruning {pruning}",
                **look,
            )
            latency.plot(x, [each.latency_ms[0] for each in points], style, **look)
            latency.plot(x, [each.latency_ms[1] for each in points], style, alpha=0.3, **look)
            if door == "stream":
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
