"""Training: targets point at the right tokens, it sees what serving sees, its pruning is the server's, it resumes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from rtprune.layout import TokenLayout
from rtprune.modes import BLOCK
from rtprune.preprocess.views import make_views
from rtprune.settings import Settings
from training import probes
from training.batches import BatchSpec, Reading, batches, cached_batches, feature_cache
from training.config import DECODER, INITIAL_DECODER
from training.curriculum import STAGES, Share, Stage
from training.evaluate import model_inputs
from training.labels import (
    DET,
    DET_END,
    EDGE_ATTENTION_WEIGHT,
    EDGE_WEIGHT,
    END_WEIGHT,
    LINE_WEIGHT,
    NEWLINE,
    NOWHERE,
    TokenGrid,
    answer,
    attended_in_line,
    attention_weights,
    character_labels,
    token_weights,
)
from training.losses import Trainee
from training.model import new_model, save_checkpoint
from training.prune_augmentation import prune_batch
from training.synthetic_page import Recipe, SyntheticPage, random_page
from training.synthetic_text import CHARACTERS
from training.tokenizer import FREE, GROUNDED, build_tokenizer
from training.train import Run, rate_at

pytestmark = pytest.mark.slow("trains for some steps")

TOKENIZER = build_tokenizer()
REF = TOKENIZER.token_to_id("<|ref|>")
WIDE = Recipe(cell_width=(18, 40), height_ratio=(1.95, 2.3), jitter=63, margin=3)


@pytest.fixture(scope="module")
def trainee() -> Trainee:
    return Trainee(new_model(1, decoder=INITIAL_DECODER)).eval()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grounded", [False, True])
def test_the_answer_is_the_page_and_attends_to_where_its_characters_are(seed: int, grounded: bool) -> None:
    page = random_page(np.random.default_rng(seed), (512, 640), WIDE)
    ids, attended = answer(page, TokenGrid(10, 10, (64, 0)), grounded, TOKENIZER)
    assert ids[-1] == 1
    wanted = page.grounded_text() if grounded else page.text
    assert TOKENIZER.decode(ids[:-1], skip_special_tokens=False) == wanted
    assert len(ids) == len(attended)
    cells = iter(
        (row, column)
        for block, rows in zip(page.blocks, page.rows, strict=True)
        for line, row in zip(block, rows, strict=True)
        for column, character in enumerate(line, page.indent)
        for _ in character.encode()
    )
    (cell_w, cell_h), (left, top) = page.style.cell, page.style.origin
    seen = 0
    edges = []
    tagged = False
    for token, look in zip(ids, attended, strict=True):
        if token in (REF, DET_END):
            tagged = token == REF
        if look == NOWHERE or token == NEWLINE:
            continue
        if tagged:
            edges.append(divmod(look, 11))
            continue
        row, column = next(cells)
        token_row, token_column = divmod(look, 11)
        assert 0 <= 64 + left + (column + 0.5) * cell_w - token_column * BLOCK < BLOCK
        assert 0 <= top + (row + 0.5) * cell_h - token_row * BLOCK < BLOCK
        seen += 1
    assert seen == sum(len(line.encode()) for block in page.blocks for line in block)
    assert bool(edges) == grounded
    for row, column in edges:
        assert page_shows_text_in(page, row, column - 1)


def page_shows_text_in(page: SyntheticPage, row: int, column: int) -> bool:
    """Whether the token of the page's own `row` and `column` holds the centre of a character."""
    (cell_w, cell_h), (left, top) = page.style.cell, page.style.origin
    return any(
        (top + (line_row + 0.5) * cell_h) // BLOCK == row
        and (left + (place + 0.5) * cell_w) // BLOCK == column
        for block, rows in zip(page.blocks, page.rows, strict=True)
        for line, line_row in zip(block, rows, strict=True)
        for place in range(page.indent, page.indent + len(line))
    )


@pytest.mark.parametrize("grounded", [False, True])
def test_lines_and_boxes_weigh_more_and_lines_are_kept_to(grounded: bool) -> None:
    page = random_page(np.random.default_rng(5), (512, 640), Recipe(margin=2))
    grid = TokenGrid(8, 10)
    ids, attended = (torch.tensor([part]) for part in answer(page, grid, grounded, TOKENIZER))
    previous = torch.cat([torch.tensor([[3]]), ids[:, :-1]], dim=1)
    weights, lines = token_weights(ids, previous)[0].tolist(), attended_in_line(attended, ids, previous)[0]
    looking = attention_weights(ids)[0].tolist()
    boxed = digits = 0
    for index, token in enumerate(ids[0].tolist()):
        boxed += (token == DET) - (token == DET_END)
        digit = boxed and chr(max(0, token - 3)).isdigit()
        digits += bool(digit)
        assert looking[index] == (EDGE_ATTENTION_WEIGHT if boxed else 1.0)
        if (index and ids[0, index - 1] == NEWLINE) or index == ids.shape[1] - 1:
            assert weights[index] == LINE_WEIGHT
        else:
            assert weights[index] == (END_WEIGHT if token == NEWLINE else EDGE_WEIGHT if digit else 1.0)
        if boxed:
            assert lines[index] == NOWHERE
        elif token == NEWLINE and ids[0, index - 1] not in (NEWLINE, DET_END):
            assert lines[index] == attended[0, index - 1] != NOWHERE
        elif token != NEWLINE:
            assert lines[index] == attended[0, index]
    assert (digits > 0) == grounded
    # Every look keeps to the line that is written: rows never go back, and change where a newline was told.
    kept = [(index, int(look) // 9) for index, look in enumerate(lines) if look != NOWHERE]
    for (before, row), (after, next_row) in itertools.pairwise(kept):
        crossed = bool((previous[0, before + 1 : after + 1] == NEWLINE).any())
        assert next_row == row or (next_row > row and crossed)


def test_character_labels_hold_every_character_of_the_page_once() -> None:
    for seed in range(10):
        page = random_page(np.random.default_rng(seed), (640, 640), WIDE)
        classes = character_labels(page, TokenGrid(10, 10))
        found = sorted(CHARACTERS[c] for c in classes[classes > 0])
        assert found == sorted(c for block in page.blocks for line in block for c in line if c != " ")


@pytest.mark.parametrize(
    ("spec", "mode"),
    [(BatchSpec(512, 1), "tiny"), (BatchSpec(640, 1), "small"), (BatchSpec(1024, 1, tiles=(2, 1)), "gundam")],
)
@pytest.mark.parametrize("grounded", [False, True])
def test_training_sees_what_serving_sees(
    trainee: Trainee, spec: BatchSpec, mode: str, grounded: bool
) -> None:
    recipe = Recipe(jitter=20)
    batch = next(batches(np.random.default_rng(4), spec, recipe, grounded, TOKENIZER, count=1))
    # The generator's first draw is whether the page is padded, so the same page comes from the same state.
    generator = np.random.default_rng(4)
    if not spec.tiles:
        generator.random()
    page = random_page(generator, (spec.grid[0] * BLOCK, spec.grid[1] * BLOCK), recipe)
    views = make_views(page.image(), mode, Settings())
    inputs = model_inputs([views], mode, TOKENIZER, GROUNDED if grounded else FREE)
    prefix = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], batch.readings[0].answers], dim=1)
    labels = ids.clone()
    labels[:, :prefix] = -100
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        served = trainee.model(**inputs).loss
        trained = trainee(batch)["text"]
    torch.testing.assert_close(trained, served, rtol=2e-4, atol=2e-4)


def test_pruning_keeps_all_at_retention_one_and_pages_do_not_mix(trainee: Trainee) -> None:
    batch = next(batches(np.random.default_rng(0), BatchSpec(512, 3), Recipe(), True, TOKENIZER, count=1))

    def losses(reading: Reading, pages: slice = slice(None)) -> dict[str, torch.Tensor]:
        part = dataclasses.replace(
            batch, pixels=batch.pixels[pages], characters=batch.characters[pages], readings=[reading]
        )
        torch.manual_seed(0)
        with torch.no_grad():
            found: dict[str, torch.Tensor] = trainee(part)
            return found

    (whole,) = batch.readings
    expected, kept = losses(whole), losses(dataclasses.replace(whole, retentions=np.ones(3)))
    assert kept.pop("coordinates") == 0 < expected.pop("coordinates")  # asked of whole pages only
    for name in expected:
        torch.testing.assert_close(kept[name], expected[name], msg=name)
    shares = np.array([0.6, 0.8, 1.0])
    together = losses(dataclasses.replace(whole, retentions=shares))
    sums, counts = 0.0, 0
    for i in range(3):
        one = slice(i, i + 1)
        page = Reading(whole.prompt, whole.answers[one], whole.attended[one], shares[one])
        count = int((page.answers != 2).sum())
        sums += float(losses(page, one)["text"]) * count
        counts += count
    assert float(together["text"]) == pytest.approx(sums / counts, rel=1e-4)


def test_a_batch_is_read_with_both_prompts(trainee: Trainee) -> None:
    batch = next(
        batches(
            np.random.default_rng(0),
            BatchSpec(512, 1, frozen=True, prompts=2),
            Recipe(),
            False,
            TOKENIZER,
            count=1,
        )
    )
    free, grounded = (
        TOKENIZER.decode(r.answers[0, :-1].tolist(), skip_special_tokens=False) for r in batch.readings
    )
    assert "<|det|>" in grounded
    assert "<|det|>" not in free
    assert not trainee.visual_tokens(batch).requires_grad


@pytest.mark.parametrize("spec", [BatchSpec(512, 2, padded=0.5), BatchSpec(1024, 1, tiles=(2, 1))])
def test_pages_of_a_cache_are_read_like_drawn_ones(
    trainee: Trainee, spec: BatchSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.feature_cache.MIXED", 0.0)
    pages = feature_cache(np.random.default_rng(3), spec, Recipe(margin=2), trainee.encode)
    pages.extend()
    batch = next(cached_batches(pages, spec, True, TOKENIZER, count=1))
    by_text = {encoded.page.text: encoded for encoded in pages.pages}
    drawn = next(batches(np.random.default_rng(3), spec, Recipe(margin=2), True, TOKENIZER, count=1))
    texts = sorted(by_text, key=len)
    assert len(texts) == spec.batch
    with torch.no_grad():
        tokens = dict(zip(texts, trainee.visual_tokens(drawn), strict=True))
        for answer_ids, one in zip(batch.readings[0].answers, trainee.visual_tokens(batch), strict=True):
            ids = [i for i in answer_ids.tolist() if i not in (1, 2)]
            read = TOKENIZER.decode(ids, skip_special_tokens=False)
            (text,) = (t for t in texts if by_text[t].page.grounded_text() == read)
            torch.testing.assert_close(one, tokens[text], rtol=0.02, atol=0.02)  # kept in float16


def test_rows_move_with_their_text() -> None:
    spec, recipe = BatchSpec(512, 12), Recipe(margin=2)

    def brightness(pixels: torch.Tensor) -> torch.Tensor:
        """Stand for an encoder whose features of a token are its pixels' sums, so that rows can be recognised."""
        blocks = torch.unflatten(torch.unflatten(pixels.float(), 1, (8, 64)), 3, (8, 64))
        return blocks.mean(dim=(2, 4))[:, None]

    pages = feature_cache(np.random.default_rng(0), spec, recipe, brightness)
    pages.extend()
    pages.extend()
    known = {
        (one.lines[row], row, one.page.indent): one.rows[:, row] for one in pages.pages for row in range(8)
    }
    around = {(one.lines[row], row): one.surroundings(row) for one in pages.pages for row in range(8)}
    mixed = pages.sample(40)
    assert {one.page.text for one in mixed} - {one.page.text for one in pages.pages}
    for one in mixed:
        for row in range(8):
            assert torch.equal(one.rows[:, row], known[one.lines[row], row, one.page.indent])
            shown = "".join(CHARACTERS[c] for c in one.page.grid[row])
            assert shown.strip() == one.lines[row]
            if one.lines[row]:
                assert one.surroundings(row) == around[one.lines[row], row]


def test_pages_that_stand_elsewhere_keep_their_rows() -> None:
    """A page that happens to stand on the grid among pages that don't has other rows than they have."""
    spec = BatchSpec(512, 24)
    pages = feature_cache(
        np.random.default_rng(1), spec, Recipe(jitter=1, margin=2), lambda p: torch.zeros(len(p), 1, 8, 8)
    )
    pages.extend()
    assert {one.page.style.origin for one in pages.pages} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {len(one.lines) for one in pages.pages} == {7, 8}
    whole = {one.page.text for one in pages.pages if one.page.style.origin != (0, 0)}
    for one in pages.sample(200):
        assert one.page.style.origin == (0, 0) or one.page.text in whole


def test_pruning_says_where_each_token_went() -> None:
    visual = torch.randn(2, 73, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pruned = prune_batch(visual, TokenLayout((8, 8)), np.array([0.5, 0.9]))
    for page in range(2):
        kept = pruned.new_positions[page] != NOWHERE
        assert pruned.new_positions[page][kept].tolist() == list(
            range(int(pruned.padding[page]), pruned.tokens.shape[1])
        )
        near = pruned.tokens[page][pruned.new_positions[page][kept]] - visual[page][kept]
        assert near.abs().max() < 0.5  # the merge adds a tenth of what was pruned
    torch.autograd.backward(pruned.tokens.sum())
    assert visual.grad is not None
    assert (visual.grad[pruned.new_positions != NOWHERE] == 1).all()
    assert (visual.grad[pruned.new_positions == NOWHERE] == 0).all()


def test_a_run_learns_and_resumes(tmp_path: Path) -> None:
    easy = Recipe(noise=0.0)
    stage = Stage(STAGES[0].name, 6, (2e-3, 2e-3), (Share(1.0, BatchSpec(256, 4), easy),))
    first = Run(tmp_path / "run", 0)
    before = [p.clone() for p in first.trainee.parameters()]
    first.train(stage)
    assert first.done == {stage.name: 6}
    assert any(not torch.equal(a, b) for a, b in zip(before, first.trainee.parameters(), strict=True))
    again = Run(tmp_path / "run", 0)
    assert (again.done, again.pages) == (first.done, 24)
    for (name, a), b in zip(first.trainee.named_parameters(), again.trainee.parameters(), strict=True):
        assert torch.equal(a, b), name
        state = first.optimizer.state.get(a, {})
        assert all(torch.equal(state[key], again.optimizer.state[b][key]) for key in state)


def test_a_run_grows_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "ROUNDS", 1)
    monkeypatch.setattr(probes, "SPECS", (BatchSpec(512, 4), BatchSpec(1024, 2, tiles=(2, 2))))
    pages = (Share(1.0, BatchSpec(256, 4, fresh=0.5), Recipe(margin=2)),)
    stage = Stage("lines", 3, (1e-3, 1e-3), pages, loss_weights=(1.0, 0.0, 1.0, 0.0, 0.0), grows=True)
    first = Run(tmp_path / "run", 0)
    encoder = {n: p.clone() for n, p in first.trainee.model.model.vision_tower.named_parameters()}
    first.train(stage)
    assert len(first.trainee.model.model.language_model.layers) == DECODER["num_hidden_layers"]
    kept = dict(first.trainee.model.model.vision_tower.named_parameters())
    assert all(torch.equal(kept[name], encoder[name]) for name in encoder)
    again = Run(tmp_path / "run", 0)
    assert (again.done, again.trainee.grown) == ({"lines": 3}, True)
    for (name, a), b in zip(first.trainee.named_parameters(), again.trainee.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_that_is_told_to_stop_saves_the_step_under_way(tmp_path: Path) -> None:
    stage = Stage(STAGES[0].name, 3, (2e-3, 2e-3), (Share(1.0, BatchSpec(256, 4), Recipe(noise=0.0)),))
    first = Run(tmp_path, 0)
    first.stop = True  # as after SIGTERM
    with pytest.raises(SystemExit):
        first.train(stage)
    again = Run(tmp_path, 0)
    assert again.done == {stage.name: 1}
    for (name, a), b in zip(first.trainee.named_parameters(), again.trainee.parameters(), strict=True):
        assert torch.equal(a, b), name
    again.train(stage)
    assert Run(tmp_path, 0).done == {stage.name: 3}


@pytest.mark.parametrize("decoder", [INITIAL_DECODER, DECODER], ids=["young", "grown"])
def test_a_run_starts_from_a_checkpoint(tmp_path: Path, decoder: dict[str, int]) -> None:
    save_checkpoint(new_model(9, decoder=decoder), tmp_path / "checkpoint", torch.float32)
    run = Run(tmp_path / "run", 0, tmp_path / "checkpoint")
    expected = dict(new_model(9, decoder=decoder).named_parameters())
    for name, parameter in run.trainee.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_the_same_batch_again_and_again_is_learnt() -> None:
    torch.manual_seed(0)
    trainee = Trainee(new_model(2, decoder=INITIAL_DECODER))
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=2e-3)
    batch = next(batches(np.random.default_rng(0), BatchSpec(256, 4), Recipe(), False, TOKENIZER, count=1))
    losses = []
    for _ in range(16):
        results = trainee(batch)
        (results["text"] + results["characters"] + results["attention"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append([float(results[name].detach()) for name in ("text", "characters", "attention")])
    assert all(last < 0.75 * first for first, last in zip(losses[0], losses[-1], strict=True)), losses


def test_the_rate_warms_up_and_falls() -> None:
    stage = Stage("any", 100, (1e-3, 1e-4), (), warmup=10)
    rates = [rate_at(stage, step) for step in range(100)]
    assert rates[0] < rates[5] < rates[9] == max(rates)
    assert rates[99] == pytest.approx(1e-4, rel=0.01)
