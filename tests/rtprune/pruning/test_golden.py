"""The golden cases: every kept position equal, embeddings to 1e-4 relative, density and similarity to 1e-5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rtprune import PruneConfig, TokenLayout, prune, text_density

CASES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path: Path, kind: str) -> None:
    case = np.load(path)
    convert = torch.from_numpy if kind == "torch" else np.asarray
    cols, rows = (int(n) for n in case["tile_grid"])
    layout = TokenLayout.of(str(case["mode"]), tile_grid=(cols, rows))
    density = text_density(convert(case["global_view"]), layout.global_grid)
    assert density == pytest.approx(float(case["density"]), abs=1e-5)
    fixed = float(case["fixed_retention"])
    config = PruneConfig(retention=None if fixed < 0 else fixed)
    result = prune(convert(case["tokens"]), layout, text_density=density, config=config)
    assert result.similarity == pytest.approx(float(case["similarity"]), abs=1e-5)
    assert result.retention == pytest.approx(float(case["retention"]), abs=1e-5)
    np.testing.assert_array_equal(np.asarray(result.positions), case["kept_positions"])
    expected = case["pruned_tokens"]
    difference = np.linalg.norm(np.asarray(result.tokens) - expected, axis=1)
    assert (difference <= 1e-4 * np.linalg.norm(expected, axis=1)).all()
    assert result.plan is not None
    np.testing.assert_allclose(np.asarray(result.plan).sum(1), case["plan_rowsum"], rtol=1e-4)


def test_there_are_cases() -> None:
    assert len(CASES) >= 6
