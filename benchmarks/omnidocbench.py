"""Runs OmniDocBench's pages with and without pruning, and compares edit distances.

    python -m benchmarks.omnidocbench OmniDocBench/ --output results/omnidocbench --mode base

The folder is the data set as it's published: `OmniDocBench.json` and `images/`. Each setting becomes a folder of
predictions in the layout that OmniDocBench's own end-to-end evaluation takes, and a configuration for it: that
evaluation gives the numbers to publish. The table printed here is a quick look: one edit distance a page, over
the page's words in reading order, without matching blocks.

A run that was stopped goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measuring import machine
from benchmarks.measuring import table as markdown_table
from deepseek_ocr_client import ClientError, ClientSettings, OcrClient, OcrOptions
from deepseek_ocr_client.batch import Batch
from deepseek_ocr_client.inputs import Source
from deepseek_ocr_client.journal import NAME
from deepseek_ocr_client.layouts import OmniDocBenchLayout, prediction_name
from deepseek_ocr_client.output import atomic_write, safe_name
from deepseek_ocr_client.request import RETENTIONS
from deepseek_ocr_client.score import edit_distance
from deepseek_ocr_client.settings import MODES, PROMPTS

# What a reader of the page would read out; the rest is furniture or has no text.
READ = frozenset(
    [
        "text_block",
        "title",
        "code_txt",
        "code_txt_caption",
        "reference",
        "equation_caption",
        "figure_caption",
        "figure_footnote",
        "table_caption",
        "table_footnote",
        "code_algorithm",
        "code_algorithm_caption",
        "equation_isolated",
        "table",
        "list_group",
    ]
)
LANGUAGES = {"english": "EN", "simplified_chinese": "ZH", "en_ch_mixed": "mixed"}
_TAG = re.compile(r"<[^<>]{1,200}>")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_NOT_WORD = re.compile(r"[\W_]+")

EVALUATION = """end2end_eval:
  metrics:
    text_block: {{metric: [Edit_dist]}}
    display_formula: {{metric: [Edit_dist]}}
    table: {{metric: [TEDS, Edit_dist]}}
    reading_order: {{metric: [Edit_dist]}}
  dataset:
    dataset_name: end2end_dataset
    ground_truth: {{data_path: {truth}}}
    prediction: {{data_path: {predictions}}}
    match_method: quick_match
"""


@dataclass(frozen=True)
class TruthPage:
    """A page of the data set: its image's name, its language (EN, ZH, mixed), its words in reading order."""

    image: str
    language: str
    words: str


def read_truth(path: Path) -> list[TruthPage]:
    """The annotated pages of OmniDocBench.json."""
    pages = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        blocks = [
            block
            for block in entry["layout_dets"]
            if block["category_type"] in READ and not block.get("ignore")
        ]
        blocks.sort(key=lambda block: block.get("order") or 0)
        text = " ".join(
            str(block.get("text") or block.get("latex") or block.get("html") or "") for block in blocks
        )
        language = entry["page_info"].get("page_attribute", {}).get("language", "")
        pages.append(
            TruthPage(
                Path(entry["page_info"]["image_path"]).name, LANGUAGES.get(language, language), words_of(text)
            )
        )
    return pages


def words_of(text: str) -> str:
    """Letters and digits alone: Markdown, HTML and LaTeX marks, blanks and punctuation gone."""
    return _NOT_WORD.sub("", _COMMAND.sub("", _TAG.sub("", text)))


def page_distance(prediction: str | None, truth: str) -> float:
    """Edit distance over the longer text's length, 0 to 1; a missing prediction is all wrong."""
    found = words_of(prediction or "")
    longest = max(len(found), len(truth))
    return edit_distance(found, truth) / longest if longest else 0.0


class Bar:
    """Progress of one setting."""

    def __init__(self, label: str) -> None:
        self._bar: tqdm[None] = tqdm(unit="page", desc=label, disable=None)

    def pages(self, total: int, finished: int) -> None:
        """Begin."""
        self._bar.total, self._bar.n = total, finished
        self._bar.refresh()

    def page(self, failed: bool) -> None:
        """One more."""
        self._bar.update()

    def close(self) -> None:
        """End."""
        self._bar.close()


def run_setting(
    client: OcrClient, sources: Sequence[Source], options: OcrOptions, folder: Path, label: str
) -> float:
    """Read every page with one setting; returns the seconds this run took. Raises the ClientError that stopped it."""
    started = time.monotonic()
    bar = Bar(label)
    try:
        report = Batch(client, folder, OmniDocBenchLayout(folder), options=options, progress=bar).run(sources)
    finally:
        bar.close()
    for failure in report.failures:
        print(f"failed: {failure}", file=sys.stderr)
    if report.stopped is not None:
        raise report.stopped
    return time.monotonic() - started


def score(folder: Path, pages: Sequence[TruthPage]) -> dict[str, Any]:
    """Mean page distance by language, visual tokens before and after, seconds a page in the server."""
    distances: dict[str, list[float]] = {}
    for page in pages:
        path = folder / "predictions" / prediction_name(page.image)
        prediction = path.read_text(encoding="utf-8") if path.exists() else None
        distances.setdefault(page.language, []).append(page_distance(prediction, page.words))
    before = after = count = 0
    seconds = 0.0
    with (folder / NAME).open(encoding="utf-8") as journal:
        for line in journal:
            record = json.loads(line)
            if record["kind"] == "page":
                before += record["visual_tokens"]["before"]
                after += record["visual_tokens"]["after"]
                seconds += (record["timings"] or {}).get("total", 0.0)
                count += 1
    return {
        "pages": count,
        "distance": {language: sum(found) / len(found) for language, found in sorted(distances.items())},
        "visual_tokens_before": before / max(count, 1),
        "visual_tokens_after": after / max(count, 1),
        "seconds_per_page": seconds / max(count, 1),
    }


def parse_retentions(written: str) -> dict[str, float]:
    """`off,dynamic,0.7` -> labels and RETENTION values. Raises ValueError for other words."""
    found: dict[str, float] = {}
    for word in written.split(","):
        name = word.strip()
        share = RETENTIONS[name] if name in RETENTIONS else float(name)
        found[name if name in RETENTIONS else f"r={share:g}"] = share
    return found


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    languages = sorted({language for found in scores.values() for language in found["distance"]})
    head = ["pruning", *(f"edit distance {language}" for language in languages), "visual tokens", "s/page"]
    rows = []
    for label, found in scores.items():
        distances = [f"{found['distance'].get(language, float('nan')):.3f}" for language in languages]
        tokens = f"{found['visual_tokens_before']:.0f} -> {found['visual_tokens_after']:.0f}"
        rows.append([label, *distances, tokens, f"{found['seconds_per_page']:.2f}"])
    return "\n".join(markdown_table(head, rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the pages, print the table, leave predictions, configurations and a JSON file."""
    parser = argparse.ArgumentParser(description="OmniDocBench with and without pruning")
    parser.add_argument("dataset", type=Path, help="folder with OmniDocBench.json and images/")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mode", choices=MODES, default="base")
    parser.add_argument(
        "--retentions", default="off,dynamic", help="off, dynamic and shares; default %(default)s"
    )
    parser.add_argument("--prompt", default=PROMPTS["markdown"])
    parser.add_argument("--max-tokens", type=int, help="output tokens at most; default: the server's")
    parser.add_argument("--limit", type=int, help="only the first pages")
    parser.add_argument("--url", default=ClientSettings.from_env().url)
    parsed = parser.parse_args(arguments)
    try:
        scores = compare(parsed)
    except ClientError as error:
        print(f"error: {error} {error.advice}", file=sys.stderr)
        return int(error.exit_code)
    print(table(scores))
    return 0


def compare(parsed: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run and score every setting, by label.

    Raises ClientError without the data set, or where the server doesn't answer.
    """
    truth = parsed.dataset / "OmniDocBench.json"
    if not truth.is_file():
        raise ClientError(f"There is no {truth}.", "Give the data set's folder as it's published.")
    pages = read_truth(truth)[: parsed.limit]
    sources = [Source(parsed.dataset / "images" / page.image, safe_name(page.image)) for page in pages]
    scores: dict[str, dict[str, Any]] = {}
    with OcrClient(parsed.url) as client:
        client.check()
        for label, retention in parse_retentions(parsed.retentions).items():
            folder = parsed.output / f"{parsed.mode}-{label}"
            options = OcrOptions(
                mode=parsed.mode, retention=retention, prompt=parsed.prompt, max_tokens=parsed.max_tokens
            )
            seconds = run_setting(client, sources, options, folder, label)
            scores[label] = {**score(folder, pages), "run_seconds": seconds}
            # The evaluation names its results after the folder, so each setting needs a name of its own.
            named = parsed.output / "evaluation" / f"{parsed.mode}-{label}"
            named.parent.mkdir(parents=True, exist_ok=True)
            if not named.is_symlink():
                named.symlink_to((folder / "predictions").resolve(), target_is_directory=True)
            with atomic_write(named.with_suffix(".yaml")) as file:
                file.write(EVALUATION.format(truth=truth.resolve(), predictions=named.absolute()).encode())
    summary = {
        "machine": f"{machine()}, {platform.system()} {platform.release()}",
        "server": str(parsed.url),
        "mode": parsed.mode,
        "pages": len(pages),
        "settings": scores,
    }
    with atomic_write(parsed.output / "summary.json") as file:
        file.write(json.dumps(summary, indent=2).encode() + b"\n")
    print(
        f"For the numbers to publish, in a checkout of OmniDocBench: python pdf_validation.py --config "
        f"{(parsed.output / 'evaluation').absolute()}/SETTING.yaml\n"
    )
    return scores


if __name__ == "__main__":
    sys.exit(main())
