"""Text density rho: the share of a page's pixels that lie on an edge (RTPrune, text-density term)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from rtprune.config import Padding, PruneConfig
from rtprune.errors import InvalidInput

LUMA = (299, 587, 114)  # ITU-R BT.601 weights of R, G and B in thousandths


def text_density(
    view: Any,
    grid: tuple[int, int],
    config: PruneConfig | None = None,
    *,
    edge_threshold: float | None = None,
    padding: Padding | None = None,
) -> float:
    """Share of edge pixels of the global view.

    A pixel is an edge where the magnitude of the 3 x 3 Sobel gradient (unnormalised kernels) of the luma in
    [-1, 1] exceeds `edge_threshold`. Each of the `grid`'s patches is convolved on its own.

    Args:
        view: uint8 (H, W, 3), RGB; a NumPy array, or a torch tensor on any device.
        grid: rows and columns of patches; H and W must be multiples of them.
        config: where `edge_threshold` and `padding` come from; None = the paper's.
        edge_threshold: tau, in units of the luma, instead of the configuration's.
        padding: "zero" is the authors' and counts the borders of a bright patch as edges: a blank white page
            scores 252/4096. "replicate" gives a blank page 0. Instead of the configuration's.

    Raises:
        InvalidInput: `view` isn't a uint8 image that the grid divides, or a parameter is out of range.
    """
    config = config or PruneConfig()
    config = replace(
        config,
        edge_threshold=config.edge_threshold if edge_threshold is None else edge_threshold,
        padding=padding or config.padding,
    )
    _check(view, grid)
    rows, height = grid[0], view.shape[0] // grid[0]
    # One row of patches at a time stays in a CPU's cache; a GPU would rather have it all.
    step = 1 if str(device(view)) == "cpu" else rows
    bands = (view[row * height : (row + step) * height] for row in range(0, rows, step))
    edges = sum(_count_edges(band, (step, grid[1]), config) for band in bands)
    pixels: int = view.shape[0] * view.shape[1]
    return int(edges) / pixels


def _count_edges(band: Any, grid: tuple[int, int], config: PruneConfig) -> Any:
    """Edge pixels of some rows of patches; nothing is read back from the device.

    The luma is computed in thousandths of a grey level, 0 to 255,000, where the middle of [-1, 1] is 127,500:
    sums of eight of them are whole numbers below 2^24, so float32 holds every gradient exactly, in any order of
    summation, even where a GPU rounds the factors of products to TF32.
    """
    xp = array_namespace(band)
    place = {"dtype": xp.float32, "device": device(band)}
    (rows, cols), (height, width) = grid, (band.shape[0] // grid[0], band.shape[1] // grid[1])
    luma = xp.astype(band, xp.float32) @ xp.asarray(LUMA, **place)
    framed = xp.full((rows, height + 2, cols, width + 2), 127_500.0, **place)
    framed[:, 1:-1, :, 1:-1] = xp.reshape(luma, (rows, height, cols, width))
    if config.padding == "replicate":
        framed[:, 0], framed[:, -1] = framed[:, 1], framed[:, -2]
        framed[..., 0], framed[..., -1] = framed[..., 1], framed[..., -2]
    magnitude = _squared_magnitude_by_opencv(framed) if is_numpy_array(framed) else _squared_magnitude(framed)
    edges = magnitude > (config.edge_threshold * 127_500.0) ** 2
    return xp.count_nonzero(edges[:, 1:-1, :, 1:-1])


def _squared_magnitude(framed: Any) -> Any:
    """Squared Sobel magnitude of framed patches, (rows, h + 2, cols, w + 2); the frames hold nothing of use."""
    magnitude = framed * 0
    smooth = framed[:, :-2] + 2 * framed[:, 1:-1] + framed[:, 2:]
    magnitude[:, 1:-1, :, 1:-1] = (smooth[..., 2:] - smooth[..., :-2]) ** 2
    smooth = framed[..., :-2] + 2 * framed[..., 1:-1] + framed[..., 2:]
    magnitude[:, 1:-1, :, 1:-1] += (smooth[:, 2:] - smooth[:, :-2]) ** 2
    return magnitude


def _squared_magnitude_by_opencv(framed: Any) -> Any:
    """The same over all patches side by side, as one image."""
    import cv2

    flat = framed.reshape(framed.shape[0] * framed.shape[1], -1)
    across = cv2.Sobel(flat, cv2.CV_32F, 1, 0, ksize=3)
    down = cv2.Sobel(flat, cv2.CV_32F, 0, 1, ksize=3)
    across *= across
    down *= down
    across += down
    return across.reshape(framed.shape)


def _check(view: Any, grid: tuple[int, int]) -> None:
    if not (is_numpy_array(view) or is_torch_array(view)):
        raise InvalidInput(f"view must be a NumPy array or a torch tensor; got {type(view).__name__}.")
    shape = tuple(view.shape)
    if len(shape) != 3 or shape[2] != 3 or "uint8" not in str(view.dtype):
        raise InvalidInput(f"view must be uint8 with shape (H, W, 3); got {view.dtype} {shape}.")
    rows, cols = grid
    if rows < 1 or cols < 1 or shape[0] % rows or shape[1] % cols or 0 in shape:
        raise InvalidInput(f"grid {grid} does not divide a view of {shape[1]} x {shape[0]} px.")
