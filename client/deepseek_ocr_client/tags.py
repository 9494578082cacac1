"""Incremental parser of `<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`.

The model's output is hostile input, and often nearly right. The parser never evaluates it, takes one pass (linear in
the input whatever the input and however it's cut into pieces), holds back no more than an unfinished tag, and loses no
word: what is wrong with a tag costs its boxes, not the text beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

REF, END_REF, DET, END_DET, GROUNDING = "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"
MAX_COORDINATE = 999
MAX_LABEL = 4096  # characters; "OCR this image" puts a whole text line into the label
MAX_DETECTION = 65536  # characters between <|det|> and <|/det|>: some 3,000 boxes
MAX_JUNK = 256  # characters after <|det|> that no list of boxes has, until <|/det|> is no longer waited for

_TAGS = (REF, END_REF, DET, END_DET, GROUNDING)
_TAG = re.compile("|".join(map(re.escape, _TAGS)))
_LIST_CHARACTERS = "0123456789 \t\r\n,.-[]"
_FIRST_LINE = re.compile(r"\s*\[(?:[^\n]*\]|[^\n]*)")  # of those: a list, to its last bracket
_NUMBER = r"\s*(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)\s*"
_BOX = re.compile(rf"{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}")
_BRACKETS = re.compile(r"[\[\]]")
_DIGIT = re.compile(r"[0-9]")


class Box(NamedTuple):
    """A rectangle (x1, y1, x2, y2), x1 <= x2 and y1 <= y2; its unit is said where it's used."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True, slots=True)
class RegionTag:
    """A tag: `label`, its good boxes in 0..999 of the page, how many were `dropped`, `raw` as written.

    A tag may lack its label or its boxes: the model forgets either, or its end.
    """

    label: str
    boxes: tuple[Box, ...]
    raw: str
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class StrayTag:
    """A tag without its partners, `raw` as written: no part of the page's text."""

    raw: str


Event = str | RegionTag | StrayTag


def parse_boxes(written: str) -> tuple[tuple[Box, ...], int]:
    """The good boxes of what should be `[[x1, y1, x2, y2], ...]`, and how many others there are.

    Good is: four numbers, rounded within 0..999, the first corner not beyond the second. Brackets that are missing
    or too many do no harm.
    """
    candidates = [part.strip(" \t\r\n,") for part in _BRACKETS.split(written) if _DIGIT.search(part)]
    boxes = [box for box in map(_box, candidates) if box is not None]
    return tuple(boxes), len(candidates) - len(boxes)


def _box(written: str) -> Box | None:
    match = _BOX.fullmatch(written)
    if match is None:
        return None
    box = Box(*(round(float(number)) for number in match.groups()))
    inside = all(0 <= number <= MAX_COORDINATE for number in box)
    return box if inside and box.x1 <= box.x2 and box.y1 <= box.y2 else None


class TagParser:
    """Feed it pieces of a stream; it returns text and tags as soon as they're certain.

    `"".join(event if isinstance(event, str) else event.raw ...)` over all events is the input, exactly.
    """

    def __init__(self) -> None:
        self._carry = ""  # an unfinished tag at the end of the last piece
        self._held: list[str] = []  # the tag being read, as written
        self._label: list[str] = []
        self._gap: list[str] = []  # blank space before <|det|>
        self._detection: list[str] = []
        self._size = 0  # characters in the part being read
        self._junk = 0  # of these: since the first that no list of boxes has
        self._read = self._in_text
        self._events: list[Event] = []

    def feed(self, piece: str) -> list[Event]:
        """Events that are certain after `piece`."""
        data = self._carry + piece
        at = 0
        for tag in _TAG.finditer(data):
            self._text(data[at : tag.start()])
            self._read(tag.group(), True)
            at = tag.end()
        opened = data.rfind("<", max(at, len(data) - len(GROUNDING) + 1))
        unfinished = opened >= 0 and any(tag.startswith(data[opened:]) for tag in _TAGS)
        end = opened if unfinished else len(data)
        self._carry = data[end:]
        self._text(data[at:end])
        return self._take()

    def close(self) -> list[Event]:
        """The rest, after the stream's end; the parser can be used again."""
        self._text(self._carry)
        self._carry = ""
        if self._read == self._in_label:
            self._no_label()
        elif self._read != self._in_text:
            gap = self._gap if self._read == self._after_label else []
            self._finish(closed=False)
            self._events += gap
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _text(self, text: str) -> None:
        if text:
            self._read(text, False)

    # Each state reads a tag or the text between two.

    def _in_text(self, part: str, is_tag: bool) -> None:
        if part in (REF, DET) and is_tag:
            self._held, self._size, self._junk = [part], 0, 0
            self._label, self._gap, self._detection = [], [], []
            self._read = self._in_label if part == REF else self._in_detection
        else:
            self._events.append(StrayTag(part) if is_tag else part)

    def _in_label(self, part: str, is_tag: bool) -> None:
        if not is_tag:
            self._held.append(part)
            self._label.append(part)
            self._size += len(part)
            if self._size > MAX_LABEL:
                self._no_label()
        elif part in (END_REF, DET):
            self._held.append(part)
            self._size = 0
            self._read = self._after_label if part == END_REF else self._in_detection
        else:
            self._no_label()
            self._in_text(part, is_tag)

    def _no_label(self) -> None:
        """What was held is no tag after all, but text after a stray one."""
        self._events += [StrayTag(REF), *self._label]
        self._read = self._in_text

    def _after_label(self, part: str, is_tag: bool) -> None:
        if part == DET and is_tag:
            self._held += [*self._gap, part]
            self._size = 0
            self._read = self._in_detection
            return
        self._size += len(part)
        if part.isspace() and self._size <= MAX_JUNK:
            self._gap.append(part)
            return
        self._finish(closed=True)
        for text in self._gap:
            self._read(text, False)
        self._read(part, is_tag)

    def _in_detection(self, part: str, is_tag: bool) -> None:
        if is_tag:
            self._finish(closed=part == END_DET, end=part if part == END_DET else "")
            if part != END_DET:
                self._read(part, is_tag)
            return
        self._detection.append(part)
        self._size += len(part)
        self._junk += len(part if self._junk else part.lstrip(_LIST_CHARACTERS))
        if self._size > MAX_DETECTION or self._junk > MAX_JUNK:
            self._finish(closed=False)

    def _finish(self, closed: bool, end: str = "") -> None:
        """The tag is over; without its end, the text behind its boxes is text."""
        written, rest = "".join(self._detection), ""
        if not closed:
            start = written[:MAX_DETECTION]
            listed = _FIRST_LINE.match(start[: len(start) - len(start.lstrip(_LIST_CHARACTERS))])
            length = listed.end() if listed else 0
            written, rest = written[:length], written[length:]
        label, raw = "".join(self._label).strip(), "".join((*self._held, written, end))
        boxes, dropped = parse_boxes(written)
        self._events.append(RegionTag(label, boxes, raw, dropped))
        if rest:
            self._events.append(rest)
        self._read = self._in_text


def parse(text: str) -> Iterator[Event]:
    """Events of a whole text."""
    parser = TagParser()
    yield from parser.feed(text)
    yield from parser.close()
