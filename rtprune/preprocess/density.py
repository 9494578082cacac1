"""Text density rho: the share of a page's pixels that lie on an edge (RTPrune, text-density term)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from array_api_compat import is_numpy_array, is_torch_array

from rtprune.config import Padding, PruneConfig
from rtprune.errors import InvalidInput
from rtprune.preprocess.edges import LUMA, MIDDLE, count_edges


def text_density(
    view: Any,
    grid: tuple[int, int],
    config: PruneConfig | None = None,
    *,
    edge_threshold: float | None = None,
    padding: Padding | None = None,
) -> float:
    """Share of edge pixels of the global view, 0 to 1: rho of RTPrune, with the authors' Sobel filter and patches.

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
        ImportError: `view` is a NumPy array and OpenCV isn't installed; the sentence names the extra that brings it.
    """
    config = config or PruneConfig()
    config = replace(
        config,
        edge_threshold=config.edge_threshold if edge_threshold is None else edge_threshold,
        padding=padding or config.padding,
    )
    _check(view, grid)
    count = count_edges if is_numpy_array(view) else _count_edges_of_tensor
    pixels: int = view.shape[0] * view.shape[1]
    return int(count(view, grid, config.edge_threshold, config.padding)) / pixels


def _count_edges_of_tensor(view: Any, grid: tuple[int, int], edge_threshold: float, padding: Padding) -> Any:
    """`count_edges` on the tensor's own device, whole, as sums of shifted views; nothing is read back."""
    import torch
    from torch.nn.functional import pad

    (rows, cols), (height, width) = grid, (view.shape[0] // grid[0], view.shape[1] // grid[1])
    luma = (
        sum(channel * weight for channel, weight in zip(view.float().unbind(2), LUMA, strict=True)) - MIDDLE
    )
    patches = luma.reshape(rows, height, cols, width).transpose(1, 2).reshape(1, rows * cols, height, width)
    framed = pad(patches, (1, 1, 1, 1), mode="constant" if padding == "zero" else "replicate")
    smooth = framed[:, :, :-2] + 2 * framed[:, :, 1:-1] + framed[:, :, 2:]
    across = smooth[..., 2:] - smooth[..., :-2]
    smooth = framed[..., :-2] + 2 * framed[..., 1:-1] + framed[..., 2:]
    down = smooth[:, :, 2:] - smooth[:, :, :-2]
    return torch.count_nonzero(torch.sqrt(across * across + down * down) > edge_threshold * MIDDLE)


def _check(view: Any, grid: tuple[int, int]) -> None:
    if not (is_numpy_array(view) or is_torch_array(view)):
        raise InvalidInput(f"view must be a NumPy array or a torch tensor; got {type(view).__name__}.")
    shape = tuple(view.shape)
    if len(shape) != 3 or shape[2] != 3 or "uint8" not in str(view.dtype):
        raise InvalidInput(f"view must be uint8 with shape (H, W, 3); got {view.dtype} {shape}.")
    rows, cols = grid
    if rows < 1 or cols < 1 or shape[0] % rows or shape[1] % cols or 0 in shape:
        raise InvalidInput(f"grid {grid} does not divide a view of {shape[1]} x {shape[0]} px.")
