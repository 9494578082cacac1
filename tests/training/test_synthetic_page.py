"""The renderer: its truth is what stands on the page, and a seed gives the same page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.synthetic_page import Recipe, Style, SyntheticPage, atlas, random_page
from training.synthetic_text import CHARACTERS, random_words, vocabulary, wrap

WIDE = Recipe(cell_width=(20, 40), height_ratio=(1.95, 2.3), jitter=63, margin=3, shades=0.5)


def test_same_seed_same_page() -> None:
    first, second = (random_page(np.random.default_rng(7), (512, 512), WIDE) for _ in range(2))
    assert first.text == second.text
    assert np.array_equal(first.draw(), second.draw())
    assert random_page(np.random.default_rng(8), (512, 512), WIDE).text != first.text


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), width=st.sampled_from([448, 512, 700]), height=st.sampled_from([448, 640])
)
def test_ink_is_exactly_in_the_cells_of_the_text(seed: int, width: int, height: int) -> None:
    page = random_page(np.random.default_rng(seed), (width, height), WIDE)
    drawn = page.draw()
    assert drawn.shape == (height, width)
    (cell_w, cell_h), (left, top) = page.style.cell, page.style.origin
    inked = np.zeros(drawn.shape, bool)
    for block, rows in zip(page.blocks, page.rows, strict=True):
        for line, row in zip(block, rows, strict=True):
            for column, character in enumerate(line, page.indent):
                y, x = top + row * cell_h, left + column * cell_w
                cell = drawn[y : y + cell_h, x : x + cell_w]
                assert cell.shape == (cell_h, cell_w)
                assert (cell != page.style.paper).any() == (character != " ")
                inked[y : y + cell_h, x : x + cell_w] = True
    assert (drawn[~inked] == page.style.paper).all()


def test_boxes_enclose_their_blocks() -> None:
    page = SyntheticPage((512, 512), Style((32, 64)), [["ab", "cde"], ["f"]], [[0, 1], [3]], indent=2)
    assert page.text == "ab\ncde\n\nf"
    assert page.boxes() == [(125, 0, 312, 250), (125, 375, 187, 500)]
    assert page.grounded_text().startswith(
        "<|ref|>text<|/ref|><|det|>[[125, 0, 312, 250]]<|/det|>\nab\ncde\n\n"
    )


def test_blocks_are_as_short_as_the_recipe_says() -> None:
    generator = np.random.default_rng(0)
    short = [random_page(generator, (640, 1280), Recipe(block_lines=2, short=1.0)) for _ in range(20)]
    assert {len(block) for page in short for block in page.blocks} == {1, 2}
    long = [random_page(generator, (640, 1280), Recipe(block_lines=2, short=0.0)) for _ in range(20)]
    assert max(len(block) for page in long for block in page.blocks) > 8


def test_every_character_has_its_own_glyph() -> None:
    glyphs = atlas(32, 64)
    assert not glyphs[0].any()
    assert len(np.unique(glyphs.reshape(len(CHARACTERS), -1), axis=0)) == len(CHARACTERS)
    assert all(glyph.any() for glyph in glyphs[1:])


def test_glyphs_stand_on_one_baseline() -> None:
    glyphs = atlas(32, 64)
    bottoms = {c: int(np.flatnonzero(glyphs[CHARACTERS.index(c)].max(1) > 128)[-1]) for c in "HEx1"}
    assert max(bottoms.values()) - min(bottoms.values()) <= 1


def test_held_out_words_are_not_trained_on() -> None:
    train, held_out = set(vocabulary(False)), set(vocabulary(True))
    assert not train & held_out
    assert len(train) > 3000
    assert len(held_out) > 300


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_words_use_only_characters_that_can_be_drawn(noise: float) -> None:
    words = random_words(np.random.default_rng(3), 2000, False, noise)
    assert set("".join(words)) <= set(CHARACTERS)


@given(st.lists(st.text("abcé", min_size=1, max_size=30), max_size=30), st.integers(1, 20))
def test_wrap_loses_nothing(words: list[str], width: int) -> None:
    lines = wrap(words, width, 10**6)
    assert all(0 < len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(words)
