"""Makes the README's figure of pruning: `python -m benchmarks.figures`, after `make engines`.

Encodes the example page with the reference checkpoint and draws what stays, the token norms and the merge mass into
benchmarks/results/pruning.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from PIL import Image

from rtprune import PruneConfig, TokenLayout, prune, text_density
from rtprune.manifest import Manifest
from rtprune.modes import MODES
from rtprune.preprocess.image import decode
from rtprune.preprocess.views import make_views
from rtprune.pruning.visualize import draw_pruning, heat_colours
from rtprune.settings import Settings
from rtprune.vision.encoder import VisionEncoder

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Encode, prune, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", type=Path, default=ROOT / "engines")
    parser.add_argument("--page", type=Path, default=ROOT / "examples" / "page.png")
    parser.add_argument("--mode", choices=MODES, default="base")
    parser.add_argument("--retention", type=float, help="default: dynamic")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "pruning.png")
    arguments = parser.parse_args()
    settings = Settings(engines=arguments.engines)
    views = make_views(decode(arguments.page.read_bytes(), settings), arguments.mode, settings)
    stage = VisionEncoder.open(Manifest.load(arguments.engines), settings)
    tokens = stage.encode_pages([(views.global_view, views.tiles, views.tile_grid)])[0]
    stage.close()
    if isinstance(tokens, Exception):
        raise tokens
    layout = TokenLayout.of(arguments.mode, views.tile_grid)
    density = text_density(views.global_view, layout.global_grid)
    result = prune(tokens, layout, text_density=density, config=PruneConfig(retention=arguments.retention))
    pictures = draw_pruning(result, tokens, views.global_view, views.tiles)
    map_ = ListedColormap(heat_colours(np.linspace(0, 1, 256)) / 255)
    ranges = (pictures.norm_range, pictures.merge_mass_range)
    scales = (
        (LogNorm(*ranges[0]), Normalize(*ranges[1])) if ranges[0][0] > 0 else (Normalize(*ranges[0]),) * 2
    )
    panels: list[tuple[str, Image.Image, Normalize | None]] = [
        (f"kept: {result.content_count} of {layout.content_count} content tokens", pictures.kept, None),
        ("token norm, which decides", pictures.norms, scales[0]),
        ("merge mass: what kept tokens took over", pictures.merge_mass, scales[1]),
    ]
    ratio = pictures.kept.width / pictures.kept.height
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.05 / ratio + 0.35), layout="constrained")
    for axis, (title, picture, scale) in zip(axes, panels, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("0.8")
        if scale is not None:
            bar = figure.colorbar(ScalarMappable(scale, map_), ax=axis, fraction=0.046 / ratio, pad=0.02)
            marks = [float(scale.inverse(share)) for share in np.linspace(0, 1, 5)]
            bar.set_ticks(marks, labels=[f"{mark:.3g}" for mark in marks])
            bar.minorticks_off()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=110)
    print(
        f"{arguments.output}: text density {result.text_density:.3f}, similarity {result.similarity:.3f}, "
        f"retention {result.retention:.3f}, {layout.length} -> {result.length} tokens"
    )


if __name__ == "__main__":
    main()
