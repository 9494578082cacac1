"""Edit distance against the textbook's table, and the rates made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ocr_client.score import character_error_rate, edit_distance


def textbook(left: str, right: str) -> int:
    table = [[i + j if not i * j else 0 for j in range(len(right) + 1)] for i in range(len(left) + 1)]
    for i, a in enumerate(left, 1):
        for j, b in enumerate(right, 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a != b))
    return table[-1][-1]


words = st.text("abc 漢é\n", max_size=25)


@given(words, words)
def test_edit_distance_is_the_textbooks(left: str, right: str) -> None:
    assert edit_distance(left, right) == textbook(left, right) == edit_distance(right, left)


@given(words, words, words)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_characters_beyond_the_basic_plane_count_once() -> None:
    assert edit_distance("a😀b", "ab") == 1
    assert edit_distance("\ud800", "") == 1


@pytest.mark.parametrize(
    ("found", "truth", "rate"),
    [
        ("abcd", "abcd", 0),
        ("a  b\n c", "a b c", 0),
        ("abxd", "abcd", 0.25),
        ("", "abcd", 1),
        ("ab", "", 1),
        ("", "", 0),
    ],
)
def test_character_error_rate(found: str, truth: str, rate: float) -> None:
    assert character_error_rate(found, truth) == rate
