"""The lexer: the same lexemes however the text is cut, and nothing held back for long."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from pages import page

from rtprune.decoder.lexemes import Kind, Lexeme, Lexer

texts = st.one_of(
    st.text(max_size=120),
    st.lists(st.sampled_from("a1.,<>|/td .\n_-字é0"), max_size=120).map("".join),
    st.integers(0, 2**32).map(lambda seed: page(random.Random(seed))[:2000]),
)


def lexemes(pieces: list[str]) -> list[Lexeme]:
    lexer = Lexer()
    return [lexeme for piece in [*pieces, " the end of the text ."] for lexeme in lexer.push(piece)]


@given(texts, st.randoms(use_true_random=False))
def test_pieces_make_no_difference(text: str, source: random.Random) -> None:
    cuts = sorted(source.choices(range(len(text) + 1), k=source.randint(0, 40)))
    pieces = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert lexemes(pieces) == lexemes([text])
    assert lexemes(list(text)) == lexemes([text])


@given(texts)
def test_every_visible_character_is_in_one_lexeme_in_order(text: str) -> None:
    found = [each for each in lexemes([text]) if each.start < len(text)]
    starts = [each.start for each in found]
    assert starts == sorted(set(starts))
    assert all(not text[start].isspace() for start in starts)
    assert [each.text[0].casefold()[0] for each in found] == [text[start].casefold()[0] for start in starts]


@given(texts)
def test_only_runs_of_one_symbol_or_blank_are_held_back(text: str) -> None:
    lexer = Lexer()
    for char in text:
        list(lexer.push(char))
        pending = lexer._pending.strip()
        assert len(pending) <= 100 or len(set(pending) - set(" \t\xa0")) == 1


def test_what_is_what() -> None:
    text = "Page 12.50, <td>|</td><|ref|> . . . 1,234.5 中文 under_score ... <b"
    found = lexemes([text])
    assert [(each.text, each.kind.name, each.weight) for each in found][:17] == [
        ("page", "WORD", 4),
        ("12.50", "NUMBER", 4),
        (",", "STRUCTURE", 0.5),
        ("<td>", "STRUCTURE", 1),
        ("|", "STRUCTURE", 0.5),
        ("</td>", "STRUCTURE", 1),
        ("<|ref|>", "STRUCTURE", 1),
        (".", "STRUCTURE", 0.5),
        ("1,234.5", "NUMBER", 5),
        ("中", "WORD", 2),
        ("文", "WORD", 2),
        ("under", "WORD", 5),
        ("_", "STRUCTURE", 0.5),
        ("score", "WORD", 5),
        (".", "STRUCTURE", 0.5),
        ("<", "STRUCTURE", 0.5),
        ("b", "WORD", 1),
    ]
    numbers = [(each.value, each.decimals) for each in found if each.kind is Kind.NUMBER]
    assert numbers == [(1250, 2), (12345, 1)]


def test_open_runs() -> None:
    lexer = Lexer()
    list(lexer.push("Title " + "." * 50))
    assert lexer.open_run() == (6, 50)
    list(lexer.push(" "))
    assert lexer.open_run() == (6, 50)
    lexer = Lexer()
    list(lexer.push("Title" + "\n" * 30))
    assert lexer.open_run() == (5, 30)
