"""Strict, incremental parser of `<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`.

The model's output is hostile input. The parser never evaluates it, takes one pass (linear in the input
whatever the input and however it's cut into pieces), holds back only an unfinished tag, and returns
everything that isn't a whole and well-formed tag as text, character by character as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

REF, END_REF, DET, END_DET = "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"
MAX_COORDINATE = 999
MAX_LABEL = 4096  # characters; "OCR this image" puts a whole text line into the label
MAX_DETECTION = 65536  # characters between <|det|> and <|/det|>: some 3,000 boxes

_ANY_TAG = re.compile(r"<\|/?(?:ref|det)\|>")
_TAGS = (REF, END_REF, DET, END_DET)
_DETECTION_CHARACTERS = re.compile(r"[0-9\s,.\-\[\]]*")
_NUMBER = r"\s*(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)\s*"
_BOX = re.compile(rf"\s*\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]\s*")


class Box(NamedTuple):
    """A rectangle (x1, y1, x2, y2), x1 <= x2 and y1 <= y2; its unit is said where it's used."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True, slots=True)
class RegionTag:
    """A whole tag: `label`, its boxes in 0..999 of the page (clamped, corners in order), `raw` as written.

    `clamped` says that the model wrote a coordinate outside 0..999 or corners in the wrong order.
    """

    label: str
    boxes: tuple[Box, ...]
    raw: str
    clamped: bool = False


Event = str | RegionTag


def parse_boxes(written: str) -> tuple[tuple[Box, ...], bool] | None:
    """Boxes of `[[x1, y1, x2, y2], ...]` and whether any had to be clamped; None where it isn't that."""
    body = written.strip()
    if not (body.startswith("[") and body.endswith("]")):
        return None
    boxes: list[Box] = []
    clamped = False
    at, end = 1, len(body) - 1
    while True:
        match = _BOX.match(body, at, end)
        if match is None:
            return None
        numbers = [float(number) for number in match.groups()]
        kept = [min(max(round(number), 0), MAX_COORDINATE) for number in numbers]
        x1, x2 = sorted((kept[0], kept[2]))
        y1, y2 = sorted((kept[1], kept[3]))
        outside = any(not 0 <= number <= MAX_COORDINATE for number in numbers)
        clamped |= outside or [x1, y1, x2, y2] != kept
        boxes.append(Box(x1, y1, x2, y2))
        at = match.end()
        if at == end:
            return tuple(boxes), clamped
        if body[at] != ",":
            return None
        at += 1


def _unfinished(data: str, start: int, tags: Iterable[str] = _TAGS) -> int:
    """Length of the longest tail of `data[start:]` that a tag of `tags` could begin with."""
    opened = data.rfind("<", max(start, len(data) - len(END_REF) + 1))
    if opened < 0:
        return 0
    tail = data[opened:]
    return len(tail) if any(tag.startswith(tail) for tag in tags) else 0


class TagParser:
    """Feed it pieces of a stream; it returns text and `RegionTag`s as soon as they're certain.

    `"".join(event if isinstance(event, str) else event.raw ...)` over all events is the input, exactly.
    """

    def __init__(self) -> None:
        self._state = self._text
        self._carry = ""  # an unfinished tag at the end of the last piece
        self._held: list[str] = []  # what was read since <|ref|>, as written
        self._size = 0  # characters in the part being read
        self._events: list[Event] = []

    def feed(self, piece: str) -> list[Event]:
        """Events that are certain after `piece`."""
        data = self._carry + piece
        self._carry = ""
        at = 0
        while at < len(data):
            at = self._state(data, at)
        return self._take()

    def close(self) -> list[Event]:
        """The rest, as text, after the stream's end; the parser can be used again."""
        self._give_up(self._carry)
        self._carry = ""
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _emit(self, text: str) -> None:
        if text:
            self._events.append(text)

    def _give_up(self, more: str = "") -> None:
        """What was held is no tag after all: it's text."""
        self._emit("".join(self._held) + more)
        self._held, self._size = [], 0
        self._state = self._text

    def _wait(self, data: str, length: int) -> int:
        """Keep the last `length` characters of `data` for the next piece; returns the end of `data`."""
        self._carry = data[len(data) - length :] if length else ""
        return len(data)

    # Each state reads data[at:] and returns how far it came.

    def _text(self, data: str, at: int) -> int:
        found = data.find(REF, at)
        if found < 0:
            length = _unfinished(data, at, (REF,))
            self._emit(data[at : len(data) - length])
            return self._wait(data, length)
        self._emit(data[at:found])
        self._held = [REF]
        self._state = self._in_label
        return found + len(REF)

    def _in_label(self, data: str, at: int) -> int:
        tag = _ANY_TAG.search(data, at)
        length = 0 if tag else _unfinished(data, at)
        part = data[at : tag.start() if tag else len(data) - length]
        self._held.append(part)
        self._size += len(part)
        if self._size > MAX_LABEL:
            self._give_up()
            return tag.start() if tag else self._wait(data, length)
        if tag is None:
            return self._wait(data, length)
        if tag.group() == REF:  # nested: the outer one is text, this one gets its chance
            self._give_up()
            return tag.start()
        self._held.append(tag.group())
        if tag.group() != END_REF:
            self._give_up()
        else:
            self._size = 0
            self._state = self._between
        return tag.end()

    def _between(self, data: str, at: int) -> int:
        if data.startswith(DET, at):
            self._held.append(DET)
            self._state = self._in_detection
            return at + len(DET)
        if DET.startswith(data[at : at + len(DET)]):
            return self._wait(data, len(data) - at)
        self._give_up()
        return at

    def _in_detection(self, data: str, at: int) -> int:
        match = _DETECTION_CHARACTERS.match(data, at)
        end = match.end() if match else at
        self._held.append(data[at:end])
        self._size += end - at
        if self._size > MAX_DETECTION:
            self._give_up()
            return end
        if end == len(data):
            return end
        if data.startswith(END_DET, end):
            self._held.append(END_DET)
            self._finish()
            return end + len(END_DET)
        if END_DET.startswith(data[end : end + len(END_DET)]):
            return self._wait(data, len(data) - end)
        self._give_up()
        return end

    def _finish(self) -> None:
        raw = "".join(self._held)
        label, _, detection = raw[len(REF) : -len(END_DET)].partition(END_REF + DET)
        if parsed := parse_boxes(detection):
            self._events.append(RegionTag(label.strip(), parsed[0], raw, parsed[1]))
            self._held = []
        self._give_up()


def parse(text: str) -> Iterator[Event]:
    """Events of a whole text."""
    parser = TagParser()
    yield from parser.feed(text)
    yield from parser.close()
