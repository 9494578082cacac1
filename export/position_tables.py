"""Position tables at the size of one input, computed once at export as the model computes them at every run."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the customary name)


def resize_positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """A position table, float32 (1, from, from, width), at another grid, (1, grid, grid, width).

    Bicubic with antialiasing, as the model does it.
    """
    if table.shape[1] == grid:
        return table
    resized = F.interpolate(
        table.permute(0, 3, 1, 2), size=(grid, grid), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.permute(0, 2, 3, 1)


def one_hot(side: int, head: int) -> torch.Tensor:
    """float32 (1, 1, head + 2 side, side^2): zeros for the head's channels, then each key's row and column."""
    eye = torch.eye(side)
    rows, columns = eye.repeat_interleave(side, 1), eye.repeat(1, side)
    return torch.cat([torch.zeros(head, side * side), rows, columns])[None, None]


def relative_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """A relative position table (length, head) by query and key: float32 (side queries, head, side keys).

    Linear interpolation to 2 side - 1 distances where the table has another number of them.
    """
    resized = F.interpolate(table.float().T[None], size=2 * side - 1, mode="linear")[0].T
    distances = torch.arange(side)[:, None] - torch.arange(side)[None] + side - 1
    return resized[distances].transpose(1, 2)
