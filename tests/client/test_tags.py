"""The tag parser: what it finds, what stays text, and that no cut of the stream changes either."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepseek_ocr_client.tags import MAX_DETECTION, MAX_LABEL, Box, RegionTag, TagParser, parse, parse_boxes

TITLE = "<|ref|>title<|/ref|><|det|>[[10, 20, 300, 40]]<|/det|>"


def regions(text: str) -> list[RegionTag]:
    return [event for event in parse(text) if isinstance(event, RegionTag)]


def joined(events: list[str | RegionTag]) -> list[str | RegionTag]:
    """Events with neighbouring texts made one."""
    result: list[str | RegionTag] = []
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
    assert not tag.clamped


@pytest.mark.parametrize(
    ("written", "box"),
    [
        ("[[-5, 0, 1200, 999]]", Box(0, 0, 999, 999)),
        ("[[300, 40, 10, 20]]", Box(10, 20, 300, 40)),
        ("[[0, 0, 999999999, 1]]", Box(0, 0, 999, 1)),
    ],
)
def test_boxes_out_of_range_are_brought_into_it_and_marked(written: str, box: Box) -> None:
    [tag] = regions(f"<|ref|>x<|/ref|><|det|>{written}<|/det|>")
    assert tag.boxes == (box,)
    assert tag.clamped


@pytest.mark.parametrize(
    "written",
    [
        "",
        "[]",
        "[[]]",
        "[1, 2, 3, 4]",
        "[[1, 2, 3]]",
        "[[1, 2, 3, 4, 5]]",
        "[[1, 2, 3, 4]",
        "[[1, 2, 3, 4],]",
        "[[1, 2, 3, 4]][",
        "[[1 2, 3, 4]]",
        "[[1, 2, 3, 4] [5, 6, 7, 8]]",
        "[[1, 2, 3, --4]]",
        "[[1., 2, 3, 4]]",
        "[[1, 2, 3, 1234567890123]]",
        pytest.param("[[" + "1" * 5000 + ", 2, 3, 4]]", id="a number of 5,000 digits"),
        "[[0x1, 2, 3, 4]]",
        "[[1, 2, 3, 4]] or __import__('os')",
        "__import__('os').system('true')",
        "[[١, 2, 3, 4]]",
    ],
)
def test_what_is_no_box_list_stays_text(written: str) -> None:
    text = f"a<|ref|>x<|/ref|><|det|>{written}<|/det|>b"
    assert parse_boxes(written) is None
    assert "".join(str(event) for event in parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "<|ref|>never closed",
        "<|ref|>x<|/ref|> <|det|>[[1,2,3,4]]<|/det|>",
        "<|ref|>x<|/ref|>text",
        "<|ref|>x<|det|>[[1,2,3,4]]<|/det|>",
        "<|det|>[[1,2,3,4]]<|/det|>",
        "<|ref|>x<|/ref|><|det|>[[1,2,3,4]]",
        "<|ref|>x<|/ref|><|det|>[[1,2<|ref|>,3,4]]<|/det|>",
        "<|/ref|><|/det|><|ref|",
        pytest.param(
            f"<|ref|>{'x' * (MAX_LABEL + 1)}<|/ref|><|det|>[[1,2,3,4]]<|/det|>", id="too long a label"
        ),
        pytest.param(
            f"<|ref|>x<|/ref|><|det|>[[1,2,3,4]{',[1,2,3,4]' * (MAX_DETECTION // 10 + 1)}]<|/det|>",
            id="too many boxes",
        ),
        "<",
        "a < b and <| c |>",
    ],
)
def test_broken_tags_stay_text(text: str) -> None:
    assert joined(list(parse(text))) == [text]


def test_nested_tags_lose_the_outer_one_only() -> None:
    assert joined(list(parse("<|ref|>outer" + TITLE))) == [
        "<|ref|>outer",
        RegionTag("title", (Box(10, 20, 300, 40),), TITLE),
    ]


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
    assert parser.close() == ["<|ref|>cut"]
    assert joined(parser.feed(TITLE) + parser.close()) == [RegionTag("title", (Box(10, 20, 300, 40),), TITLE)]


# What a model might write: whole tags, halves of them, numbers, and anything else.
ALPHABET = [
    "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|", "|>", "<", "|", ">", "/", "ref", "det",
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
            assert event.boxes
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
