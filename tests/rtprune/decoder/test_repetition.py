"""The repetition guard: every loop ends, no page does, and what is kept is the text before the second copy."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtprune.decoder.repetition import RepetitionGuard
from rtprune.settings import Settings
from tests.rtprune.decoder.pages import LOOPS, PAGES, chapters, loop_climb, page, prose, similar_rows

pytestmark = pytest.mark.slow("reads whole pages and loops, piece by piece")

LIMITS = Settings()
seeds = st.integers(0, 2**32)
# The varieties have no end, so each run reads the same ones: a rare page that fools the guard is no flaky test.
varieties = settings(derandomize=True, max_examples=60)
# The loops of one unit that don't change at all.
EXACT = ("loop_line", "loop_word", "loop_paragraph", "loop_cells", "loop_rows")


def read(text: str, source: random.Random | None = None) -> tuple[int | None, int]:
    """Push a text in small pieces; return what to keep, if it is a loop, and how much was read until then."""
    guard, at = RepetitionGuard(LIMITS), 0
    while at < len(text):
        end = at + (source.randint(1, 12) if source else 4)
        keep = guard.push(text[at:end])
        at = min(end, len(text))
        if keep is not None:
            return keep, at
    return None, at


@pytest.mark.parametrize("kind", PAGES)
@varieties
@given(seed=seeds)
def test_pages_are_never_cut(kind: str, seed: int) -> None:
    source = random.Random(seed)
    assert read(PAGES[kind](source), source)[0] is None


@varieties
@given(seed=seeds)
def test_pages_of_several_kinds_are_never_cut(seed: int) -> None:
    source = random.Random(seed)
    assert read(page(source), source)[0] is None


# Kinds that are cut within 3,500 characters; tags count little, and a list half, so that others take longer.
SOON = ("loop_line", "loop_word", "loop_wandering_boxes", "loop_other_order")


@pytest.mark.parametrize("kind", sorted({*LOOPS} - {"loop_small_changes"}))
@varieties
@given(seed=seeds)
def test_loops_end(kind: str, seed: int) -> None:
    source = random.Random(seed)
    before = page(source)
    text = before + LOOPS[kind](source, 1500)
    keep, read_until = read(text, source)
    assert keep is not None
    assert 0 < keep < read_until < len(text)
    assert read_until - len(before) <= (3_500 if kind in SOON else 14_000)


def test_copies_with_small_changes_end_more_often_than_not() -> None:
    loops = [LOOPS["loop_small_changes"](random.Random(seed), 1500) for seed in range(12)]
    assert sum(read(loop)[0] is not None for loop in loops) > 6


@pytest.mark.parametrize("kind", EXACT)
@varieties
@given(seed=seeds)
def test_one_copy_of_an_exact_loop_is_kept(kind: str, seed: int) -> None:
    before = chapters(random.Random(seed)) + "\n"
    copy = LOOPS[kind](random.Random(seed + 1), 1)
    keep, _ = read(before + copy * 1500)
    assert keep is not None
    assert len(before) - 2 <= keep <= len(before) + len(copy) + 2


@varieties
@given(seed=seeds)
def test_a_climb_is_cut_where_it_starts(seed: int) -> None:
    source = random.Random(seed)
    before = chapters(source) + "\n"
    loop = loop_climb(source, 1500)
    keep, _ = read(before + loop)
    assert keep is not None
    assert len(before) - 2 <= keep <= len(before) + len(loop) / 1500 * 3 + 10


@varieties
@given(seed=seeds)
def test_the_rows_before_a_loop_in_a_table_are_kept(seed: int) -> None:
    source = random.Random(seed)
    rows = similar_rows(source).rstrip().removesuffix("</table>")
    loop = random.Random(seed).choice(("<tr><td></td><td></td></tr>", "<td>0</td>", "| | |\n")) * 1500
    keep, _ = read(rows + loop)
    assert keep is not None
    assert keep >= len(rows) - 40
    assert keep <= len(rows) + 60


@varieties
@given(seed=seeds)
def test_pieces_make_no_difference(seed: int) -> None:
    source = random.Random(seed)
    text = chapters(source) + LOOPS[source.choice(EXACT)](source, 800)
    assert read(text)[0] == read(text, source)[0] == RepetitionGuard(LIMITS).push(text)


@given(st.text(), st.text(max_size=8), st.integers(0, 800))
def test_any_text_can_be_read(before: str, copy: str, copies: int) -> None:
    text = before + copy * copies
    keep, _ = read(text)
    assert keep is None or 0 <= keep <= len(text)


def test_a_line_with_one_new_word_each_is_text_however_long() -> None:
    source = random.Random(5)
    line = prose(source, 12, 12)
    text = "".join(f"{line} {index * 7919 % 10007}\n" for index in range(2000))
    assert read(text)[0] is None


# Shapes that were cut by mistake, or went on for ever, in one place each.

KEPT = {
    "a column that counts": "".join(f"{n}\n" for n in range(1, 401)),
    "tick boxes": "".join(f"[ ] {c}{n}\n" for n in range(1, 61) for c in "ABCD"),
    "telephones": "".join(f"555-01{n:02d} {'kilomenote'[n % 7 :]}{n % 13}\n" for n in range(100)),
    "one number a row": "".join(
        f"<tr><td>Delivered</td><td>warehouse 4</td><td>{n * 37 % 1000:03d}</td></tr>\n" for n in range(150)
    ),
    "thirty labels": "Ms. A. Person\n1 Long Street\n12345 Town by the River\n\n" * 30,
    "an answer sheet": "".join(f"{n}. A B C D E\n" for n in range(1, 201)),
}
CUT = {
    "a counter": "".join(f"{n}. \n" for n in range(1, 2001)),
    "a pair": "granite 3.50\nlantern 86\n" * 300,
    "a line": "The total is 63.50.\n" * 400,
    "tenths": "".join(f"{n / 10:.1f}, " for n in range(1, 2000)),
    "dots": "." * 6000,
    "blanks": " " * 6000,
    "ideographs": "合计金额" * 900,
}


@pytest.mark.parametrize("name", KEPT)
def test_true_lists_are_kept(name: str) -> None:
    assert read("Statement\n\n" + KEPT[name])[0] is None


@pytest.mark.parametrize("name", CUT)
def test_loops_are_cut_within_2500_characters(name: str) -> None:
    before = "Statement\n\nAll parcels arrived.\n\n"
    keep, read_until = read(before + CUT[name])
    assert keep is not None
    assert keep >= len(before) - 2
    assert read_until - len(before) < 2500


def test_the_limits_are_settings() -> None:
    text = "All work and no play makes Jack a dull boy.\n" * 300
    for limit in (500, 2000, 5000):
        _, read_until = read_with(LIMITS.model_copy(update={"repetition_chars": limit}), text)
        assert limit <= read_until <= limit + 120
    source = random.Random(11)
    form = " ".join(prose(source) for _ in range(60)) + "\n\n"
    for copies in (3, 6):
        few = LIMITS.model_copy(update={"repetition_copies": copies})
        assert RepetitionGuard(few).push(form * (copies - 1)) is None
        assert RepetitionGuard(few).push(form * (copies + 1)) is not None


def read_with(limits: Settings, text: str) -> tuple[int | None, int]:
    guard = RepetitionGuard(limits)
    for at in range(0, len(text), 4):
        keep = guard.push(text[at : at + 4])
        if keep is not None:
            return keep, at + 4
    return None, len(text)


def test_the_same_form_up_to_four_times_is_a_page_and_more_is_a_loop() -> None:
    source = random.Random(11)
    form = " ".join(prose(source) for _ in range(40)) + "\n\n"
    assert read(form * 4)[0] is None
    keep, _ = read(form * 12)
    assert keep is not None
    assert abs(keep - len(form)) <= 40


texts = st.one_of(
    st.text(max_size=120),
    st.lists(st.sampled_from("a1.,<>|/td .\n_-字é0"), max_size=120).map("".join),
    st.lists(
        st.sampled_from(["<|det|>", "<|/det|>", "[[1, 2, 3, 4]]", "<|ref|>", "<td>", "<", "12", " "])
    ).map("".join),
    st.integers(0, 2**32).map(lambda seed: page(random.Random(seed))[:2000]),
)


@given(texts, st.randoms(use_true_random=False))
def test_pieces_make_no_difference_to_the_tokens(text: str, source: random.Random) -> None:
    cuts = sorted(source.choices(range(len(text) + 1), k=source.randint(0, 40)))
    pieces = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = []
    for split in (pieces, [text], list(text)):
        guard = RepetitionGuard(LIMITS)
        found.append(
            [token for piece in [*split, " the end of the text ." * 30] for token in guard._tokens(piece)]
        )
    assert found[0] == found[1] == found[2]
    assert "".join(token for _, token, _ in found[0]).startswith(text[:-1])
