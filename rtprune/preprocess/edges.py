"""Counts the edge pixels of patches on a CPU: exact integers where a page is grey, float32 where it has colour."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtprune.config import Padding

# The luma is computed in thousandths of a grey level, with ITU-R BT.601's weights of R, G and B: whole numbers up
# to 255,000, whose gradients stay below 2^24, so float32 holds every one exactly, in any order of summation.
LUMA = (299, 587, 114)
MIDDLE = 127_500.0  # 0 of the luma in [-1, 1], and that many thousandths from 0 to 1

Pixels = NDArray[np.uint8]


def count_edges(view: Pixels, grid: tuple[int, int], edge_threshold: float, padding: Padding) -> int:
    """Pixels of `view`, uint8 (H, W, 3), whose Sobel magnitude exceeds `edge_threshold` (luma in [-1, 1]).

    One row of the `grid`'s patches at a time, so that all that is computed of it stays in the processor's cache.

    Raises:
        ImportError: OpenCV isn't installed.
    """
    rows, height, width = grid[0], view.shape[0] // grid[0], view.shape[1] // grid[1]
    count, grey_rows = 0, 0
    if min(height, width) >= 4 and edge_threshold < GreyBands.LARGEST_THRESHOLD:
        grey = GreyBands(view.shape, grid, edge_threshold, padding)
        while grey_rows < rows and grey.take(view[grey_rows * height : (grey_rows + 1) * height]):
            grey_rows += 1
        count = grey.count()
    if grey_rows < rows:
        colour = ColourBands(view.shape, grid, edge_threshold, padding)
        for row in range(grey_rows, rows):
            count += colour.count(view[row * height : (row + 1) * height])
    return count


def _opencv() -> Any:
    """OpenCV, loaded when a view is first looked at: who only prunes needs none."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "text_density of a NumPy array needs OpenCV; install it with `pip install 'rtprune[preprocess]'`."
        ) from error
    return cv2


class ColourBands:
    """Rows of patches in float32. `shape`: of the view, (H, W, 3); `grid`: rows and columns of its patches."""

    def __init__(
        self, shape: tuple[int, ...], grid: tuple[int, int], edge_threshold: float, padding: Padding
    ) -> None:
        height, cols, width = shape[0] // grid[0], grid[1], shape[1] // grid[1]
        self._threshold, self._padding = edge_threshold * MIDDLE, padding
        self._weights = np.array(LUMA, np.float32)
        self._pixels = np.empty((height, shape[1], 3), np.float32)
        self._luma = np.empty((height, shape[1]), np.float32)
        # Each patch in a frame of one pixel, side by side: one call of each filter serves the row.
        self._framed = np.full((height + 2, cols, width + 2), MIDDLE, np.float32)
        self._flat = self._framed.reshape(height + 2, -1)
        self._across, self._down = np.empty_like(self._flat), np.empty_like(self._flat)
        self._edges = np.empty(self._flat.shape, bool)
        self._inside = self._edges.reshape(self._framed.shape)[1:-1, :, 1:-1]

    def count(self, band: Pixels) -> int:
        """Edge pixels of one row of patches, uint8 (height, W, 3)."""
        cv2 = _opencv()
        framed = self._framed
        np.copyto(self._pixels, band)
        np.matmul(self._pixels, self._weights, out=self._luma)
        inner = framed[1:-1, :, 1:-1]
        inner[...] = self._luma.reshape(inner.shape)
        if self._padding == "replicate":
            framed[0], framed[-1] = framed[1], framed[-2]
            framed[..., 0], framed[..., -1] = framed[..., 1], framed[..., -2]
        cv2.Sobel(self._flat, cv2.CV_32F, 1, 0, dst=self._across, ksize=3)
        cv2.Sobel(self._flat, cv2.CV_32F, 0, 1, dst=self._down, ksize=3)
        cv2.magnitude(self._across, self._down, magnitude=self._across)
        np.greater(self._across, self._threshold, out=self._edges)
        return int(np.count_nonzero(self._inside))


class GreyBands:
    """Rows of patches whose pixels have R = G = B, in integers of a grey level.

    Inside a patch the gradients need no padding, so they are taken over the whole band; the patches' border
    pixels are counted at the end, for all rows together: lying lines with their ends, standing ones without.
    Arguments as `ColourBands`; patches of at least 4 x 4 px and a threshold below `LARGEST_THRESHOLD`.
    """

    LARGEST_THRESHOLD = 1.4  # squares are compared in int16, which saturate at 181^2

    def __init__(
        self, shape: tuple[int, ...], grid: tuple[int, int], edge_threshold: float, padding: Padding
    ) -> None:
        self._grid, self._height, self._width = grid, shape[0] // grid[0], shape[1] // grid[1]
        self._threshold, self._padding = edge_threshold * MIDDLE / 1000, padding
        self._plane = np.empty(shape[:2], np.uint8)
        band = (self._height, shape[1])
        self._green, self._blue = np.empty(band, np.uint8), np.empty(band, np.uint8)
        self._across, self._down = np.empty(band, np.int16), np.empty(band, np.int16)
        self._edges = np.empty(band, bool)
        self._inside = self._edges.reshape(self._height, grid[1], self._width)[1:-1, :, 1:-1]
        self._rows, self._count = 0, 0

    def take(self, band: Pixels) -> bool:
        """Take the next row of patches, uint8 (height, W, 3); False, and nothing taken, if it has a colour."""
        cv2 = _opencv()
        plane = self._plane[self._rows * self._height : (self._rows + 1) * self._height]
        cv2.split(band, [plane, self._green, self._blue])
        if any(cv2.norm(plane, other, cv2.NORM_INF) for other in (self._green, self._blue)):
            return False
        cv2.spatialGradient(plane, self._across, self._down)
        cv2.multiply(self._across, self._across, dst=self._across)
        cv2.multiply(self._down, self._down, dst=self._down)
        cv2.add(self._across, self._down, dst=self._across)
        np.greater(self._across, math.floor(self._threshold**2), out=self._edges)
        self._count += int(np.count_nonzero(self._inside))
        self._rows += 1
        return True

    def count(self) -> int:
        """Edge pixels of all rows that were taken."""
        if not self._rows:
            return 0
        plane, (height, width), cols = self._plane, (self._height, self._width), self._grid[1]
        # Of each patch the first and the last two lines, outer ones first: (2, patches and sides, pixels).
        lying = plane[: self._rows * height].reshape(self._rows, height, cols, width)[:, [0, -1, 1, -2]]
        lying = lying.transpose(1, 0, 2, 3).reshape(2, -1, width)
        at = np.array([0, width - 1, 1, width - 2])[:, None] + np.arange(cols) * width
        standing = np.take(plane[: self._rows * height], at.reshape(-1), axis=1).T.reshape(2, -1, height)
        return self._count + self._border(self._padded(lying)) + self._border(_from_middle(standing))

    def _padded(self, lines: Pixels) -> NDArray[np.int16]:
        """Lines (..., width) with a pixel of padding at each end."""
        padded = np.zeros((*lines.shape[:-1], self._width + 2), np.int16)
        padded[..., 1:-1] = _from_middle(lines)
        if self._padding == "replicate":
            padded[..., 0], padded[..., -1] = padded[..., 1], padded[..., -2]
        return padded

    def _border(self, lines: NDArray[np.int16]) -> int:
        """Edge pixels of patches' outermost lines, but each line's two ends; outer and inner lines (2, n, pixels)."""
        # All lines in a row: what reaches from one line into the next falls on ends, which are not counted.
        outer, inner = lines.reshape(2, -1)
        smooth, step = inner + outer, inner
        smooth += outer
        if self._padding == "replicate":
            smooth += outer
            step = inner - outer
        along = (smooth[2:] - smooth[:-2]).astype(np.float32)
        away = (step[:-2] + step[1:-1] + step[1:-1] + step[2:]).astype(np.float32)
        along *= along
        away *= away
        along += away
        edges = np.zeros(outer.shape, bool)
        edges[1:-1] = along > (2 * self._threshold) ** 2
        return int(np.count_nonzero(edges.reshape(lines.shape[1:])[:, 1:-1]))


def _from_middle(pixels: Pixels) -> NDArray[np.int16]:
    """In half grey levels from the middle grey, which is 0 and so is zero padding."""
    levels = pixels.astype(np.int16)
    levels *= 2
    levels -= 255
    return levels
