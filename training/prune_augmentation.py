"""Prunes visual tokens during training as the server does, so that the reference model also reads pruned pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rtprune.config import PruneConfig
from rtprune.layout import TokenLayout
from rtprune.pruning.prune import prune
from training.labels import NOWHERE


@dataclass
class PrunedBatch:
    """What is left of a batch's visual tokens, padded on the left to one length."""

    tokens: torch.Tensor  # float32 (B, longest, hidden)
    padding: torch.Tensor  # int64 (B,) how many tokens at the left are padding
    new_positions: torch.Tensor  # int64 (B, V): where each token stands now, padding included, or NOWHERE


def prune_batch(visual: torch.Tensor, layout: TokenLayout, retentions: NDArray[np.float64]) -> PrunedBatch:
    """Prune each page of `visual`, float32 (B, V, hidden), to its share; gradients flow through the kept tokens.

    `retentions` (B,) are shares of content tokens, 0 < r <= 1. What the merge adds to a token counts as a constant.
    Raises InvalidInput as `prune`.
    """
    kept, new_positions = [], torch.full(visual.shape[:2], NOWHERE)
    for page, retention in zip(visual, retentions, strict=True):
        result = prune(
            page.detach().numpy(), layout, text_density=0.0, config=PruneConfig(retention=float(retention))
        )
        positions = torch.from_numpy(np.asarray(result.positions))
        merged = torch.from_numpy(np.asarray(result.tokens, np.float32))
        kept.append((positions, page[positions] + (merged - page[positions]).detach()))
    longest = max(len(positions) for positions, _ in kept)
    padding = torch.tensor([longest - len(positions) for positions, _ in kept])
    rows = []
    for index, (positions, tokens) in enumerate(kept):
        missing = int(padding[index])
        new_positions[index, positions] = torch.arange(missing, longest)
        rows.append(torch.cat([tokens.new_zeros(missing, tokens.shape[1]), tokens]))
    return PrunedBatch(torch.stack(rows), padding, new_positions)
