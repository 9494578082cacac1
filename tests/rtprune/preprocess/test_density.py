"""Text density: the literal definition, patch by patch, and the values that follow from it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtprune import PruneConfig, text_density
from rtprune.errors import InvalidInput


def literal(view: NDArray[Any], grid: tuple[int, int], padding: str, threshold: float = 0.2) -> float:
    """The definition as it reads: each patch convolved on its own, in double precision."""
    luma = (view.astype(np.float64) @ np.array([0.299, 0.587, 0.114])) * 2 / 255 - 1
    rows, cols = grid
    height, width = luma.shape[0] // rows, luma.shape[1] // cols
    edges = 0
    for row in range(rows):
        for col in range(cols):
            patch = luma[row * height : (row + 1) * height, col * width : (col + 1) * width]
            framed = np.pad(patch, 1, mode="constant" if padding == "zero" else "edge")
            views = {
                (dy, dx): framed[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            }
            across = sum((2 - abs(d)) * (views[d, 1] - views[d, -1]) for d in (-1, 0, 1))
            down = sum((2 - abs(d)) * (views[1, d] - views[-1, d]) for d in (-1, 0, 1))
            edges += int((np.hypot(across, down) > threshold).sum())
    return float(edges / luma.size)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["zero", "replicate"]), st.sampled_from([3, 40, 255]))
def test_it_is_the_literal_definition(seed: int, padding: str, contrast: int) -> None:
    rng = np.random.default_rng(seed)
    view = (128 + rng.integers(-contrast // 2, contrast // 2 + 1, (96, 64, 3))).clip(0, 255).astype(np.uint8)
    grid = (3, 2)
    expected = literal(view, grid, padding)
    density = text_density(view, grid, padding=padding)  # type: ignore[arg-type]
    # A colour may lie on the threshold itself; one pixel in a 96 x 64 page is 1.6e-4.
    assert density == pytest.approx(expected, abs=2e-4)
    assert text_density(torch.from_numpy(view), grid, padding=padding) == density  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["zero", "replicate"]), st.sampled_from([3, 40, 255]))
def test_a_grey_page_is_exact(seed: int, padding: str, contrast: int) -> None:
    rng = np.random.default_rng(seed)
    grey = (128 + rng.integers(-contrast // 2, contrast // 2 + 1, (96, 64, 1))).clip(0, 255).astype(np.uint8)
    view = np.repeat(grey, 3, axis=2)
    assert text_density(view, (3, 2), padding=padding) == literal(view, (3, 2), padding)  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["zero", "replicate"]), st.floats(0.02, 3.0))
def test_grey_rows_above_coloured_ones_at_any_threshold(seed: int, padding: str, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    view = np.repeat(rng.integers(0, 256, (96, 48, 1)).astype(np.uint8), 3, axis=2)
    view[50:, 20:, 2] ^= rng.integers(0, 2, (46, 28)).astype(np.uint8)
    density = text_density(view, (3, 3), padding=padding, edge_threshold=threshold)  # type: ignore[arg-type]
    assert density == pytest.approx(literal(view, (3, 3), padding, threshold), abs=4e-4)
    tensor = text_density(torch.from_numpy(view), (3, 3), padding=padding, edge_threshold=threshold)  # type: ignore[arg-type]
    assert density == pytest.approx(tensor, abs=4e-4)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("padding", ["zero", "replicate"])
def test_patches_of_a_few_pixels(side: int, padding: str) -> None:
    grey = np.random.default_rng(side).integers(100, 156, (4 * side, 3 * side, 1)).astype(np.uint8)
    view = np.repeat(grey, 3, axis=2)
    assert text_density(view, (4, 3), padding=padding) == literal(view, (4, 3), padding)  # type: ignore[arg-type]


def test_the_configuration_is_where_threshold_and_padding_come_from() -> None:
    view = np.full((64, 64, 3), 255, np.uint8)
    config = PruneConfig(padding="replicate", edge_threshold=0.3)
    assert text_density(view, (1, 1), config) == 0
    assert text_density(view, (1, 1), config, padding="zero") > 0
    assert text_density(view, (1, 1), PruneConfig(edge_threshold=5.0)) == 0


@pytest.mark.parametrize("layout", ["strided", "mirrored", "read-only", "column-major"])
def test_any_memory_layout_will_do(layout: str) -> None:
    view = np.random.default_rng(3).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    expected = text_density(view, (2, 2))
    if layout == "strided":
        other = np.repeat(view, 2, axis=1)[:, ::2]
    elif layout == "mirrored":
        other = np.ascontiguousarray(view[::-1])[::-1]
    elif layout == "column-major":
        other = np.asfortranarray(view)
    else:
        other = view.copy()
        other.flags.writeable = False
    assert text_density(other, (2, 2)) == expected


def test_a_blank_white_page_counts_its_patches_borders() -> None:
    white = np.full((512, 512, 3), 255, np.uint8)
    assert text_density(white, (8, 8)) == 252 / 4096
    assert text_density(white, (8, 8), padding="replicate") == 0


def test_the_grey_letterbox_is_no_edge() -> None:
    assert text_density(np.full((128, 128, 3), 127, np.uint8), (2, 2)) == 0


def test_the_threshold_counts() -> None:
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    # A slope of 4 levels a pixel has magnitude 8 * 4 * 2 / 255 = 0.251.
    assert text_density(ramp, (1, 1), padding="replicate", edge_threshold=0.25) > 0.9
    assert text_density(ramp, (1, 1), padding="replicate", edge_threshold=0.26) == 0


@pytest.mark.parametrize(
    ("view", "grid"),
    [
        (np.zeros((64, 64), np.uint8), (1, 1)),
        (np.zeros((64, 64, 3), np.float32), (1, 1)),
        (np.zeros((64, 64, 4), np.uint8), (1, 1)),
        (np.zeros((64, 65, 3), np.uint8), (1, 2)),
        (np.zeros((64, 64, 3), np.uint8), (0, 1)),
    ],
)
def test_a_wrong_view_is_refused(view: NDArray[Any], grid: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="view must be|does not divide"):
        text_density(view, grid)


def test_a_wrong_parameter_is_named() -> None:
    view = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="^padding must be"):
        text_density(view, (1, 1), padding="reflect")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^edge_threshold must be"):
        text_density(view, (1, 1), edge_threshold=-1)
    with pytest.raises(ValueError, match="^view must be a NumPy array"):
        text_density(view.tolist(), (1, 1))


@pytest.mark.parametrize("ink", [(0, 0, 0), (20, 20, 60)], ids=["grey", "colour"])
def test_without_opencv_the_extra_that_brings_it_is_named(
    monkeypatch: pytest.MonkeyPatch, ink: tuple[int, int, int]
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    view = np.full((64, 64, 3), ink, np.uint8)
    with pytest.raises(ImportError, match=r"pip install 'rtprune\[preprocess\]'"):
        text_density(view, (1, 1))
    assert text_density(torch.from_numpy(view), (1, 1)) > 0
