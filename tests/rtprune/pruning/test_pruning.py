"""The properties of pruning, whatever the tokens are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtprune import STRATEGIES, PruneConfig, TokenLayout, prune, prune_batch
from rtprune.errors import InvalidInput

LAYOUTS = [TokenLayout.of("tiny"), TokenLayout.of("small"), TokenLayout.of("gundam", tile_grid=(1, 2))]
layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 2**32 - 1)
retentions = st.one_of(st.none(), st.floats(0.001, 1.0))


def page(layout: TokenLayout, seed: int, width: int = 24, spread: float = 1.0) -> NDArray[Any]:
    """Tokens as a page has them: a common part and differences; newlines and separator alike.

    No two norms are closer than a thousandth, so that no choice hangs on the last bit.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(layout.length, width)) + spread * rng.normal(size=width)
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    tokens *= rng.permutation(np.linspace(0.5, 4.0, layout.length))[:, None]
    tokens[layout.newline_mask] = rng.normal(size=width)
    return tokens.astype(np.float32)


def content(layout: TokenLayout, vectors: NDArray[Any]) -> NDArray[Any]:
    tokens = np.ones((layout.length, vectors.shape[1]), np.float32)
    tokens[layout.content_mask] = vectors
    return tokens


@given(layouts, seeds, retentions, st.floats(0, 1), st.sampled_from(STRATEGIES))
def test_what_every_strategy_keeps(
    layout: TokenLayout, seed: int, retention: float | None, density: float, strategy: Any
) -> None:
    tokens = page(layout, seed)
    before = tokens.copy()
    result = prune(
        tokens,
        layout,
        text_density=density,
        config=PruneConfig(retention=retention, strategy=strategy, seed=seed),
    )
    np.testing.assert_array_equal(tokens, before)
    positions = result.positions
    assert (np.diff(positions) > 0).all()
    assert len(positions) == len(result.tokens)
    assert result.tokens.dtype == tokens.dtype
    assert positions[-1] == layout.separator
    newline = layout.newline_mask[positions]
    assert (
        strategy == "none"
        or len(result.kept_content) == layout.content_count
        or not (newline[1:] & newline[:-1]).any()
    )
    fixed = ~layout.content_mask[positions]
    np.testing.assert_array_equal(result.tokens[fixed], tokens[positions[fixed]])
    count = layout.content_count
    expected = count if strategy == "none" else min(count, max(1, int(count * result.retention)))
    assert layout.content_mask[positions].sum() == len(result.kept_content) == expected
    np.testing.assert_array_equal(
        np.flatnonzero(layout.content_mask)[result.kept_content], positions[layout.content_mask[positions]]
    )
    if strategy != "rtprune":
        np.testing.assert_array_equal(result.tokens, tokens[positions])


@given(layouts, seeds, st.floats(0.001, 0.999))
def test_the_norm_decides_and_every_row_keeps_one_newline(
    layout: TokenLayout, seed: int, retention: float
) -> None:
    tokens = page(layout, seed)
    result = prune(tokens, layout, text_density=0.5, config=PruneConfig(retention=retention))
    norms = np.linalg.norm(tokens[layout.content_mask].astype(np.float64), axis=1)
    gone = np.setdiff1d(np.arange(layout.content_count), result.kept_content)
    if len(gone):
        assert norms[gone].max() <= norms[result.kept_content].min() * (1 + 1e-6)
    # A newline stays if and only if it is first, or content or nothing but dropped tokens' newline stands before.
    kept, expected, last_was_newline = set(result.positions.tolist()), [], False
    for position in range(layout.length):
        if layout.newline_mask[position]:
            if not last_was_newline:
                expected.append(position)
            last_was_newline = True
        elif position in kept:
            expected.append(position)
            last_was_newline = False
    assert expected == result.positions.tolist()


def test_ties_go_to_the_lower_index() -> None:
    layout = TokenLayout.of("tiny")
    vectors = np.eye(64, dtype=np.float32)
    result = prune(content(layout, vectors), layout, text_density=0, config=PruneConfig(retention=0.5))
    assert result.kept_content.tolist() == list(range(32))
    tensor = prune(
        torch.from_numpy(content(layout, vectors)), layout, text_density=0, config=PruneConfig(retention=0.5)
    )
    assert tensor.kept_content.tolist() == list(range(32))


@given(layouts, seeds)
def test_retention_one_changes_nothing(layout: TokenLayout, seed: int) -> None:
    tokens = page(layout, seed)
    result = prune(tokens, layout, text_density=0.3, config=PruneConfig(retention=1.0))
    np.testing.assert_array_equal(result.tokens, tokens)
    assert result.positions.tolist() == list(range(layout.length))
    assert result.plan is None


@given(seeds, st.floats(0, 1))
def test_orthogonal_tokens_need_all_of_them(seed: int, density: float) -> None:
    layout = TokenLayout.of("tiny")
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(64, 64)))[0]
    result = prune(content(layout, basis.astype(np.float32)), layout, text_density=density)
    assert result.retention == 1.0
    assert len(result.kept_content) == 64


@given(st.floats(0, 1))
def test_identical_tokens_need_the_density(density: float) -> None:
    layout = TokenLayout.of("small")
    vectors = np.broadcast_to(np.random.default_rng(7).normal(size=48), (100, 48)).astype(np.float32)
    result = prune(content(layout, vectors), layout, text_density=density)
    assert result.retention == pytest.approx(density, abs=1e-6)


@given(layouts, seeds, st.floats(1e-3, 1e3))
def test_scale_changes_neither_choice_nor_plan(layout: TokenLayout, seed: int, scale: float) -> None:
    tokens = page(layout, seed)
    config = PruneConfig(retention=0.7)
    one = prune(tokens, layout, text_density=0.2, config=config)
    other = prune(tokens * np.float32(scale), layout, text_density=0.2, config=config)
    np.testing.assert_array_equal(one.positions, other.positions)
    assert one.similarity == pytest.approx(other.similarity, rel=1e-5)
    np.testing.assert_allclose(one.plan, other.plan, rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("dtype", "exponent"), [(np.float32, -100), (np.float32, 120), (np.float64, -300), (np.float64, 1000)]
)
def test_no_norm_overflows_or_vanishes(kind: str, dtype: Any, exponent: int) -> None:
    layout = TokenLayout.of("tiny")
    tokens = page(layout, 4, spread=3.0).astype(dtype)
    convert = torch.from_numpy if kind == "torch" else np.asarray
    one = prune(convert(tokens), layout, text_density=0.2)
    other = prune(convert(tokens * dtype(2.0**exponent)), layout, text_density=0.2)
    assert one.similarity == other.similarity
    np.testing.assert_array_equal(np.asarray(one.positions), np.asarray(other.positions))
    np.testing.assert_array_equal(np.asarray(one.tokens) * dtype(2.0**exponent), np.asarray(other.tokens))


def test_an_all_zero_page_keeps_all_its_tokens() -> None:
    layout = TokenLayout.of("tiny")
    result = prune(np.zeros((layout.length, 8), np.float32), layout, text_density=0.0)
    assert (result.similarity, result.retention, result.length) == (0.0, 1.0, layout.length)


@given(seeds)
def test_permuting_the_content_permutes_the_result(seed: int) -> None:
    layout = TokenLayout.of("tiny")
    tokens = page(layout, seed)
    order = np.random.default_rng(seed).permutation(64)
    shuffled = tokens.copy()
    shuffled[layout.content_mask] = tokens[layout.content_mask][order]
    config = PruneConfig(retention=0.6)
    one = prune(tokens, layout, text_density=0.2, config=config)
    other = prune(shuffled, layout, text_density=0.2, config=config)
    assert sorted(order[other.kept_content].tolist()) == one.kept_content.tolist()
    merged_one = dict(zip(one.kept_content, one.tokens[layout.content_mask[one.positions]], strict=True))
    for index, token in zip(
        order[other.kept_content], other.tokens[layout.content_mask[other.positions]], strict=True
    ):
        np.testing.assert_allclose(token, merged_one[index], rtol=1e-4, atol=1e-5)


@given(layouts, seeds, st.floats(0.01, 0.99))
def test_alpha_zero_is_selection_alone(layout: TokenLayout, seed: int, retention: float) -> None:
    tokens = page(layout, seed)
    result = prune(tokens, layout, text_density=0.2, config=PruneConfig(retention=retention, alpha=0.0))
    np.testing.assert_array_equal(result.tokens, tokens[result.positions])


@given(layouts, seeds, retentions)
def test_the_merge_adds_what_the_plan_brings(layout: TokenLayout, seed: int, retention: float | None) -> None:
    tokens = page(layout, seed)
    result = prune(tokens, layout, text_density=0.1, config=PruneConfig(retention=retention))
    if result.plan is None:
        return
    vectors = tokens[layout.content_mask].astype(np.float64)
    gone = np.setdiff1d(np.arange(layout.content_count), result.kept_content)
    expected = vectors[result.kept_content] + 0.1 * result.plan @ vectors[gone]
    merged = result.tokens[layout.content_mask[result.positions]]
    np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("retention", "kept"), [(0.0001, 1), (0.99, 63), (0.7, 44), (1.0, 64)])
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "none"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_one_kept_and_one_pruned_work(retention: float, kept: int, strategy: Any, kind: str) -> None:
    layout = TokenLayout.of("tiny")
    tokens = torch.from_numpy(page(layout, 3)) if kind == "torch" else page(layout, 3)
    config = PruneConfig(retention=retention, strategy=strategy)
    result = prune(tokens, layout, text_density=0.2, config=config)
    assert len(result.kept_content) == result.content_count == kept
    assert len(result.tokens) == len(result.positions) == result.length
    assert np.isfinite(np.asarray(result.tokens)).all()
    if strategy == "rtprune" and kept < 64:
        assert tuple(result.plan.shape) == (kept, 64 - kept)  # type: ignore[union-attr]


def test_rows_that_lose_every_token_lose_their_newline_but_the_first() -> None:
    layout = TokenLayout.of("tiny")
    vectors = np.eye(64, dtype=np.float32)
    vectors[[9, 60]] *= 2  # one token in the second row, one in the last
    result = prune(content(layout, vectors), layout, text_density=0, config=PruneConfig(retention=2 / 64))
    first_newline, second_row, last_row = 8, 9, 63
    assert result.positions.tolist() == [first_newline, second_row + 1, second_row + 8, last_row + 4, 71, 72]


@given(layouts, seeds)
def test_every_truncation_of_the_fixed_retention(layout: TokenLayout, seed: int) -> None:
    tokens = page(layout, seed, width=4)
    count = layout.content_count
    for hundredths in (1, 29, 57, 58, 60, 70, 75, 99):
        result = prune(tokens, layout, text_density=0, config=PruneConfig(retention=hundredths / 100))
        assert result.content_count == max(1, int(count * (hundredths / 100)))


@given(seeds, st.floats(0, 1), st.floats(0, 5))
def test_the_dynamic_retention_is_the_formula(seed: int, density: float, spread: float) -> None:
    layout = TokenLayout.of("tiny")
    tokens = page(layout, seed, spread=spread)
    vectors = tokens[layout.content_mask].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    similarity = (np.square(cosines).sum() - 64) / (64 * 63)
    result = prune(tokens, layout, text_density=density)
    assert result.similarity == pytest.approx(similarity, rel=1e-5)
    assert result.retention == pytest.approx(1 - similarity * (1 - density), abs=1e-6)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("likeness", [0.5, 1.0, 2.0, 8.0])
def test_the_largest_page_s_count_is_right_at_its_edges(likeness: float, convert: Any) -> None:
    # phi2 is a mean over 1.3 million pairs here: summed in float32 it is off by up to 7e-5, a tenth of a token.
    layout = TokenLayout.of("gundam", tile_grid=(3, 3))
    source = np.random.default_rng(3)
    common = source.normal(size=64) * likeness
    tokens = (common + source.normal(size=(layout.length, 64))).astype(np.float32)
    vectors = tokens[layout.content_mask].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    count = layout.content_count
    similarity = (np.square(vectors @ vectors.T).sum() - count) / (count * (count - 1))
    for kept in range(count - 8, count, 3) if similarity < 0.1 else range(count // 2, count, 97):
        for nearby, expected in ((kept + 1e-4, kept), (kept - 1e-4, kept - 1)):
            density = 1 - (1 - nearby / count) / similarity
            if 0 <= density <= 1:
                result = prune(convert(tokens), layout, text_density=density)
                assert result.content_count == expected


def test_the_same_input_gives_the_same_bytes() -> None:
    layout = LAYOUTS[2]
    tokens = page(layout, 8)
    for strategy in STRATEGIES:
        config = PruneConfig(strategy=strategy, retention=0.6)
        one, two = (prune(tokens.copy(), layout, text_density=0.2, config=config) for _ in range(2))
        assert one.tokens.tobytes() == two.tokens.tobytes()
        assert one.positions.tobytes() == two.positions.tobytes()


def test_the_merge_mass_is_what_the_kept_tokens_took_over() -> None:
    layout = TokenLayout.of("tiny")
    tokens = page(layout, 8)
    for value in (tokens, torch.from_numpy(tokens)):
        merged = prune(value, layout, text_density=0.2, config=PruneConfig(retention=0.5))
        assert merged.plan is not None
        np.testing.assert_allclose(np.asarray(merged.merge_mass), np.asarray(merged.plan).sum(1))
        alone = prune(value, layout, text_density=0.2, config=PruneConfig(retention=0.5, strategy="norm"))
        np.testing.assert_array_equal(np.asarray(alone.merge_mass), np.zeros(32))


def test_a_retention_sent_as_float32_keeps_what_it_says() -> None:
    layout = TokenLayout.of("small")
    config = PruneConfig(retention=float(np.float32(0.7)))
    assert len(prune(page(layout, 1), layout, text_density=0, config=config).kept_content) == 70


@given(layouts, seeds, st.sampled_from(STRATEGIES), retentions)
def test_torch_gives_what_numpy_gives(
    layout: TokenLayout, seed: int, strategy: Any, retention: float | None
) -> None:
    tokens = page(layout, seed)
    config = PruneConfig(strategy=strategy, retention=retention, seed=1)
    array = prune(tokens, layout, text_density=0.25, config=config)
    if retention is None:  # how many stay must not hang on the last bit of the similarity
        assume(1e-3 < layout.content_count * array.retention % 1 < 1 - 1e-3)
    tensor = prune(torch.from_numpy(tokens), layout, text_density=0.25, config=config)
    assert isinstance(tensor.tokens, torch.Tensor)
    assert tensor.similarity == pytest.approx(array.similarity, rel=1e-4, abs=1e-6)
    if strategy != "divprune":  # its distances tie to the last bit
        np.testing.assert_array_equal(tensor.positions.numpy(), array.positions)
        np.testing.assert_allclose(tensor.tokens.numpy(), array.tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_callers_dtype_comes_back(dtype: Any) -> None:
    layout = TokenLayout.of("tiny")
    result = prune(page(layout, 5).astype(dtype), layout, text_density=0.2, config=PruneConfig(retention=0.5))
    assert result.tokens.dtype == dtype


def test_bfloat16_tensors_come_back() -> None:
    layout = TokenLayout.of("tiny")
    tokens = torch.from_numpy(page(layout, 5)).bfloat16()
    result = prune(tokens, layout, text_density=0.2, config=PruneConfig(retention=0.5))
    assert result.tokens.dtype == torch.bfloat16


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_a_batch_gives_what_each_page_gives_alone(convert: Any) -> None:
    tokens = [convert(page(layout, seed, width=16 + seed)) for seed, layout in enumerate(LAYOUTS)]
    densities = [0.1, 0.2, 0.3]
    together = prune_batch(tokens, LAYOUTS, text_densities=densities)
    for one, layout, density, result in zip(tokens, LAYOUTS, densities, together, strict=True):
        alone = prune(one, layout, text_density=density)
        np.testing.assert_array_equal(np.asarray(alone.positions), np.asarray(result.positions))
        np.testing.assert_array_equal(np.asarray(alone.tokens), np.asarray(result.tokens))


def test_a_batch_may_be_empty_but_not_of_two_kinds() -> None:
    layout = TokenLayout.of("tiny")
    assert prune_batch([], [], text_densities=[]) == []
    with pytest.raises(InvalidInput, match="of one kind"):
        prune_batch([page(layout, 1), torch.from_numpy(page(layout, 2))], [layout] * 2, text_densities=[0, 0])


def test_zero_tokens_do_not_divide_by_zero() -> None:
    layout = TokenLayout.of("tiny")
    tokens = page(layout, 2)
    tokens[:30] = 0
    result = prune(tokens, layout, text_density=0.5, config=PruneConfig(retention=0.3))
    assert np.isfinite(result.tokens).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 8, 72])
def test_what_is_not_finite_is_refused(bad: float, where: int) -> None:
    layout = TokenLayout.of("tiny")
    tokens = page(layout, 1)
    tokens[where, 3] = bad
    for value in (tokens, torch.from_numpy(tokens)):
        with pytest.raises(ValueError, match="tokens must be finite"):
            prune(value, layout, text_density=0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retention", 0.0),
        ("retention", -1.0),
        ("retention", 2.0),
        ("retention", float("nan")),
        ("retention", 1e-9),
        ("retention", "0.5"),
        ("retention", True),
        ("alpha", None),
        ("seed", 0.5),
        ("epsilon", 0.0),
        ("epsilon", float("inf")),
        ("dustbin", 2.0),
        ("alpha", -0.1),
        ("alpha", float("nan")),
        ("iterations", 0),
        ("iterations", 1.5),
        ("tolerance", -1e-9),
        ("edge_threshold", -1.0),
        ("padding", "reflect"),
        ("strategy", "best"),
        ("seed", -1),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        PruneConfig(**{field: value})


def test_wrong_inputs_are_named() -> None:
    layout = TokenLayout.of("tiny")
    tokens = page(layout, 0)
    for density in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="text_density must be"):
            prune(tokens, layout, text_density=density)
    with pytest.raises(ValueError, match=r"tokens must have shape \(73, D\)"):
        prune(tokens[:-1], layout, text_density=0.1)
    with pytest.raises(ValueError, match="tokens must be floating point"):
        prune(tokens.astype(np.int32), layout, text_density=0.1)
    with pytest.raises(ValueError, match="tokens must be a NumPy array"):
        prune(tokens.tolist(), layout, text_density=0.1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="as many"):
        prune_batch([tokens], [layout, layout], text_densities=[0.1])
