"""The ablation: character error rate against retention, for every strategy and both ways to number positions.

    python -m benchmarks.retention --modes tiny --pages 40

And the same texts in every mode, on ever larger paper, at equal counts of tokens: is a page better read in a larger
mode, pruned, or in a smaller one, whole?

Renders pages of the reference checkpoint's kind with words that it was not trained on, encodes each once with the
exported engines, and decodes its tokens as every variant leaves them. Writes benchmarks/results/retention.md,
.json and .png. It says what pruning does to the small reference model, not to DeepSeek-OCR.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import queue
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from benchmarks.measuring import RESULTS, ROOT
from benchmarks.measuring import table as markdown_table
from rtprune import STRATEGIES, PruneConfig, PruneResult, TokenLayout, prune, text_density
from rtprune.config import Strategy
from rtprune.decoder.engines import open_engine
from rtprune.decoder.engines.base import Engine, Output, PromptTokens, Sampling
from rtprune.decoder.prompt import PromptWriter
from rtprune.decoder.special_tokens import SpecialTokens
from rtprune.manifest import Manifest
from rtprune.modes import MODES
from rtprune.preprocess.views import make_views
from rtprune.settings import Settings
from rtprune.vision.encoder import VisionEncoder
from training.evaluate import RECIPE, SEED, SHIPPED, Score, page_size
from training.model import SHARD
from training.synthetic_page import SyntheticPage, random_page
from training.tokenizer import FREE

RETENTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
POSITIONS = ("contiguous", "original")
EQUAL_MODES = ("tiny", "small", "base", "large")
EQUAL_CONTENT = (32, 48, 64, 100, 150, 200, 256, 400)  # content tokens; the modes' own are 64, 100, 256, 400
STYLES = {"norm": "s--"}  # lies on rtprune's line where the merge changes little


@dataclass(frozen=True)
class Variant:
    """One way to prune. `retention`: a share, None is the dynamic one. `positions`: of POSITIONS."""

    strategy: Strategy
    retention: float | None
    positions: str


@dataclass
class Sample:
    """A page, encoded once."""

    page: SyntheticPage
    tokens: Any  # float32 (L, hidden)
    layout: TokenLayout
    density: float


@dataclass
class Tally(Score):
    """Errors, characters and tokens of one variant, summed over pages."""

    kept: int = 0
    content: int = 0
    tokens: int = 0  # that the decoder read, newlines and separator too

    @property
    def retention(self) -> float:
        """Share of content tokens that were kept."""
        return self.kept / max(1, self.content)

    def count(self, sample: Sample, text: str, result: PruneResult) -> None:
        """Add a page that was read."""
        self.add(sample.page, text, grounded=False)
        self.kept += result.content_count
        self.content += sample.layout.content_count
        self.tokens += result.length


class Reader:
    """The library behind the served pipeline, without a server. `running`: requests that are decoded together.

    Raises SystemExit for engines of another checkpoint than the reference one, EngineError for broken ones.
    """

    def __init__(self, engines: Path, running: int) -> None:
        self.settings = Settings(engines=engines, max_running=running)
        self.manifest = Manifest.load(engines)
        if hashlib.sha256((SHIPPED / SHARD).read_bytes()).hexdigest() not in self.manifest.sources.values():
            raise SystemExit(f"{engines} was not exported from the reference checkpoint; run `make engines`.")
        self.vision = VisionEncoder.open(self.manifest, self.settings)
        self.writer = PromptWriter.open(self.manifest, self.settings)
        self.engine: Engine = open_engine(self.manifest, self.settings)
        self.tokenizer = Tokenizer.from_file(str(self.manifest.tokenizer))
        self.special = SpecialTokens.of(self.tokenizer)

    def samples(self, mode: str, pages: int, seed: int) -> Iterator[Sample]:
        """Rendered pages with their visual tokens.

        Raises InvalidInput for a mode without engines, EngineError where a page can't be encoded.
        """
        generator = np.random.default_rng([seed, list(MODES).index(mode)])
        for _ in range(pages):
            yield self.encode(random_page(generator, page_size(generator, mode), RECIPE), mode)

    def encode(self, page: SyntheticPage, mode: str) -> Sample:
        """The page with its visual tokens. Raises as `samples`."""
        views = make_views(page.image(), mode, self.settings)
        layout = TokenLayout.of(mode, tile_grid=views.tile_grid)
        tokens = self.vision.encode_pages([(views.global_view, views.tiles, views.tile_grid)])[0]
        if isinstance(tokens, Exception):
            raise tokens
        return Sample(page, tokens, layout, text_density(views.global_view, layout.global_grid))

    def read(
        self, sample: Sample, variants: Iterable[Variant], seed: int
    ) -> Iterator[tuple[Variant, str, PruneResult]]:
        """The text that each variant leaves readable, and what it left; all run together.

        Raises InvalidInput for a page that doesn't fit the engine, RuntimeError where it ends one with an error.
        """
        done: queue.SimpleQueue[tuple[int, Output]] = queue.SimpleQueue()
        running: dict[int, tuple[Variant, PruneResult]] = {}
        texts: dict[int, list[int]] = defaultdict(list)
        limit = 2 * len(sample.page.text.encode()) + 30
        for number, variant in enumerate(variants):
            config = PruneConfig(retention=variant.retention, strategy=variant.strategy, seed=seed)
            result = prune(sample.tokens, sample.layout, text_density=sample.density, config=config)
            positions = None
            if variant.positions == "original":
                positions = self.writer.positions(FREE, result.positions, sample.layout.length)
            running[number] = (variant, result)
            self.engine.submit(
                PromptTokens(self.writer.ids(FREE, result.length)),
                result.tokens,
                positions,
                Sampling(limit, self.special.eos, 30, 90),
                lambda output, number=number: done.put((number, output)),  # type: ignore[misc]
            )
        while running:
            number, output = done.get()
            texts[number] += output.tokens
            if output.finish_reason == "error":
                raise RuntimeError(output.error)
            if output.finish_reason:
                text = self.tokenizer.decode(texts.pop(number), skip_special_tokens=False)
                variant, result = running.pop(number)
                yield variant, text, result


def variants(strategies: Iterable[Strategy], retentions: Iterable[float]) -> list[Variant]:
    """All of them, unpruned first; it is every strategy's point at retention 1."""
    wanted = [retention for retention in retentions if retention < 1]
    pruning = [strategy for strategy in strategies if strategy != "none"]
    return [
        Variant("none", 1.0, POSITIONS[0]),
        *(Variant(*case) for case in itertools.product(pruning, [*wanted, None], POSITIONS)),
    ]


def table(mode: str, tallies: dict[Variant, Tally]) -> list[str]:
    """CER in per cent: a row a strategy and numbering, a column a retention."""
    whole = tallies[Variant("none", 1.0, POSITIONS[0])]
    retentions = sorted({v.retention for v in tallies if v.retention not in (None, 1.0)}, reverse=True)
    dynamic = next((t.retention for v, t in tallies.items() if v.retention is None), None)
    head = ["strategy", "positions", "1.0", *(f"{r:.1f}" for r in retentions)]
    head += [f"dynamic ({dynamic:.3f})"] if dynamic is not None else []
    lines = [
        f"## {mode}",
        "",
        f"{whole.pages} pages, {whole.characters} characters. Character error rate in per cent; columns are the "
        "retention.",
        "",
    ]
    rows = []
    for strategy, positions in itertools.product(STRATEGIES, POSITIONS):
        row = [
            tallies[variant].rate
            for variant in (Variant(strategy, r, positions) for r in (*retentions, None))
            if variant in tallies
        ]
        if row:
            rows.append([strategy, positions, *(f"{100 * rate:.2f}" for rate in (whole.rate, *row))])
    return [*lines, *markdown_table(head, rows), ""]


def equal_tokens(reader: Reader, pages: int, seed: int) -> dict[str, list[Tally]]:
    """The same texts in each mode that stretches or pads nothing: a tally for each of EQUAL_CONTENT that it has."""
    found: dict[str, list[Tally]] = {mode: [] for mode in EQUAL_MODES}
    generator = np.random.default_rng([seed, len(MODES)])
    drawn = [random_page(generator, (MODES["tiny"].side,) * 2, RECIPE) for _ in range(pages)]
    for mode, tallies in found.items():
        count = TokenLayout.of(mode).content_count
        shares = [min(1.0, (kept + 0.5) / count) for kept in EQUAL_CONTENT if kept <= count]
        wanted = {Variant("rtprune", share, POSITIONS[0]): Tally() for share in shares}
        for number, page in enumerate(tqdm(drawn, f"equal tokens, {mode}", unit="page")):
            sample = reader.encode(replace(page, size=(MODES[mode].side,) * 2), mode)
            for variant, text, result in reader.read(sample, wanted, seed + number):
                wanted[variant].count(sample, text, result)
        tallies += wanted.values()
    return found


def equal_table(found: dict[str, list[Tally]]) -> list[str]:
    """CER in per cent: a row a mode, a column a count of content tokens."""
    whole = next(iter(found.values()))[0]
    rows = []
    for mode, tallies in found.items():
        rates = {round(t.kept / t.pages): 100 * t.rate for t in tallies}
        rows.append([mode, *(f"{rates[kept]:.2f}" if kept in rates else "" for kept in EQUAL_CONTENT)])
    return [
        "## The same texts in every mode, at equal counts of tokens",
        "",
        f"{whole.pages} texts, {whole.characters} characters, that fill a tiny page or less; in the larger modes the "
        "same lines stand on more paper, at the same size in pixels. Character error rate in per cent; columns are the "
        "content tokens that RTPrune leaves, the last of each row is the mode's whole view.",
        "",
        *markdown_table(["mode", *map(str, EQUAL_CONTENT)], rows),
        "",
    ]


def plot(found: dict[str, dict[Variant, Tally]], equal: dict[str, list[Tally]], path: Path) -> None:
    """A panel for each mode and numbering: CER against retention, a line a strategy, a star the dynamic one.

    Below, one with the same texts in every mode: CER against the tokens that the decoder reads.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(found) + 1, 2, figsize=(11, 4 * len(found) + 4), squeeze=False, sharey="row", layout="constrained"
    )
    last, empty = axes[-1]
    empty.axis("off")
    for mode, curve in equal.items():
        read = [tally.tokens / tally.pages for tally in curve]
        last.plot(read, [100 * tally.rate for tally in curve], "o-", markersize=4, label=mode)
    last.set(title="the same texts in every mode, RTPrune", xlabel="visual tokens that the decoder reads")
    last.set_ylabel("character error rate, %")
    last.grid(alpha=0.3)
    last.legend(title="right end: the whole view")
    for row, (mode, tallies) in zip(axes, found.items(), strict=False):
        whole = tallies[Variant("none", 1.0, POSITIONS[0])]
        for panel, positions in zip(row, POSITIONS, strict=True):
            for strategy in STRATEGIES:
                points = [
                    (v, t) for v, t in tallies.items() if (v.strategy, v.positions) == (strategy, positions)
                ]
                fixed = sorted((t.retention, t.rate) for v, t in points if v.retention not in (None, 1.0))
                if not fixed:
                    continue
                x, y = zip(*[*fixed, (1.0, whole.rate)], strict=True)
                (line,) = panel.plot(
                    x, [100 * rate for rate in y], STYLES.get(strategy, "o-"), markersize=4, label=strategy
                )
                for variant, tally in points:
                    if variant.retention is None:
                        panel.plot(
                            tally.retention, 100 * tally.rate, "*", markersize=13, color=line.get_color()
                        )
            panel.set(title=f"{mode}, positions {positions}", xlabel="share of content tokens kept")
            panel.invert_xaxis()
            panel.grid(alpha=0.3)
        row[0].set_ylabel("character error rate, %")
        row[0].legend(title="star: dynamic retention")
    figure.suptitle("The small reference model, not DeepSeek-OCR")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Read, count, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", type=Path, default=ROOT / "engines")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["tiny"])
    parser.add_argument("--pages", type=int, default=40, help="of each mode")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--retentions", nargs="+", type=float, default=list(RETENTIONS))
    parser.add_argument("--running", type=int, default=32, help="variants that are decoded together")
    parser.add_argument("--seed", type=int, default=SEED, help="of the pages, and of the random strategy")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    started = time.monotonic()
    reader = Reader(arguments.engines, arguments.running)
    wanted = variants(arguments.strategies, arguments.retentions)
    found: dict[str, dict[Variant, Tally]] = {}
    for mode in arguments.modes:
        tallies = found[mode] = {variant: Tally() for variant in wanted}
        samples = reader.samples(mode, arguments.pages, arguments.seed)
        for number, sample in enumerate(tqdm(samples, mode, total=arguments.pages, unit="page")):
            for variant, text, result in reader.read(sample, wanted, arguments.seed + number):
                tallies[variant].count(sample, text, result)
    equal = equal_tokens(reader, arguments.pages, arguments.seed)
    reader.engine.close()
    reader.vision.close()
    lines = [
        "# Pruning against errors",
        "",
        f"`python -m benchmarks.retention --modes {' '.join(arguments.modes)} --pages {arguments.pages}`, "
        f"{time.strftime('%Y-%m-%d')}, {time.monotonic() - started:.0f} s. Read by the small reference model that "
        "ships here, **not by DeepSeek-OCR**: rendered pages with words that it was not trained on, greedy decoding. "
        "Retention 1.0 is the unpruned page.",
        "",
        "The reference model was trained so that blank tokens have a small norm, and on pages of which a part was "
        "pruned by RTPrune with contiguous positions. DeepSeek-OCR was not: that RTPrune and `norm` lead here, and "
        "that contiguous positions do better than the original ones, is to be read with that in mind.",
        "",
        *(line for mode, tallies in found.items() for line in table(mode, tallies)),
        *equal_table(equal),
        "![Character error rate against retention](retention.png)",
        "",
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "retention.md").write_text("\n".join(lines), encoding="utf-8")
    data = [
        {"mode": mode, **asdict(v), "cer": t.rate, "kept_share": t.retention, "pages": t.pages}
        | {"errors": t.errors, "characters": t.characters}
        for mode, tallies in found.items()
        for v, t in tallies.items()
    ]
    (arguments.output / "retention.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    plot(found, equal, arguments.output / "retention.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
