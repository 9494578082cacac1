"""Markdown: tags go, figures are linked, every word stays, streamed or whole."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepseek_ocr_client.markdown import MarkdownStream, labels_are_text, segments, to_markdown
from deepseek_ocr_client.tags import Box, RegionTag, parse
from tests.client.test_tags import outputs


def tag(label: str, boxes: str = "[[1, 2, 3, 4]]") -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{boxes}<|/det|>"


PAGE = (
    f"{tag('title')}\n# A title\n\n{tag('text')}\nFirst paragraph.\n\n{tag('image', '[[5, 6, 70, 80]]')}\n"
    f"{tag('image_caption')}\n<center>Figure 1</center>\n\n{tag('table')}\n"
    "<table><tr><td>1</td><td></td></tr></table>\n\n\n\n"
    f"{tag('list')}\n  - indented\n"
)


def test_a_page() -> None:
    markdown, figures = to_markdown(PAGE)
    assert markdown == (
        "# A title\n\nFirst paragraph.\n\n![image](figure-1.jpg)\n\n<center>Figure 1</center>\n\n"
        "<table><tr><td>1</td><td></td></tr></table>\n\n  - indented"
    )
    assert figures == [Box(5, 6, 70, 80)]


def test_figures_can_be_named_or_left_out() -> None:
    text = tag("image", "[[1, 1, 2, 2], [3, 3, 4, 4]]") + "\nafter"
    named, figures = to_markdown(text, lambda number: f"images/{number}.jpg")
    assert named == "![image](images/1.jpg)\n\n![image](images/2.jpg)\n\nafter"
    assert figures == [Box(1, 1, 2, 2), Box(3, 3, 4, 4)]
    assert to_markdown(text, None) == ("after", [])


def test_blank_lines_of_the_text_itself_stay() -> None:
    assert to_markdown("a\n\n\n\n\nb  \n c")[0] == "a\n\n\n\n\nb  \n c"


def test_labels_that_are_the_text_are_kept() -> None:
    lines = f"{tag('Total: 42 EUR')}\n{tag('Thank you')}\n"
    assert to_markdown(lines)[0] == "Total: 42 EUR\n\nThank you"
    # A category's name without text says nothing; with the prompt that puts text into labels it does.
    assert to_markdown(tag("title"))[0] == ""
    assert to_markdown(tag("title"), text_labels=True)[0] == "title"
    assert to_markdown(f"{tag('new_kind')}\ntext of its own")[0] == "text of its own"


@pytest.mark.parametrize(
    ("prompt", "text_labels"),
    [
        ("<image>\n<|grounding|>OCR this image.", True),
        ("<image>\nLocate <|ref|>the total<|/ref|> in the image.", True),
        ("<image>\n<|grounding|>Convert the document to markdown.", False),
        (None, False),
    ],
)
def test_which_prompts_put_text_into_labels(prompt: str | None, text_labels: bool) -> None:
    assert labels_are_text(prompt) is text_labels


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        (r"\(a \coloneqq b\) and \(c \eqqcolon d\)", r"\(a := b\) and \(c =: d\)"),
        (r"x\coloneqq", "x:="),
        (r"\coloneqq\eqqcolon\\coloneqq", r":==:\:="),
        (r"\coloneq b \colon \eqq", r"\coloneq b \colon \eqq"),
        (rf"a \colo{tag('text')}neqq", "a \\colo\nneqq"),
    ],
)
def test_commands_that_few_renderers_know_are_written_out(text: str, markdown: str) -> None:
    assert to_markdown(text)[0] == markdown
    stream = MarkdownStream()
    assert "".join(stream.feed(character) for character in text) + stream.close() == markdown


@given(outputs)
@example("<|<|/det|>ref|>")
def test_no_tag_is_left_whatever_the_model_writes(text: str) -> None:
    markdown, _ = to_markdown(text)
    assert not any(
        mark in markdown for mark in ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")
    )


def test_two_regions_never_run_into_one_word() -> None:
    assert to_markdown(f"one{tag('text')}two")[0] == "one\ntwo"


def test_segments_hold_the_text_up_to_the_next_tag() -> None:
    assert [(part.tag.label, part.text) for part in segments("lost" + PAGE)] == [
        ("title", "# A title"),
        ("text", "First paragraph."),
        ("image", ""),
        ("image_caption", "<center>Figure 1</center>"),
        ("table", "<table><tr><td>1</td><td></td></tr></table>"),
        ("list", "- indented"),
    ]


pages = st.lists(
    st.one_of(
        st.sampled_from([tag("title"), tag("image"), tag("Total 7"), tag("text"), "\n", "\n\n", " ", "word"]),
        st.text(max_size=4),
    ),
    max_size=30,
).map("".join)


@given(st.one_of(pages, outputs))
def test_every_visible_character_outside_tags_comes_through_in_order(text: str) -> None:
    markdown, _ = to_markdown(text, None)
    kept = iter("".join(markdown.split()))
    outside = "".join(event for event in parse(text) if isinstance(event, str))
    assert all(character in kept for character in "".join(outside.split()))


@given(st.one_of(pages, outputs))
def test_with_text_labels_every_label_comes_through(text: str) -> None:
    markdown, _ = to_markdown(text, text_labels=True)
    kept = iter("".join(markdown.split()))
    wanted = "".join(
        event if isinstance(event, str) else event.label if isinstance(event, RegionTag) else ""
        for event in parse(text)
    )
    assert all(character in kept for character in "".join(wanted.split()))


@given(st.one_of(pages, outputs), st.integers(1, 9))
def test_a_stream_gives_the_same_as_the_whole(text: str, size: int) -> None:
    stream = MarkdownStream()
    pieces = [stream.feed(text[start : start + size]) for start in range(0, len(text), size)]
    assert "".join(pieces) + stream.close() == to_markdown(text)[0]
    assert stream.figures == to_markdown(text)[1]
