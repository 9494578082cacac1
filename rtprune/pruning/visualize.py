"""Draws what pruning does to a page: pruned tokens dimmed, heat maps of token norms and of merge mass.

Usage::

    pictures = draw_pruning(result, tokens, views.global_view, views.tiles)
    pictures.kept.save("kept.png")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtprune.errors import InvalidInput
from rtprune.layout import TokenLayout
from rtprune.modes import TILE_SIDE
from rtprune.pruning.prune import PruneResult

Pixels = NDArray[np.uint8]
Values = NDArray[np.floating[Any]]

# From low to high, lightness rising evenly, so that it also reads in grey and to colour-blind eyes.
HEAT = np.array(
    [
        (13, 8, 60),
        (62, 18, 110),
        (120, 28, 109),
        (176, 48, 88),
        (223, 83, 54),
        (249, 140, 10),
        (250, 210, 70),
    ],
    np.float64,
)
PAPER = 255
_PRUNED_INK = 0.18  # how much of a pruned block's ink is left
_HEAT_SHARE = 0.72  # how much of a heat map is colour; the rest is the page
_GAP = 16  # px between the tiles' picture and the global view's


@dataclass(frozen=True, slots=True)
class PruningPictures:
    """Pictures of one page, RGB; with tiles, the tiles' stretched page stands left of the global view.

    Attributes:
        kept: the page as the decoder gets it, pruned blocks dimmed.
        norms: heat map of the tokens' L2 norms, the importance that decides; logarithmic.
        merge_mass: heat map of how much each kept token took over from pruned ones; pruned blocks are dimmed.
        norm_range, merge_mass_range: the values at the two ends of the colours.
    """

    kept: Image.Image
    norms: Image.Image
    merge_mass: Image.Image
    norm_range: tuple[float, float]
    merge_mass_range: tuple[float, float]


def draw_pruning(
    result: PruneResult, tokens: Any, global_view: Pixels, tiles: Pixels | None = None
) -> PruningPictures:
    """Draw `result` on the views that were encoded.

    Args:
        result: of `prune`.
        tokens: what was pruned, (L, D), NumPy or torch on any device.
        global_view: uint8 (S, S, 3).
        tiles: uint8 (n, 640, 640, 3), row by row; None or n = 0 without tiles.

    Raises:
        InvalidInput: views that don't fit the result's layout, or tokens of another length.
    """
    layout = result.layout
    panels = _panels(layout, global_view, tiles)
    if len(tokens) != layout.length:
        raise InvalidInput(f"tokens must be the {layout.length} that were pruned; got {len(tokens)}.")
    kept = np.zeros(layout.content_count, bool)
    chosen = to_numpy(result.kept_content)
    kept[chosen] = True
    norms = np.linalg.norm(to_numpy(tokens).astype(np.float64)[layout.content_mask], axis=1)
    logarithms = np.log(np.maximum(norms, 1e-12))
    mass = np.zeros(layout.content_count)
    mass[chosen] = to_numpy(result.merge_mass)
    mass_range = (float(mass[kept].min()), float(mass[kept].max()))
    norm_grids, mass_grids, kept_grids = (token_grids(layout, v) for v in (logarithms, mass, kept))
    norm_range = (float(logarithms.min()), float(logarithms.max()))
    return PruningPictures(
        kept=_join([dim(panel, grid) for panel, grid in zip(panels, kept_grids, strict=True)]),
        norms=_join([heat(panel, grid, norm_range) for panel, grid in zip(panels, norm_grids, strict=True)]),
        merge_mass=_join(
            [
                heat(panel, grid, mass_range, shown=stays)
                for panel, grid, stays in zip(panels, mass_grids, kept_grids, strict=True)
            ]
        ),
        norm_range=(float(norms.min()), float(norms.max())),
        merge_mass_range=mass_range,
    )


def token_grids(layout: TokenLayout, values: NDArray[Any]) -> list[NDArray[Any]]:
    """Values of content tokens, (N,) of any type, as they lie on the page: (rows, cols) of tiles, if any, and view."""
    rows, cols = layout.local_grid
    local, whole = values[: rows * cols], values[rows * cols :]
    return [*([local.reshape(rows, cols)] if rows else []), whole.reshape(layout.global_grid)]


def dim(view: Pixels, kept: NDArray[np.bool_]) -> Pixels:
    """The view, uint8 (H, W, 3), with the blocks that are not in `kept`, bool (rows, cols), faded and crossed out."""
    shown = _spread(kept, view.shape)
    faded = PAPER - (PAPER - view.astype(np.float64)) * _PRUNED_INK
    tint = np.array((236, 226, 226)) / PAPER
    picture = np.where(shown, view, faded * tint)
    return np.asarray(np.where(shown | ~_crosses(view.shape, kept.shape), picture, (200, 150, 150)), np.uint8)


def heat(
    view: Pixels, values: Values, scale: tuple[float, float], shown: NDArray[np.bool_] | None = None
) -> Pixels:
    """The view, uint8 (H, W, 3), under a heat map of `values`, (rows, cols), from `scale`'s first to its second number.

    Blocks that are not in `shown`, bool (rows, cols), are drawn as `dim` draws them.
    """
    low, high = scale
    share = (np.asarray(values, np.float64) - low) / (high - low) if high > low else np.zeros(values.shape)
    colours = heat_colours(share)
    rows, cols = values.shape
    blocks = colours.repeat(view.shape[0] // rows, 0).repeat(view.shape[1] // cols, 1)
    picture = np.asarray(np.rint(blocks * _HEAT_SHARE + view * (1 - _HEAT_SHARE)), np.uint8)
    if shown is None:
        return picture
    return np.where(_spread(shown, view.shape), picture, dim(view, shown))


def heat_colours(shares: Values) -> NDArray[np.float64]:
    """RGB, float64 (..., 3), 0 to 255, of numbers (...) from 0 to 1; what lies outside gets the nearest end."""
    at = np.clip(np.nan_to_num(shares), 0, 1) * (len(HEAT) - 1)
    return np.stack([np.interp(at, np.arange(len(HEAT)), HEAT[:, channel]) for channel in range(3)], axis=-1)


def join_tiles(tiles: Pixels, tile_grid: tuple[int, int]) -> Pixels:
    """Tiles, uint8 (n, 640, 640, 3), row by row, as the picture that they were cut from; grid is columns, rows."""
    cols, rows = tile_grid
    grid = tiles.reshape(rows, cols, TILE_SIDE, TILE_SIDE, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * TILE_SIDE, cols * TILE_SIDE, 3)


def to_numpy(values: Any) -> NDArray[Any]:
    """A NumPy array of the same shape: of a torch tensor on any device, float32 where it is floating point."""
    if isinstance(values, np.ndarray):
        return values
    values = values.detach().cpu()
    return np.asarray(values.float() if values.is_floating_point() else values)


def _panels(layout: TokenLayout, global_view: Pixels, tiles: Pixels | None) -> list[Pixels]:
    rows, cols = layout.global_grid
    shape = global_view.shape
    if len(shape) != 3 or shape[2] != 3 or shape[0] % rows or shape[1] % cols or 0 in shape:
        raise InvalidInput(
            f"global_view must have shape (H, W, 3) that a {rows} x {cols} grid divides; got {shape}."
        )
    count = layout.tile_grid[0] * layout.tile_grid[1]
    given = () if tiles is None or not len(tiles) else tiles.shape
    if given != ((count, TILE_SIDE, TILE_SIDE, 3) if count else ()):
        raise InvalidInput(f"tiles must be {count} of {TILE_SIDE} x {TILE_SIDE} px; got shape {given}.")
    local = [] if tiles is None or not count else [join_tiles(tiles, layout.tile_grid)]
    return [*local, global_view]


def _spread(blocks: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A grid of blocks as a mask of pixels, (H, W, 1)."""
    rows, cols = blocks.shape
    return blocks.repeat(shape[0] // rows, 0).repeat(shape[1] // cols, 1)[..., None]


def _crosses(shape: tuple[int, ...], grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask of pixels, (H, W, 1): one diagonal of each block."""
    height, width = shape[0] // grid[0], shape[1] // grid[1]
    down, across = np.indices((height, width))
    line = np.abs(down * width + across * height - height * width) <= max(height, width)
    return np.tile(line, grid)[..., None]


def _join(pictures: list[Pixels]) -> Image.Image:
    """Pictures side by side on white, centred."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + _GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, height), (PAPER,) * 3)
    left = 0
    for picture in pictures:
        sheet.paste(Image.fromarray(picture), (left, (height - picture.shape[0]) // 2))
        left += picture.shape[1] + _GAP
    return sheet
