"""Notices text that says nothing new for a long stretch, and says how much of it to keep."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator

from rtprune.settings import Settings

_IDEOGRAPH = r"\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(
    rf"""
    (?P<box><\|det\|>[^<]{{0,400}}<\|/det\|>)
  | (?P<mark><\|/?[a-z]{{1,12}}\|>)
  | (?P<tag></?[A-Za-z][^<>\n]{{0,40}}>)
  | (?P<line>\n)
  | (?P<blank>[^\S\n]{{1,16}})
  | (?P<cell>\|)
  | (?P<ideograph>[{_IDEOGRAPH}])
  | (?P<word>[^\s|<{_IDEOGRAPH}]{{1,64}}|<)
    """,
    re.VERBOSE,
)
_LONGEST = 420  # characters of a token at most
_NUMBER = re.compile(r"(.*?)([0-9]{1,12})(?:[.,]([0-9]{1,3}))?", re.DOTALL)
_EDGES = re.compile(r"^\W+|\W+$")
_INTEGERS = re.compile(r"-?[0-9]{1,9}")
_PAGE = 999  # the largest coordinate of a box

_NEWS = 0.5  # what something new leaves of the stretch: so a row may be half the limit long and differ in one word
_WEIGHTS = {"tag": 1.0, "line": 1.0, "cell": 0.5}  # of others: their characters; blank forms are pages
_LISTED = 0.75  # what the line of a numbered list is let off
_LAGS = 6  # numbers back that a count is looked for: it may stand between others
_STEP = 12  # a count's largest step; every 37th number is a column of a table
_DIGITS = 4  # different numbers in a line that was not there before are new, though each of them was
_GRAM = 12  # tokens by which a copy is recognised
_SAME = 40  # tokens in a row that stand as far back as each other are a copy
_FADING = 0.99  # of what is known of a copy's length, from one token to the next
_BOXES = 200  # last boxes that a new one is compared with


class RepetitionGuard:
    """Reads a request's text as it is generated and says when it has become a loop.

    A loop is a long stretch without news. News are: a word, name or number that was not there before (the next number
    of a count is not news); three ideographs in a new order; a line of a table, or of four numbers, in a new
    combination; a box on a part of the page that no box lay on. Everything else lengthens the stretch by its
    characters, a tag of a table by one, and news halve it. So a table of any length whose rows differ in one cell
    stays short of the limit; and copies, counts, blank cells, the same words in another order and boxes that wander
    do not.

    The limit (`repetition_chars`) lies above what pages hold: a column that counts to 400 has 1,500 characters, a
    sheet of 30 equal labels 1,800. A stretch that copies a longer part has to do so `repetition_copies` times.

    Cost: O(1) amortised a character.
    """

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.repetition_chars
        self._copies = settings.repetition_copies
        self._text = ""  # the whole
        self._pending = ""
        self._start = 0  # of `_pending` in the whole text
        self._stretch = 0.0
        self._news_end = 0  # where the last news ended
        self._seen: set[str] = set()
        self._numbers: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=2 * _LAGS))
        self._signs: deque[str] = deque(maxlen=3)  # the last ideographs
        self._line: list[str] = []
        self._cells = False  # whether the line is a table's
        self._counted = False  # whether a number in it is the next of a count
        self._line_start = 0.0  # the stretch when it began
        self._boxes: deque[tuple[int, ...]] = deque(maxlen=_BOXES)
        self._back = 0  # how many characters back the last tokens stood before
        self._same = 0  # tokens in a row for which that is the same
        self._period = 0.0  # it, where that many make a copy and not chance, lately
        self._gram: deque[str] = deque(maxlen=_GRAM)
        self._grams: dict[tuple[str, ...], int] = {}

    def push(self, piece: str) -> int | None:
        """Take the next piece; once the text is a loop, return how many characters of the whole to keep.

        That is everything up to the end of the last news, and of the first copy where the rest are copies.
        """
        for kind, text, start in self._tokens(piece):
            if self._is_news(kind, text):
                self._stretch *= _NEWS
                self._news_end = start + len(text)
            else:
                self._stretch += _WEIGHTS.get(kind) or len(text)
            self._note(text, start)
            if self._stretch >= max(self._limit, self._period * (self._copies - 1)):
                return max(self._news_end, self._first_copy(start + len(text)))
        return None

    def _first_copy(self, end: int) -> int:
        """Where the first of the copies ends that the text up to `end` closes with; 0 for none."""
        start, back = end, self._back
        while back and start > back and self._text[start - 1] == self._text[start - 1 - back]:
            start -= 1
        return start if back and end - start >= max(back, self._limit // 4) else 0

    def _tokens(self, piece: str) -> Iterator[tuple[str, str, int]]:
        """Kind, text and place of the tokens that no further text can change."""
        self._text += piece
        self._pending += piece
        at = 0
        for match in _TOKEN.finditer(self._pending):
            rest = len(self._pending) - match.start()
            # A word may go on, and what begins with < may still become a tag or a box.
            if match.end() == len(self._pending) or (
                "<" in match.group()[:1] and rest < _LONGEST and not self._whole(match)
            ):
                break
            at = match.end()
            yield str(match.lastgroup), match.group(), self._start + match.start()
        self._pending = self._pending[at:]
        self._start += at

    def _whole(self, match: re.Match[str]) -> bool:
        """Whether a token that begins with < is all that it can be."""
        return match.lastgroup in ("box", "tag") or (match.lastgroup == "mark" and match.group() != "<|det|>")

    def _is_news(self, kind: str, text: str) -> bool:
        match kind:
            case "word":
                return self._new_word(_EDGES.sub("", text).casefold())
            case "ideograph":
                self._signs.append(text)
                return self._unseen("".join(self._signs))
            case "box":
                return self._new_place(tuple(map(int, _INTEGERS.findall(text)[:4])))
            case "cell":
                self._cells = True
            case "tag":
                self._cells = True
                return text.startswith("</tr") and self._new_line()
            case "line":
                return self._new_line()
        return False

    def _unseen(self, key: str) -> bool:
        known = key in self._seen
        self._seen.add(key)
        return not known

    def _new_word(self, key: str) -> bool:
        if not key:
            return False  # a symbol, or a run of one
        number = _NUMBER.fullmatch(key)
        counted = number is not None and self._counts(number[1], number[2], number[3] or "")
        if counted:
            self._counted = True
        else:
            self._line.append(key)
        return self._unseen(key) and not counted

    def _counts(self, prefix: str, whole: str, decimals: str) -> bool:
        """Whether a number is the next of a count: as far from an earlier one as that was from one before."""
        numbers, unit, value = (
            self._numbers[f"{prefix} {len(decimals)}"],
            10 ** len(decimals),
            int(whole + decimals),
        )
        found = any(
            value - numbers[-lag] == numbers[-lag] - numbers[-2 * lag]
            and (
                0 < abs(step := value - numbers[-lag]) <= _STEP
                or (step and step % unit == 0 and abs(step) <= _STEP * unit)
            )
            for lag in range(1, len(numbers) // 2 + 1)
        )
        numbers.append(value)
        return found

    def _new_line(self) -> bool:
        """Whether the line that ends has cells, or numbers, in a combination that was not there before.

        The line of a numbered list or form counts a quarter: it may be long and say the same in each line.
        """
        words, cells, counted = self._line, self._cells, self._counted
        if counted and len(words) > 1:
            self._stretch -= _LISTED * max(0.0, self._stretch - self._line_start)
        self._line, self._cells, self._counted = [], False, False
        self._line_start = self._stretch
        numbers = {word for word in words if any(character.isdigit() for character in word)}
        return (len(words) > 1 if cells else len(numbers) >= _DIGITS) and self._unseen("\n".join(words))

    def _new_place(self, box: tuple[int, ...]) -> bool:
        """Whether most of a box lies where none of the last ones does, on the page."""
        if len(box) < 4 or not (0 <= box[0] <= box[2] <= _PAGE and 0 <= box[1] <= box[3] <= _PAGE):
            return False
        area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
        covered = (
            max(0, min(box[2], other[2]) - max(box[0], other[0]) + 1)
            * max(0, min(box[3], other[3]) - max(box[1], other[1]) + 1)
            for other in self._boxes
        )
        new = all(2 * each <= area for each in covered)
        self._boxes.append(box)
        return new

    def _note(self, text: str, start: int) -> None:
        """Notes how many characters back the last tokens stood before; 0 where they didn't."""
        self._gram.append(text)
        key = tuple(self._gram)
        back = start - self._grams.get(key, start)
        self._grams[key] = start
        self._same = self._same + 1 if back == self._back else 0
        self._back = back
        self._period = max(back if self._same >= _SAME else 0, self._period * _FADING)
