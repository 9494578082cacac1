"""Cuts streamed text into words, numbers, tags and symbols, for the repetition guard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

_IDEOGRAPH = r"\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LEXEME = re.compile(
    rf"""
    (?P<tag></?[A-Za-z]{{1,10}}>|<\|/?[a-z]{{1,12}}\|>)
  | (?P<number>\d{{1,16}}(?:[.,]\d{{1,16}}){{0,4}})
  | (?P<ideograph>[{_IDEOGRAPH}])
  | (?P<word>(?:(?![{_IDEOGRAPH}])[^\W\d_]){{1,16}})
  | (?P<symbol>([^\w\s]|_)(?:[ \t\xa0]*\6)*)
    """,
    re.VERBOSE,
)
_LONGEST_TAG = 17
_SEPARATORS = re.compile("[.,]")


class Kind(Enum):
    """What a lexeme is."""

    WORD = "word"
    NUMBER = "number"
    STRUCTURE = "structure"


@dataclass(frozen=True, slots=True)
class Lexeme:
    """One word (long ones in parts of 16 letters), ideograph, number, tag or run of one symbol.

    Attributes:
        key: what it is compared by: a word without its case, a run's symbol, "0" for every number.
        text: as it stands, for numbers; else the key.
        kind: its kind.
        weight: letters or digits; 2 for an ideograph, 1 for a tag, 0.5 for a symbol or a run of it.
        start: index of its first character in the whole text.
        value, decimals: a number's digits as an integer, and how many of them follow its last separator.
    """

    key: str
    text: str
    kind: Kind
    weight: float
    start: int
    value: int = 0
    decimals: int = 0


class Lexer:
    """Splits text that comes in pieces. White space separates and is otherwise ignored."""

    def __init__(self) -> None:
        self._pending = ""
        self._start = 0

    def push(self, piece: str) -> Iterator[Lexeme]:
        """Yield the lexemes that no further text can change."""
        pending = self._pending + piece
        # A number may go on after its separator, a run after blanks, and a tag isn't one before its end.
        settled = len(pending.rstrip()) - 2
        opening = pending.rfind("<", max(0, len(pending) - _LONGEST_TAG))
        if opening >= 0 and ">" not in pending[opening:]:
            settled = min(settled, opening)
        done = 0
        for match in _LEXEME.finditer(pending):
            if match.end() > settled:
                done = match.start()
                break
            done = match.end()
            yield _lexeme(match, self._start + match.start())
        self._pending = pending[done:]
        self._start += done

    def open_run(self) -> tuple[int, int]:
        """Start and length of the longest run of one symbol, or of white space, that may still go on."""
        pending = self._pending
        text = pending.strip()
        blank = len(pending) - len(pending.rstrip())
        if blank >= len(text):
            return self._start + len(pending) - blank, blank
        return self._start + pending.index(text), len(text)


def _lexeme(match: re.Match[str], start: int) -> Lexeme:
    text = match.group()
    match match.lastgroup:
        case "number":
            parts = _SEPARATORS.split(text)
            decimals = len(parts[-1]) if len(parts) > 1 else 0
            digits = "".join(parts)
            return Lexeme("0", text, Kind.NUMBER, len(digits), start, int(digits), decimals)
        case "word":
            key = text.casefold()
            return Lexeme(key, key, Kind.WORD, len(text), start)
        case "ideograph":
            return Lexeme(text, text, Kind.WORD, 2, start)
        case "tag":
            return Lexeme(text, text, Kind.STRUCTURE, 1, start)
        case _:
            return Lexeme(text[0], text[0], Kind.STRUCTURE, 0.5, start)
