"""The decoder's first layers count lines and rows exactly, and growing changes nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from training import grow as growing
from training import losses
from training.batches import BatchSpec, batches
from training.config import DECODER, INITIAL_DECODER
from training.counting_layers import (
    CODE,
    FIRST,
    LINE_PERIODS,
    MOST,
    ROW_PERIODS,
    UP,
    Dim,
    Probes,
    set_counting_layers,
)
from training.evaluate import SHIPPED
from training.labels import DET_END, NEWLINE, NOWHERE
from training.losses import PAD_ID, Trainee
from training.model import load_checkpoint, new_model
from training.probes import TokenKind, fit_scale_probe, fit_text_probe
from training.prune_augmentation import prune_batch
from training.synthetic_page import Recipe
from training.tokenizer import build_tokenizer
from training.train import ATTENTION

pytestmark = pytest.mark.slow("runs the reference model over pages of every mode")

TOKENIZER = build_tokenizer()
SPECS = [
    BatchSpec(512, 4),
    BatchSpec(1024, 2, padded=1.0),
    BatchSpec(1280, 2),
    BatchSpec(1024, 1, tiles=(2, 3)),
    BatchSpec(1024, 1, tiles=(3, 2)),
]


@pytest.fixture(scope="module")
def shipped() -> Trainee:
    return Trainee(load_checkpoint(SHIPPED)[0]).eval()


def counted(trainee: Trainee, visual: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """What layer 1 leaves behind, (B, V + L, hidden): visual tokens, then the text `ids`; no start token."""
    language = trainee.model.model.language_model
    start = language.embed_tokens(torch.zeros(len(ids), 1, dtype=torch.long))
    sequence = torch.cat([start, visual, language.embed_tokens(ids)], dim=1)
    caught: list[torch.Tensor] = []
    hook = language.layers[1].register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    with torch.no_grad():
        language(inputs_embeds=sequence, use_cache=False)
    hook.remove()
    return caught[0][:, 1:]


def waves_of(counts: torch.Tensor, periods: tuple[int, ...]) -> torch.Tensor:
    angles = 2 * math.pi * counts[..., None] / torch.tensor(periods)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def likeness(state: torch.Tensor, code: Dim, counts: torch.Tensor) -> torch.Tensor:
    periods = LINE_PERIODS if code == Dim.LINE_CODE else ROW_PERIODS
    return torch.cosine_similarity(state[:, code : code + CODE], waves_of(counts.float(), periods), dim=-1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.side}-{spec.tiles}")
@pytest.mark.parametrize("grounded", [False, True])
@pytest.mark.parametrize("retention", [None, 0.8])
def test_lines_and_rows_are_counted_exactly(
    shipped: Trainee, spec: BatchSpec, grounded: bool, retention: float | None
) -> None:
    generator = np.random.default_rng([3, spec.side])
    batch = next(batches(generator, spec, Recipe(margin=2, held_out=True), grounded, TOKENIZER, count=1))
    columns, rows = spec.grid
    far = rows * (columns + 1)
    with torch.no_grad():
        visual = shipped.visual_tokens(batch)
    written = torch.zeros(visual.shape[:2], dtype=torch.bool)
    shown = batch.characters.flatten(3).any(-1)
    written[:, :far] = torch.nn.functional.pad(shown, (0, 1)).flatten(1)
    line = (shown.any(2).cumsum(1))[:, :, None].expand(-1, -1, columns + 1).flatten(1)  # (B, far)
    reading = batch.readings[0]
    ids = torch.cat([reading.prompt.expand(len(visual), -1), reading.answers], dim=1)
    for page in range(len(visual)):
        tokens, where = visual[page : page + 1], torch.arange(visual.shape[1])
        if retention is not None:
            pruned = prune_batch(tokens, spec.layout, np.array([retention]))
            tokens, where = pruned.tokens, pruned.new_positions[0]
        state = counted(shipped, tokens, ids[page : page + 1])[0]
        seen = [i for i in range(far) if written[page, i] and where[i] != NOWHERE]
        at = where[seen]
        lines = 1 / state[at, Dim.LINES] - 1
        # A line whose tokens were all pruned is not there to be counted.
        present = torch.tensor(sorted({int(line[page, i]) for i in seen}))
        wanted = 1 + torch.searchsorted(present, line[page, seen].contiguous())
        assert (lines - wanted).abs().max() < 0.25
        # Merging adds some of the pruned tokens' marks, by which the waves take their measure.
        assert likeness(state[at], Dim.LINE_CODE, wanted).min() > (0.9 if retention is None else 0.7)
        text = ids[page][ids[page] != PAD_ID]
        before = torch.cat([torch.tensor([-1]), text[:-1]])
        ends = ((text == NEWLINE) & (before != NEWLINE) & (before != DET_END)).cumsum(0)
        state_of_text = state[tokens.shape[1] :][: len(text)]
        assert (1 / state_of_text[:, Dim.LINES] - 1 - ends).abs().max() < 0.25
        assert likeness(state_of_text, Dim.LINE_CODE, ends).min() > 0.9
        assert (1 / state_of_text[:, Dim.BOTH] - 1 - ends - len(present)).abs().max() < 0.25
        last = state_of_text[:, Dim.LAST]
        assert (last[ends >= len(present)] > 0.9).all()
        assert (last[ends < len(present)].abs() < 0.1).all()
        if retention is None:
            row = torch.tensor([i // (columns + 1) for i in seen])
            assert (1 / state[at, Dim.ROWS] - 1 - row).abs().max() < 0.25
            assert likeness(state[at], Dim.ROW_CODE, row).min() > 0.9
            scale = state[at, Dim.ROW_CODE : Dim.ROW_CODE + CODE].norm(dim=1) / (CODE / 2) ** 0.5
            assert (state[at, Dim.ROW_PARITY] / scale - (1 - 2 * (row % 2))).abs().max() < 0.8
            third = torch.tensor([0.0, 0.75**0.5, -(0.75**0.5)])[row % 3]
            assert (state[at, Dim.ROW_THIRD] / scale - third).abs().max() < 0.6
            total = rows + (spec.side // 64 if spec.tiles else 0)
            assert (1 / state_of_text[:, Dim.ROWS] - 1 - total).abs().max() < 0.25


@pytest.mark.parametrize("value", [-0.2, -0.03, -0.01, -0.003, 0.0, 0.003, 0.01, 0.03, 0.2])
def test_a_doubtful_token_counts_for_one_line_at_most(shipped: Trainee, value: float) -> None:
    """Its mark near 0 must not draw the attention that counts, neither its own nor as the token before."""
    spec = BatchSpec(512, 1)
    batch = next(batches(np.random.default_rng(5), spec, Recipe(fill=1.0), False, TOKENIZER, count=1))
    with torch.no_grad():
        visual = shipped.visual_tokens(batch)
    shown = torch.nn.functional.pad(batch.characters.flatten(3).any(-1), (0, 1)).flatten(1)[0]
    line = (batch.characters.flatten(2).any(-1)[0].cumsum(0))[:, None].expand(-1, 9).flatten()
    blank = int((~shown).nonzero()[2])
    for doubtful in (blank, int(shown.nonzero()[2])):
        tokens = visual.clone()
        tokens[0, doubtful, [Dim.HAS_TEXT, Dim.EXCLUDES_NEXT]] = value
        state = counted(shipped, tokens, batch.readings[0].answers)[0]
        others = shown & (torch.arange(len(shown)) != doubtful)
        extra = (1 / state[: len(shown), Dim.LINES] - 1 - line)[others]
        assert extra.min() > -0.25
        assert extra.max() < 1.25


def test_the_shipped_counting_layers_are_those_of_the_code(shipped: Trainee) -> None:
    """All of them: what was fitted is taken from the checkpoint."""
    core = shipped.model.model
    projector, size = core.multi_modal_projector, FIRST
    written = torch.cat([projector.weight[Dim.HAS_TEXT], projector.bias[Dim.HAS_TEXT, None]]).detach()
    count = core.language_model.layers[1]
    steady = count.mlp.experts.gate_up_proj[0].chunk(2)[1][0, :size].detach() / UP
    model = new_model(0)
    set_counting_layers(model, written, steady)
    for ours, theirs in zip(
        model.model.language_model.layers[:2], core.language_model.layers[:2], strict=True
    ):
        wanted = dict(ours.named_parameters())
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(parameter, wanted[name].bfloat16().float(), msg=name)
    ours, theirs = model.model.multi_modal_projector, projector
    assert torch.equal(theirs.weight[size:], ours.weight[size:].bfloat16().float())
    assert torch.equal(theirs.bias[size:], ours.bias[size:].bfloat16().float())


@pytest.mark.parametrize("periods", [LINE_PERIODS, ROW_PERIODS])
def test_the_waves_tell_all_counts_apart(periods: tuple[int, ...]) -> None:
    waves = torch.nn.functional.normalize(waves_of(torch.arange(MOST).float(), periods), dim=1)
    alike = waves @ waves.T
    alike.fill_diagonal_(-1)
    assert alike.max() < 0.8


def test_a_dense_network_is_shared_out_without_change() -> None:
    dense = new_model(4, decoder=INITIAL_DECODER).model.language_model.layers[0].mlp
    sparse = new_model(4).model.language_model.layers[growing.FRONT].mlp
    inputs = torch.zeros(2, 5, DECODER["hidden_size"])
    inputs[:, :, : growing.OLD] = torch.randn(2, 5, growing.OLD, generator=torch.Generator().manual_seed(0))
    inputs[0, :, Dim.VISUAL], inputs[1, :, Dim.TEXT] = 0.03, 0.3
    with torch.no_grad():
        growing._share_out(dense, sparse)
        found, wanted = sparse(inputs), dense(inputs[:, :, : growing.OLD])
    torch.testing.assert_close(found[:, :, : growing.OLD], wanted, rtol=1e-5, atol=1e-5)
    assert not found[:, :, growing.OLD :].any()


def test_growing_changes_nothing_but_what_the_counters_add(monkeypatch: pytest.MonkeyPatch) -> None:
    initial = new_model(5, ATTENTION, INITIAL_DECODER)

    def only_routing(model: Any, _text_probe: torch.Tensor, _scale_probe: torch.Tensor) -> None:
        """Put in what routes the tokens, so small that nothing else can tell, and let the new layers do nothing."""
        core = model.model
        for layer in core.language_model.layers[: growing.FRONT]:
            for name, parameter in layer.named_parameters():
                if "proj" in name:
                    parameter.zero_()
        core.language_model.embed_tokens.weight[:, Dim.TEXT] = 1e-3
        core.multi_modal_projector.bias[Dim.VISUAL] = 1e-3
        core.image_newline[Dim.VISUAL] = core.view_separator[Dim.VISUAL] = 1e-3

    monkeypatch.setattr(growing, "set_counting_layers", only_routing)
    monkeypatch.setattr(losses, "token_weights", lambda answers, _told: torch.ones(answers.shape))
    # An old head that compares lines forgets what it compared.
    monkeypatch.setattr(growing, "LINE_HEADS", ((INITIAL_DECODER["num_attention_heads"],),) * 3)
    grown = growing.grow(initial, Probes(torch.zeros(0), torch.zeros(0)), ATTENTION)
    batch = next(
        batches(np.random.default_rng(0), BatchSpec(512, 2), Recipe(margin=2), True, TOKENIZER, count=1)
    )
    with torch.no_grad():
        before, after = (float(Trainee(model).eval()(batch)["text"]) for model in (initial, grown))
    assert after == pytest.approx(before, rel=1e-3)


def test_tokens_with_text_are_told_from_blank_and_small_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(len(TokenKind), (4000,), generator=generator)
    features = torch.randn(4000, 32, generator=generator)
    features[:, 3] += 8.0 * (kinds != TokenKind.BLANK)  # what tells them apart stands among noise
    features[:, 4] -= 8.0 * (kinds == TokenKind.SMALL)
    weight = fit_text_probe(features[:3000], kinds[:3000])
    told = torch.cat([features, torch.ones(4000, 1)], dim=1)[3000:] @ weight
    right = (told > 0) == (kinds[3000:] == TokenKind.TEXT)
    assert right.float().mean() > 0.98


def test_a_later_scale_is_told_from_the_state() -> None:
    generator = torch.Generator().manual_seed(0)
    later = 50 + 50 * torch.rand(3000, generator=generator)
    states = torch.randn(3000, growing.OLD, generator=generator)
    states[:, 7] = later / 50  # a dimension that tells it, as a share of the state's own scale
    weights = fit_scale_probe(states[:2000], later[:2000])
    own = states.square().mean(1).sqrt()
    told = (states / own[:, None])[2000:] @ weights * (DECODER["hidden_size"] / growing.OLD) ** 0.5
    share = told / (own * later)[2000:]
    assert share.std() / share.mean() < 0.2
