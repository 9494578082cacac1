"""The repetition guard: every loop ends, no page does, and what is kept is the text before the second copy."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtprune.decoder.repetition import RepetitionGuard, TextToken, TextTokenizer
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
    assert (
        read_copies <= LIMITS.repetition_copies + 5 or len(copy) * read_copies <= 6 * LIMITS.repetition_weight
    )


@varieties
@given(seed=seeds)
def test_a_climb_is_cut_where_it_starts(seed: int) -> None:
    source = random.Random(seed)
    before = chapters(source) + "\n"
    loop = loop_climb(source, 1500)
    keep, read_until = read(before + loop)
    assert keep is not None
    assert len(before) - 2 <= keep <= len(before) + len(loop) / 1500 * 2 + 10
    assert read_until - len(before) <= 6 * LIMITS.repetition_weight


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
    ids=["weight", "copies", "climb", "run"],
)
def test_each_limit_ends_a_loop_and_is_a_setting(limit: str, text: str) -> None:
    assert read(text)[0] is not None
    off = {f"repetition_{name}": 10**9 for name in ("weight", "copies", "climb", "run")}
    own = f"repetition_{limit}"
    others_off = LIMITS.model_copy(update={**off, own: getattr(LIMITS, own)})
    assert RepetitionGuard(others_off).push(text) is not None
    assert RepetitionGuard(LIMITS.model_copy(update=off)).push(text) is None


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

    def counted(near: list[bool], period: int) -> int:
        nonlocal looks
        looks += 1
        return start_of_loop(near, period)

    guard._start_of_loop = counted  # type: ignore[method-assign]
    for _ in range(10):
        assert guard.push(page(source)) is None
    assert looks <= 20


texts = st.one_of(
    st.text(max_size=120),
    st.lists(st.sampled_from("a1.,<>|/td .\n_-字é0"), max_size=120).map("".join),
    st.integers(0, 2**32).map(lambda seed: page(random.Random(seed))[:2000]),
)


def tokens(pieces: list[str]) -> list[TextToken]:
    tokenizer = TextTokenizer()
    return [token for piece in [*pieces, " the end of the text ."] for token in tokenizer.push(piece)]


@given(texts, st.randoms(use_true_random=False))
def test_pieces_make_no_difference_to_the_tokens(text: str, source: random.Random) -> None:
    cuts = sorted(source.choices(range(len(text) + 1), k=source.randint(0, 40)))
    pieces = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert tokens(pieces) == tokens([text])
    assert tokens(list(text)) == tokens([text])


@given(texts)
def test_every_visible_character_is_in_one_token_in_order(text: str) -> None:
    found = [each for each in tokens([text]) if each.start < len(text)]
    starts = [each.start for each in found]
    assert starts == sorted(set(starts))
    assert all(not text[start].isspace() for start in starts)
    assert [each.text[0].casefold()[0] for each in found] == [text[start].casefold()[0] for start in starts]


@given(texts)
def test_only_runs_of_one_symbol_or_blank_are_held_back(text: str) -> None:
    tokenizer = TextTokenizer()
    for char in text:
        list(tokenizer.push(char))
        pending = tokenizer._pending.strip()
        assert len(pending) <= 100 or len(set(pending) - set(" \t\xa0")) == 1


def test_what_is_what() -> None:
    text = "Page 12.50, <td>|</td><|ref|> . . . 1,234.5 中文 under_score ... <b"
    found = tokens([text])
    assert [(each.text, each.kind, each.weight) for each in found][:17] == [
        ("page", "word", 4),
        ("12.50", "number", 4),
        (",", "symbol", 0.5),
        ("<td>", "tag", 1),
        ("|", "symbol", 0.5),
        ("</td>", "tag", 1),
        ("<|ref|>", "tag", 1),
        (".", "symbol", 0.5),
        ("1,234.5", "number", 5),
        ("中", "ideograph", 2),
        ("文", "ideograph", 2),
        ("under", "word", 5),
        ("_", "symbol", 0.5),
        ("score", "word", 5),
        (".", "symbol", 0.5),
        ("<", "symbol", 0.5),
        ("b", "word", 1),
    ]
    numbers = [(each.value, each.decimals) for each in found if each.kind == "number"]
    assert numbers == [(1250, 2), (12345, 1)]


def test_open_runs() -> None:
    tokenizer = TextTokenizer()
    list(tokenizer.push("Title " + "." * 50))
    assert tokenizer.open_run() == (6, 50)
    list(tokenizer.push(" "))
    assert tokenizer.open_run() == (6, 50)
    tokenizer = TextTokenizer()
    list(tokenizer.push("Title" + "\n" * 30))
    assert tokenizer.open_run() == (5, 30)
