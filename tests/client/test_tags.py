"""The tag parser: what it finds, what stays text, and that no cut of the stream changes either."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepseek_ocr_client.tags import (
    MAX_DETECTION,
    MAX_LABEL,
    Box,
    Event,
    RegionTag,
    StrayTag,
    TagParser,
    parse,
)

TITLE = "<|ref|>title<|/ref|><|det|>[[10, 20, 300, 40]]<|/det|>"


def regions(text: str) -> list[RegionTag]:
    return [event for event in parse(text) if isinstance(event, RegionTag)]


def joined(events: list[Event]) -> list[Event]:
    """Events with neighbouring texts made one."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, str) and result and isinstance(result[-1], str):
            result[-1] += event
        else:
            result.append(event)
    return result


def test_a_tag_between_texts() -> None:
    assert joined(list(parse(f"before{TITLE}\n# Heading"))) == [
        "before",
        RegionTag("title", (Box(10, 20, 300, 40),), TITLE),
        "\n# Heading",
    ]


def test_several_boxes() -> None:
    [tag] = regions("<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4], [5,6,7,8],\n[9 , 10, 11 , 12 ]]<|/det|>")
    assert tag.boxes == (Box(1, 2, 3, 4), Box(5, 6, 7, 8), Box(9, 10, 11, 12))
    assert tag.dropped == 0


GOOD = Box(10, 20, 300, 400)


@pytest.mark.parametrize(
    ("written", "boxes", "dropped"),
    [
        ("[[1, 2, 3]]", (), 1),
        ("[[10, 20, 300, 400], [1, 2, 3]]", (GOOD,), 1),
        ("[[1, 2], [10, 20, 300, 400], []]", (GOOD,), 1),
        ("[[10.4, 20, 299.6, 400]]", (GOOD,), 0),
        ("[[998.9, 0, 999.4, 999]]", (Box(999, 0, 999, 999),), 0),
        ("[[-5, 20, 300, 400]]", (), 1),
        ("[[10, 20, 300, 400, 500]]", (), 1),
        ("[[300, 400, 10, 20]]", (), 1),
        ("[[10, 400, 300, 20], [10, 20, 300, 400]]", (GOOD,), 1),
        ("[[10, 20, 300, 1000]]", (), 1),
        ("[[0, 0, 999999999, 1]]", (), 1),
        ("[[10, 20, 300, 400]", (GOOD,), 0),
        ("[[10, 20, 300, 400", (GOOD,), 0),
        ("10, 20, 300, 400", (GOOD,), 0),
        ("[[[10, 20, 300, 400]]]", (GOOD,), 0),
        ("[[[10, 20, 300, 400], [[1, 2, 3, 4]]]", (GOOD, Box(1, 2, 3, 4)), 0),
        ("[10, 20, 300, 400]", (GOOD,), 0),
        ("[[10, 20, 300, 'x']]", (), 1),
        ("[[10, 20, 300, 400],]", (GOOD,), 0),
        ("[[10, 20, 300, 400]][", (GOOD,), 0),
        ("[[10, 20, 300, 400] [1, 2, 3, 4]]", (GOOD, Box(1, 2, 3, 4)), 0),
        ("[[10 20, 300, 400]]", (), 1),
        ("[[10, 20, 300, --400]]", (), 1),
        ("[[10., 20, 300, 400]]", (), 1),
        ("[[1e1, 20, 300, 400]]", (), 1),
        ("[[nan, 20, 300, 400]]", (), 1),
        pytest.param("[[" + "1" * 5000 + ", 2, 3, 4]]", (), 1, id="a number of 5,000 digits"),
        ("[[0x1, 2, 3, 4]]", (), 1),
        ("[[\u0661, 2, 3, 4]]", (), 1),
        ("[[10, 20, 300, 400]] or __import__('os')", (GOOD,), 0),
        ("__import__('os').system('true')", (), 0),
        ("", (), 0),
        ("[[]]", (), 0),
    ],
)
def test_good_boxes_are_kept_and_bad_ones_counted(written: str, boxes: tuple[Box, ...], dropped: int) -> None:
    tag = f"<|ref|>x<|/ref|><|det|>{written}<|/det|>"
    assert joined(list(parse(f"a{tag}\nb"))) == ["a", RegionTag("x", boxes, tag, dropped), "\nb"]


@pytest.mark.parametrize(
    ("text", "words", "labels"),
    [
        ("<|ref|>never closed", "never closed", {}),
        ("<|ref|>x<|/ref|> <|det|>[[1,2,3,4]]<|/det|>", "", {"x": 1}),
        ("<|ref|>x<|/ref|>text", "text", {"x": 0}),
        ("<|ref|>x<|/ref|> \n text", " \n text", {"x": 0}),
        ("<|ref|>x<|det|>[[1,2,3,4]]<|/det|>text", "text", {"x": 1}),
        ("<|det|>[[1,2,3,4]]<|/det|>text", "text", {"": 1}),
        ("<|ref|>x<|/ref|><|det|>[[1,2,3,4]]", "", {"x": 1}),
        ("<|ref|>x<|/ref|><|det|>[[1,2,3,4", "", {"x": 1}),
        ("<|ref|>x<|/ref|><|det|>[[1,2,3,4]]\nIn 2019 it rained.", "\nIn 2019 it rained.", {"x": 1}),
        ("<|ref|>x<|/ref|><|det|>[[1,2,3,4]]\n2019, 2020\n", "\n2019, 2020\n", {"x": 1}),
        ("<|ref|>x<|/ref|><|det|>\n2019, 2020\n", "\n2019, 2020\n", {"x": 0}),
        ("<|ref|>x<|/ref|><|det|>[[1,2,3,4]]\n" + "word " * 99 + "<|/det|>", "\n" + "word " * 99, {"x": 1}),
        ("<|ref|>x<|/ref|><|det|>[[1,2<|ref|>y<|/ref|><|det|>[[5,6,7,8]]<|/det|>z", "z", {"x": 0, "y": 1}),
        ("<|ref|>outer" + TITLE + "\n# T", "outer\n# T", {"title": 1}),
        ("a<|/ref|>b<|/det|>c<|grounding|>d", "abcd", {}),
        ("<|ref|>x<|/det|>y", "xy", {}),
        ("<|ref|", "<|ref|", {}),
        ("a < b and <| c |>", "a < b and <| c |>", {}),
        pytest.param(f"<|ref|>{'x' * (MAX_LABEL + 1)}<|/ref|>", "x" * (MAX_LABEL + 1), {}, id="long label"),
    ],
)
def test_what_is_wrong_with_a_tag_costs_no_word(text: str, words: str, labels: dict[str, int]) -> None:
    events = list(parse(text))
    assert "".join(event for event in events if isinstance(event, str)) == words
    found = {event.label: len(event.boxes) for event in events if isinstance(event, RegionTag)}
    assert found == labels


def test_a_list_without_an_end_is_not_waited_for_for_ever() -> None:
    parser = TagParser()
    assert parser.feed("<|det|>[[1,2,3,4]]\n") == []
    events = [event for _ in range(100) for event in parser.feed("some text ")]
    assert isinstance(events[0], RegionTag)
    assert "".join(event for event in events if isinstance(event, str)).endswith("some text " * 70)
    boxes = f"[[1,2,3,4]{',[1,2,3,4]' * (MAX_DETECTION // 10 + 1)}]"
    assert parser.feed(f"<|det|>{boxes}")[0] != ""


def test_a_tag_comes_as_soon_as_it_is_whole_and_text_at_once() -> None:
    parser = TagParser()
    assert parser.feed("hello <") == ["hello "]
    assert parser.feed("b") == ["<b"]
    assert parser.feed("<|ref|>title<|/ref|><|det|>[[10, 20, 300, 40]]<|/det") == []
    assert parser.feed("|>") == [RegionTag("title", (Box(10, 20, 300, 40),), TITLE)]
    assert parser.close() == []


def test_a_parser_can_be_used_again_after_its_end() -> None:
    parser = TagParser()
    assert parser.feed("<|ref|>cut") == []
    assert parser.close() == [StrayTag("<|ref|>"), "cut"]
    assert joined(parser.feed(TITLE) + parser.close()) == [RegionTag("title", (Box(10, 20, 300, 40),), TITLE)]


# What a model might write: whole tags, halves of them, numbers, and anything else.
ALPHABET = [
    "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|", "|>", "<", "|", ">", "/", "ref", "det",
    "[[", "]]", "[", "]", ",", ", ", "-", ".", "1", "42", "999", "1000", " ", "\n", "title", "image",
    TITLE, "<td>", "é", "漢", "\u2028", "\x00",
]  # fmt: skip
outputs = st.lists(st.one_of(st.sampled_from(ALPHABET), st.text(max_size=3)), max_size=40).map("".join)


@given(outputs)
@example(TITLE * 3)
def test_no_character_is_lost(text: str) -> None:
    events = list(parse(text))
    assert "".join(event if isinstance(event, str) else event.raw for event in events) == text
    for event in events:
        if isinstance(event, RegionTag):
            assert all(0 <= x1 <= x2 <= 999 and 0 <= y1 <= y2 <= 999 for x1, y1, x2, y2 in event.boxes)


@given(outputs, st.lists(st.integers(0, 200), max_size=30))
def test_no_cut_changes_what_is_found(text: str, cuts: list[int]) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts})
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    parser = TagParser()
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.close()
    assert joined(events) == joined(list(parse(text)))


@given(outputs)
def test_single_characters_find_the_same(text: str) -> None:
    parser = TagParser()
    events = [event for character in text for event in parser.feed(character)] + parser.close()
    assert joined(events) == joined(list(parse(text)))


# What a long hostile text begins with, and what it repeats; short, because they name the tests.
UNITS = ["<|ref|>", "<", "<|ref|>x<|/ref|><|det|>[[", "x", TITLE, "<|ref|>x<|/ref|>", " ", "<|ref|>x<|/ref"]
HOSTILE = [*(("", unit) for unit in UNITS), ("<|ref|>x<|/ref|><|det|>", "[[1,")]


# A parser that copies or scans the rest at every tag needs 10^12 steps for these and runs into the time-out.
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("start", "unit"), HOSTILE)
def test_a_long_hostile_text_is_read_in_one_pass(start: str, unit: str) -> None:
    text = start + unit * (4_000_000 // len(unit))
    events = list(parse(text))
    assert "".join(event if isinstance(event, str) else event.raw for event in events) == text


@pytest.mark.parametrize(("start", "unit"), HOSTILE)
def test_what_is_held_back_is_bounded(start: str, unit: str) -> None:
    text = start + unit * (100_000 // len(unit))
    parser = TagParser()
    fed = given_out = 0
    for at in range(0, len(text), 5):
        events = parser.feed(text[at : at + 5])
        fed += len(text[at : at + 5])
        given_out += sum(len(event if isinstance(event, str) else event.raw) for event in events)
        assert fed - given_out <= MAX_LABEL + MAX_DETECTION + 50
