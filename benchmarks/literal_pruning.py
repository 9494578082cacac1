"""RTPrune's steps as they read, in PyTorch: what the library is measured against and must agree with.

A Sobel call and a read-back per patch, the similarity of all pairs, 100 iterations in the log domain, sequence
assembly token by token. Not used by the library.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from rtprune import TokenLayout

ACROSS = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
SOBEL = torch.stack([ACROSS, ACROSS.T])[:, None]
LUMA = torch.tensor([0.299, 0.587, 0.114])


def edge_share(patch: torch.Tensor, threshold: float = 0.2) -> float:
    """Share of a patch's pixels on an edge, 0 to 1; `patch` float32 (H, W, 3) in [-1, 1]."""
    luma = (patch * LUMA).sum(2)
    across, down = functional.conv2d(luma[None, None], SOBEL, padding=1)[0]
    return (torch.sqrt(across**2 + down**2) > threshold).float().mean().item()


def density(view: torch.Tensor, grid: tuple[int, int]) -> float:
    """rho, the mean share of edge pixels of the patches, 0 to 1; `view` uint8 (H, W, 3), `grid` rows and columns."""
    normalised = (view.float() / 255 - 0.5) / 0.5
    height, width = view.shape[0] // grid[0], view.shape[1] // grid[1]
    patches = (
        normalised[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(grid[0])
        for column in range(grid[1])
    )
    shares = [edge_share(patch) for patch in patches]
    return sum(shares) / len(shares)


def kept_count(content: torch.Tensor, text_density: float) -> int:
    """int(N * (1 - phi2 * (1 - rho))), from 1 to N; `content` float32 (N, D), `text_density` rho."""
    count = len(content)
    unit = functional.normalize(content, dim=-1)
    squared = (unit @ unit.T) ** 2
    squared.fill_diagonal_(0)
    similarity = (squared.sum() / (count * (count - 1))).item()
    return max(1, min(count, int(count * (1 - similarity * (1 - text_density)))))


def merge(kept: torch.Tensor, gone: torch.Tensor, iterations: int = 100) -> torch.Tensor:
    """Kept tokens, float32 (M, D), with what optimal transport brings them of the others, float32 (p, D)."""
    m, p = len(kept), len(gone)
    scores = functional.normalize(kept, dim=-1) @ functional.normalize(gone, dim=-1).T
    full = torch.full((m + 1, p + 1), 0.2)
    full[:m, :p] = scores
    log_a = torch.log(torch.tensor([1.0] * m + [float(p)]))
    log_b = torch.log(torch.tensor([1.0] * p + [float(m)]))
    u, v = torch.zeros(m + 1), torch.zeros(p + 1)
    for _ in range(iterations):
        u = log_a - torch.logsumexp(full + v[None], dim=1)
        v = log_b - torch.logsumexp(full + u[:, None], dim=0)
    plan = torch.exp(full + u[:, None] + v[None])[:m, :p]
    return kept + 0.1 * plan @ gone


def prune(tokens: torch.Tensor, layout: TokenLayout, text_density: float) -> tuple[torch.Tensor, list[int]]:
    """The tokens that are left, (kept, D), and their positions, ascending; `tokens` float32 (L, D)."""
    content_at = torch.from_numpy(layout.content_mask.copy()).nonzero()[:, 0]
    content = tokens[content_at]
    count = kept_count(content, text_density)
    order = torch.argsort(content.norm(dim=-1), descending=True, stable=True)
    chosen, gone = order[:count].sort().values, order[count:].sort().values
    merged = merge(content[chosen], content[gone]) if len(gone) else content
    place = {int(content_at[index]): row for row, index in enumerate(chosen.tolist())}
    left, positions, after_newline = [], [], False
    for position in range(layout.length):
        is_newline = bool(layout.newline_mask[position])
        if position in place:
            left.append(merged[place[position]])
        elif layout.content_mask[position] or (is_newline and after_newline):
            continue
        else:
            left.append(tokens[position])
        positions.append(position)
        after_newline = is_newline
    return torch.stack(left), positions
