"""Markdown of the model's output: tags removed, figures linked, tables and every word kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from deepseek_ocr_client.tags import Box, Event, RegionTag, TagParser, parse

FIGURE_LABELS = frozenset({"image", "figure", "picture", "chart", "photo"})

COMMANDS = {"\\coloneqq": ":=", "\\eqqcolon": "=:"}

# What the model calls the parts of a page. A tag with another label and no text after it isn't a part's name:
# with "OCR this image" the label is the text itself.
# fmt: off
LAYOUT_LABELS = FIGURE_LABELS | frozenset(
    [
        "abstract", "algorithm", "algorithm_caption", "aside_text", "author", "caption",
        "chart_caption", "code", "code_caption", "content", "date", "equation",
        "equation_block", "figure_caption", "figure_footnote", "figure_title", "footer",
        "footnote", "formula", "formula_number", "header", "image_caption", "image_footnote",
        "index", "keywords", "list", "list_item", "logo", "margin_note", "note",
        "page_footnote", "page_number", "paragraph", "quote", "reference", "references", "seal",
        "section_title", "sidebar", "signature", "stamp", "sub_title", "subtitle", "table",
        "table_caption", "table_footnote", "text", "title", "toc", "watermark",
    ]
)
# fmt: on


def labels_are_text(prompt: str | None) -> bool:
    """Whether this prompt makes the model write the text itself into the labels."""
    asked = (prompt or "").lower()
    return "ocr this image" in asked or "locate" in asked


def default_figure_name(number: int) -> str:
    """`figure-1.jpg`: the link of a page's first figure."""
    return f"figure-{number}.jpg"


@dataclass(slots=True)
class MarkdownStream:
    """Feed it pieces of the model's output; it returns pieces of Markdown as soon as they're certain.

    Every character outside tags comes through, but for blank lines beside a removed tag; `\\coloneqq` and
    `\\eqqcolon`, which few renderers know, become := and =:, as the authors' scripts write them. `figures`
    collects the boxes (0..999 of the page) of the figures linked so far, in order. With `text_labels` every
    label is text; without, a label is where it's no part of a page and has no text of its own.
    """

    figure_name: Callable[[int], str] | None = default_figure_name
    text_labels: bool = False
    figures: list[Box] = field(default_factory=list)
    _parser: TagParser = field(default_factory=TagParser)
    _command: str = ""  # what one of COMMANDS may begin with
    _label: str = ""  # of the last tag, as long as it may turn out to be text
    _newlines: str = ""  # blank space that waits for what comes after it
    _beside_tag: bool = True
    _started: bool = False

    def feed(self, piece: str) -> str:
        """Markdown that is certain after `piece`."""
        return "".join(self._take(self._parser.feed(piece)))

    def close(self) -> str:
        """The rest, after the stream's end."""
        rest = list(self._take(self._parser.close()))
        rest.extend(self._flush_command())
        rest.extend(self._flush_label())
        self._newlines = ""
        return "".join(rest)

    def _take(self, events: Iterable[Event]) -> Iterator[str]:
        for event in events:
            if isinstance(event, str):
                yield from self._write(self._commands(event))
                continue
            yield from self._flush_command()
            self._beside_tag = True
            if isinstance(event, RegionTag):
                yield from self._tag(event)

    def _commands(self, text: str) -> str:
        """`text` with COMMANDS replaced; the beginning of one at its end is held back."""
        text = self._command + text
        for command, sign in COMMANDS.items():
            text = text.replace(command, sign)
        start = text.rfind("\\", -max(map(len, COMMANDS)))
        held = start >= 0 and any(command.startswith(text[start:]) for command in COMMANDS)
        self._command = text[start:] if held else ""
        return text[:start] if held else text

    def _flush_command(self) -> Iterator[str]:
        text, self._command = self._command, ""
        yield from self._write(text)

    def _tag(self, tag: RegionTag) -> Iterator[str]:
        yield from self._flush_label()
        if tag.label in FIGURE_LABELS and not self.text_labels:
            yield from self._figures(tag)
        elif self.text_labels and tag.label:
            yield from self._block(tag.label)
        elif tag.label not in LAYOUT_LABELS:
            self._label = tag.label

    def _figures(self, tag: RegionTag) -> Iterator[str]:
        if self.figure_name is None:
            return
        for box in tag.boxes:
            self.figures.append(box)
            yield from self._block(f"![{tag.label}]({self.figure_name(len(self.figures))})")

    def _flush_label(self) -> Iterator[str]:
        label, self._label = self._label, ""
        if label:
            yield from self._block(label)

    def _block(self, text: str) -> Iterator[str]:
        """A line of its own: `text`, with a line break before and after it."""
        yield from self._write("\n" + text + "\n")
        self._beside_tag = True

    def _write(self, text: str) -> Iterator[str]:
        """`text` with blank space held until something follows, then shortened if a tag stood in it."""
        body = text.lstrip()
        self._newlines += text[: len(text) - len(body)]
        if not body:
            return
        self._label = ""  # the region has text of its own, so the label was a label
        yield self._space()
        kept = body.rstrip()
        yield kept
        self._newlines = body[len(kept) :]
        self._started = True
        self._beside_tag = False

    def _space(self) -> str:
        space = self._newlines
        if self._beside_tag:
            lines = max(space.count("\n"), 1)  # two regions never run into one word
            last = space[space.rfind("\n") + 1 :] if "\n" in space else ""  # the next line's indentation
            space = ("\n" * min(lines, 2) if self._started else "") + last
        self._newlines = ""
        return space


def to_markdown(
    text: str, figure_name: Callable[[int], str] | None = default_figure_name, *, text_labels: bool = False
) -> tuple[str, list[Box]]:
    """Markdown of a whole text, and its figures' boxes (0..999 of the page) in the order of their links.

    `figure_name` gives the link of figure 1, 2, ...; None leaves figures out.
    """
    stream = MarkdownStream(figure_name, text_labels)
    markdown = stream.feed(text) + stream.close()
    return markdown, stream.figures


@dataclass(frozen=True, slots=True)
class Segment:
    """A tag and the text up to the next tag, stripped."""

    tag: RegionTag
    text: str


def segments(text: str) -> list[Segment]:
    """The tags of a whole text, each with the text that belongs to it."""
    found: list[tuple[RegionTag, list[str]]] = []
    for event in parse(text):
        if isinstance(event, RegionTag):
            found.append((event, []))
        elif found and isinstance(event, str):
            found[-1][1].append(event)
    return [Segment(tag, "".join(parts).strip()) for tag, parts in found]
