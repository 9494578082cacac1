"""The literal steps that pruning is timed against do what the golden cases say, so the comparison is a fair one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import literal_pruning
from rtprune import TokenLayout

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted(
    path
    for path in (ROOT / "tests" / "rtprune" / "pruning" / "golden").glob("*.npz")
    if "fixed" not in path.stem
)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_literal_steps_reach_the_golden_results(path: Path) -> None:
    case = np.load(path)
    layout = TokenLayout.of(
        str(case["mode"]), tile_grid=(int(case["tile_grid"][0]), int(case["tile_grid"][1]))
    )
    density = literal_pruning.density(torch.from_numpy(case["global_view"]), layout.global_grid)
    assert density == pytest.approx(float(case["density"]), abs=1e-5)
    tokens, positions = literal_pruning.prune(torch.from_numpy(case["tokens"]), layout, density)
    assert positions == case["kept_positions"].tolist()
    np.testing.assert_allclose(tokens.numpy(), case["pruned_tokens"], rtol=1e-4, atol=1e-4)
