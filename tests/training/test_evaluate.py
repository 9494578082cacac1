"""The evaluation's arithmetic, and the shipped checkpoint: small enough, of the stated shapes, and it reads."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from rtprune.modes import MODES
from training.config import checkpoint_config
from training.evaluate import (
    HEADER,
    RECIPE,
    SHIPPED,
    Score,
    evaluate,
    intersection_over_union,
    page_size,
    read_pages,
)
from training.example_pages import pages
from training.model import SHARD, load_checkpoint
from training.synthetic_page import Style, SyntheticPage
from training.synthetic_text import vocabulary
from training.tokenizer import FREE, GROUNDED

pytestmark = pytest.mark.slow("reads whole pages with transformers")

MEGABYTE = 1_000_000
LIMITS = {"tiny": (50, 0.01), "small": (8, 0.02), "base": (6, 0.03)}
"""Pages, and character error rates a little above those that the card states, since few are read here."""
LEAST_IOU = 0.7
Shipped = tuple[UnlimitedOcrForConditionalGeneration, Tokenizer]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 4, 4), (5, 5, 9, 9), 0.0),
    ],
)
def test_intersection_over_union(a: tuple[int, ...], b: tuple[int, ...], expected: float) -> None:
    assert intersection_over_union(a, b) == pytest.approx(expected)
    assert intersection_over_union(b, a) == pytest.approx(expected)


def test_score_counts_errors_over_all_characters() -> None:
    page = SyntheticPage((512, 512), Style(), [["abcd"], ["efgh"]], [[0], [2]])
    score = Score()
    score.add(page, page.text, grounded=False)
    score.add(page, "abcd\n\nefxx", grounded=False)
    assert (score.pages, score.perfect, score.errors, score.characters) == (2, 1, 2, 20)
    assert score.rate == pytest.approx(0.1)


def test_score_of_boxes_counts_a_missing_block_as_zero() -> None:
    page = SyntheticPage((512, 512), Style(), [["abcd"], ["efgh"]], [[0], [2]])
    score = Score()
    score.add(page, page.grounded_text(), grounded=True)
    assert (score.iou, score.errors) == (1.0, 0)
    score.add(page, page.grounded_text().split("\n\n")[0], grounded=True)
    assert score.iou == pytest.approx(0.75)
    assert score.errors == len("\n\nefgh")


@pytest.mark.parametrize("mode", MODES)
def test_pages_have_their_modes_size(mode: str) -> None:
    for seed in range(5):
        width, height = page_size(np.random.default_rng(seed), mode)
        if MODES[mode].tiles:
            assert width % 640 == height % 640 == 0
        else:
            assert max(width, height) == MODES[mode].side


def test_the_recipe_uses_held_out_words() -> None:
    assert RECIPE.held_out
    assert len(vocabulary(True)) > 300


def test_examples_are_the_renderers() -> None:
    directory = SHIPPED.parents[1] / "examples"
    for name, page in pages().items():
        assert (directory / f"{name}.txt").read_text(encoding="utf-8") == page.text + "\n"
        with Image.open(directory / f"{name}.png") as image:
            assert np.array_equal(np.asarray(image.convert("L")), page.draw())


def test_examples_fit_on_their_pages() -> None:
    for page in pages().values():
        (width, height), (cell_w, cell_h), (left, top) = page.size, page.style.cell, page.style.origin
        assert left + max(len(line) for block in page.blocks for line in block) * cell_w <= width
        assert top + (page.rows[-1][-1] + 1) * cell_h <= height
        assert all(after[0] == before[-1] + 2 for before, after in pairwise(page.rows))


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    return load_checkpoint(SHIPPED)


def test_the_shipped_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 12 * MEGABYTE
    assert (SHIPPED / SHARD).exists()


def test_the_shipped_checkpoint_has_the_shapes_of_the_code() -> None:
    config = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))
    vocabulary_size = config["language_config"]["vocab_size"]
    assert config == checkpoint_config(vocabulary_size, config["torch_dtype"])


@pytest.mark.parametrize("mode", LIMITS)
def test_the_shipped_checkpoint_reads_unseen_pages(shipped: Shipped, mode: str) -> None:
    pages, limit = LIMITS[mode]
    assert evaluate(*shipped, mode, pages).rate <= limit


def test_the_shipped_checkpoint_reads_the_example_page(shipped: Shipped) -> None:
    page = pages()["page"]
    assert read_pages(*shipped, [page], "tiny", FREE) == [page.text]
    assert HEADER.sub("", read_pages(*shipped, [page], "tiny", GROUNDED)[0]) == page.text


@pytest.mark.parametrize(("mode", "pages"), [("tiny", 4), ("base", 3), ("gundam", 4)])
def test_the_shipped_checkpoint_finds_the_blocks(shipped: Shipped, mode: str, pages: int) -> None:
    score = evaluate(*shipped, mode, pages, grounded=True)
    assert score.iou >= LEAST_IOU
    assert score.rate <= 0.05
