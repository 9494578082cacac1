"""Text density rho: the share of a page's pixels that lie on an edge (RTPrune, text-density term)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from rtprune.config import Padding
from rtprune.errors import InvalidInput

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, R G B
EDGE_THRESHOLD = 0.2


def text_density(
    view: Any,
    grid: tuple[int, int],
    *,
    edge_threshold: float = EDGE_THRESHOLD,
    padding: Padding = "zero",
) -> float:
    """Share of edge pixels of the global view.

    A pixel is an edge where the magnitude of the 3 x 3 Sobel gradient (unnormalised kernels) of the luma in
    [-1, 1] exceeds `edge_threshold`. Each of the `grid`'s patches is convolved on its own.

    Args:
        view: uint8 (H, W, 3), RGB; a NumPy array, or a torch tensor on any device.
        grid: rows and columns of patches; H and W must be multiples of them.
        edge_threshold: tau, in units of the luma.
        padding: "zero" is the authors' and counts the borders of a bright patch as edges: a blank white page
            scores 252/4096. "replicate" gives a blank page 0.

    Raises:
        InvalidInput: `view` isn't a uint8 image that the grid divides.
    """
    shape = tuple(view.shape)
    rows, cols = grid
    if len(shape) != 3 or shape[2] != 3 or "uint8" not in str(view.dtype):
        raise InvalidInput(f"view must be uint8 with shape (H, W, 3); got {view.dtype} {shape}.")
    if rows < 1 or cols < 1 or shape[0] % rows or shape[1] % cols or 0 in shape:
        raise InvalidInput(f"grid {grid} does not divide a view of {shape[1]} x {shape[0]} px.")
    if not isinstance(view, np.ndarray):
        return float(_edge_share_of_tensor(view, grid, edge_threshold, padding))
    patches = _patches(_luma(view), grid, padding)
    across = cv2.Sobel(patches, cv2.CV_32F, 1, 0, ksize=3)
    down = cv2.Sobel(patches, cv2.CV_32F, 0, 1, ksize=3)
    edges = cv2.magnitude(across, down) > edge_threshold
    height, width = shape[0] // rows, shape[1] // cols
    inside = edges.reshape(rows, height + 2, cols, width + 2)[:, 1:-1, :, 1:-1]
    return int(np.count_nonzero(inside)) / (shape[0] * shape[1])


def _luma(view: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Luma in [-1, 1], float32 (H, W)."""
    luma = cv2.cvtColor(view.astype(np.float32), cv2.COLOR_RGB2GRAY)
    return cv2.addWeighted(luma, 2 / 255, luma, 0, -1)


def _patches(luma: np.ndarray[Any, Any], grid: tuple[int, int], padding: Padding) -> np.ndarray[Any, Any]:
    """The patches, each with a border of one pixel, side by side: one Sobel call serves them all.

    float32 (rows * (height + 2), cols * (width + 2)).
    """
    rows, cols = grid
    height, width = luma.shape[0] // rows, luma.shape[1] // cols
    framed = np.zeros((rows, height + 2, cols, width + 2), np.float32)
    framed[:, 1:-1, :, 1:-1] = luma.reshape(rows, height, cols, width)
    if padding == "replicate":
        framed[:, 0], framed[:, -1] = framed[:, 1], framed[:, -2]
        framed[..., 0], framed[..., -1] = framed[..., 1], framed[..., -2]
    return framed.reshape(rows * (height + 2), cols * (width + 2))


def _edge_share_of_tensor(view: Any, grid: tuple[int, int], edge_threshold: float, padding: Padding) -> Any:
    """The same on the tensor's own device, as sums of shifted views; a 0-d tensor, nothing read back."""
    from torch.nn.functional import pad

    (rows, cols), (height, width) = grid, (view.shape[0] // grid[0], view.shape[1] // grid[1])
    # A product per channel, not a matrix product: a GPU may round those to TF32.
    channels = view.float().unbind(2)
    luma = sum(channel * weight for channel, weight in zip(channels, LUMA, strict=True)) * (2 / 255) - 1
    patches = luma.reshape(rows, height, cols, width).transpose(1, 2).reshape(1, rows * cols, height, width)
    framed = pad(patches, (1, 1, 1, 1), mode="constant" if padding == "zero" else "replicate")
    left, middle, right = (framed[..., i : i + width] for i in range(3))
    smooth = left + 2 * middle + right
    slope = right - left
    across = slope[:, :, :-2] + 2 * slope[:, :, 1:-1] + slope[:, :, 2:]
    down = smooth[:, :, 2:] - smooth[:, :, :-2]
    return (across * across + down * down > edge_threshold * edge_threshold).float().mean()
