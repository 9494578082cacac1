"""The numbers of the sizing page follow from its formula, and from the measurements that it names."""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path

from rtprune.modes import MODES

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "deploy" / "kubernetes" / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
PAGES, HOURS, SHARE = 1_000_000, 24, 0.7
KV_BYTES = 2 * 12 * 1280 * 2  # keys and values, layers, hidden size, bytes


def cells(start: str, text: str = PAGE) -> list[str]:
    """The cells after the first of the table row that starts so."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def gpus(pages_a_second: float, peak: float) -> int:
    return ceil(PAGES * peak / (3600 * HOURS * SHARE * pages_a_second))


def test_the_table_follows_from_the_formula() -> None:
    rates = [float(cell) for cell in cells("r, pages/s")]
    assert len(rates) == 5
    for start, peak in (("GPUs, batch", 1), ("GPUs, people", 3)):
        assert [int(cell) for cell in cells(start)] == [gpus(rate, peak) for rate in rates]
    assert cells("D |")[1:2] == [f"{PAGES:,}"]
    assert cells("H |")[1].startswith(str(HOURS))
    assert cells("U |")[1] == str(SHARE)


def test_the_paper_s_figure_gives_the_gpus_that_the_page_says() -> None:
    rate = 200_000 / 86_400
    assert f"r = {rate:.1f}, so {gpus(rate, 1)} GPUs" in PAGE.replace("\n", " ")


def test_the_milliseconds_are_the_measured_ones() -> None:
    preprocessing = (RESULTS / "preprocessing.md").read_text()
    pruning = (RESULTS / "pruning.md").read_text()
    for row, mode, pruned_page in (
        ("base", "base", "base"),
        ("large", "large", "large, in colour"),
        ("gundam, 2 x 3", "gundam", "gundam 2 x 3"),
    ):
        (line,) = [t for t in preprocessing.splitlines() if t.startswith("| JPEG") and f" {mode} |" in t]
        stage = sum(float(cell) for cell in line.strip("|").split("|")[3:6])
        prune = float(cells(f"{pruned_page} |", pruning)[3].strip("*"))
        shown = [float(re.findall(r"^[\d.]+", cell)[0]) for cell in cells(row)]
        assert shown == [round(stage), prune, int(2000 / stage)]


def test_a_page_s_memory_follows_from_the_architecture() -> None:
    assert f"{KV_BYTES:,}" in PAGE.replace("\n", " ")
    assert MODES["large"].sides == (1280,)
    page = (4096 + 421) * KV_BYTES
    assert f"about {round(page / 1e6, -1):.0f} MB" in PAGE
    assert f"{16 * page / 1e9:.1f} GB" in PAGE
