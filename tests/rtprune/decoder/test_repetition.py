"""The repetition guard: every loop ends, no page does, and what is kept is the text before the second copy."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import LOOPS, PAGES, chapters, loop_climb, page, prose, similar_rows

from rtprune.decoder.repetition import RepetitionGuard, RepetitionLimits
from rtprune.settings import Settings

LIMITS = RepetitionLimits.of(Settings())
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


@pytest.mark.parametrize("kind", LOOPS)
@varieties
@given(seed=seeds)
def test_loops_end(kind: str, seed: int) -> None:
    source = random.Random(seed)
    before = page(source)
    text = before + LOOPS[kind](source, 1500)
    keep, read_until = read(text, source)
    assert keep is not None
    assert 0 < keep < read_until < len(text)


@pytest.mark.parametrize("kind", EXACT)
@varieties
@given(seed=seeds)
def test_one_copy_of_an_exact_loop_is_kept(kind: str, seed: int) -> None:
    before = chapters(random.Random(seed)) + "\n"
    copy = LOOPS[kind](random.Random(seed + 1), 1)
    keep, read_until = read(before + copy * 1500)
    assert keep is not None
    assert len(before) - 2 <= keep <= len(before) + len(copy)
    read_copies = (read_until - len(before)) / len(copy)
    assert read_copies <= LIMITS.copies + 5 or len(copy) * read_copies <= 6 * LIMITS.weight


@varieties
@given(seed=seeds)
def test_a_climb_is_cut_where_it_starts(seed: int) -> None:
    source = random.Random(seed)
    before = chapters(source) + "\n"
    loop = loop_climb(source, 1500)
    keep, read_until = read(before + loop)
    assert keep is not None
    assert len(before) - 2 <= keep <= len(before) + len(loop) / 1500 * 2 + 10
    assert read_until - len(before) <= 6 * LIMITS.weight


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


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ("weight", "All work and no play makes Jack a dull boy.\n" * 80),
        ("copies", "no " * 400),
        ("climb", "".join(f"{index}, {index + 1}, {index + 2};" for index in range(1, 500))),
        ("run", "." * 500),
    ],
)
def test_each_limit_ends_a_loop_and_is_a_setting(limit: str, text: str) -> None:
    assert read(text)[0] is not None
    higher = {name: 10**9 for name in ("weight", "copies", "climb", "run") if name != limit}
    assert RepetitionGuard(replace(LIMITS, **higher)).push(text) is not None
    assert RepetitionGuard(replace(LIMITS, **higher, **{limit: 10**9})).push(text) is None


def test_the_same_form_up_to_four_times_is_a_page_and_more_is_a_loop() -> None:
    source = random.Random(11)
    form = " ".join(prose(source) for _ in range(40)) + "\n\n"
    assert read(form * 4)[0] is None
    keep, _ = read(form * 12)
    assert keep is not None
    assert abs(keep - len(form)) <= 4


def test_a_long_page_costs_no_second_look() -> None:
    source, looks = random.Random(2), 0
    guard = RepetitionGuard(LIMITS)
    start_of_loop = guard._start_of_loop

    def counted(first: int, period: int) -> int:
        nonlocal looks
        looks += 1
        return start_of_loop(first, period)

    guard._start_of_loop = counted  # type: ignore[method-assign]
    for _ in range(10):
        assert guard.push(page(source)) is None
    assert looks <= 20
