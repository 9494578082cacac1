"""Notices text that goes round in circles, and says how much of it to keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import median_low
from typing import NamedTuple

from rtprune.settings import Settings

_IDEOGRAPH = r"\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(
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
_WEIGHTS = {"ideograph": 2.0, "tag": 1.0, "symbol": 0.5}  # of a word or number: its letters or digits

_CONTEXT = 3  # tokens that must agree before the guard follows an earlier copy
_LOST = 8  # two wrong predictions within so many tokens, and it looks for another copy
# What is left of the evidence after a small change (a word or symbol that was there before, a word one or
# two letters off) and after something new. Measured: a line of 60 letters with one small change in each copy
# is a loop after 75 copies, one of 48 after 130, below 40 never; one of 60 letters with something new in every
# tenth copy after 75. A table row with one new word adds up to four times its other letters, and rows of short
# words picked from a few stay below half the limit.
_SMALL_CHANGE = 0.99
_NEWS = 0.75
_OTHER_COUNT = 0.5  # what is left of a climb when the numbers start another one
_QUIET = 0.05  # share of the limits below which nothing is suspected
_ALONE = 0.9  # share of a limit that the loop must reach without what was before it
_RECENT = 10  # last copies that show how exact a loop is
_LOOK_AGAIN = 0.2  # growth of the suspected text before a rejected alarm is looked at again


class TextToken(NamedTuple):
    """One word (long ones in parts of 16 letters), ideograph, number, tag or run of one symbol.

    kind: the name of its group in `_TOKEN`. key: what it is compared by: a word without its case, a run's
    symbol, "0" for every number. text: a number as it stands, else the key. weight: letters or digits; 2 for
    an ideograph, 1 for a tag, 0.5 for a run of a symbol. start: index of its first character in the whole text.
    value, decimals: a number's digits as an integer, and how many of them follow its last separator.
    """

    kind: str
    key: str
    text: str
    weight: float
    start: int
    value: int = 0
    decimals: int = 0

    @classmethod
    def of(cls, match: re.Match[str], start: int) -> TextToken:
        """Describe a match of `_TOKEN` that begins at `start` of the whole text."""
        kind, text = str(match.lastgroup), match.group()
        if kind == "number":
            whole, *parts = re.split("[.,]", text)
            digits = whole + "".join(parts)
            decimals = len(parts[-1]) if parts else 0
            return cls(kind, "0", text, len(digits), start, int(digits), decimals)
        key = text[0] if kind == "symbol" else text.casefold() if kind == "word" else text
        return cls(kind, key, key, _WEIGHTS.get(kind, len(text)), start)

    def repeats(self, before: TextToken) -> bool:
        """Whether it is `before` once more."""
        return self.key == before.key and (self.kind != "number" or self.text == before.text)


class TextTokenizer:
    """Splits text that comes in pieces. White space separates and is otherwise ignored."""

    def __init__(self) -> None:
        self._pending = ""
        self._start = 0

    def push(self, piece: str) -> Iterator[TextToken]:
        """Yield the tokens that no further text can change."""
        pending = self._pending + piece
        # A number may go on after its separator, a run after blanks, and a tag isn't one before its end.
        settled = len(pending.rstrip()) - 2
        tag = pending.rfind("<", max(0, len(pending) - _LONGEST_TAG))
        if tag >= 0 and ">" not in pending[tag:]:
            settled = min(settled, tag)
        done = 0
        for match in _TOKEN.finditer(pending):
            if match.end() > settled:
                done = match.start()
                break
            done = match.end()
            yield TextToken.of(match, self._start + match.start())
        self._pending = pending[done:]
        self._start += done

    def open_run(self) -> tuple[int, int]:
        """Start and length, in characters, of the longest run of one symbol, or of white space, that may go on."""
        pending = self._pending
        text = pending.strip()
        blank = len(pending) - len(pending.rstrip())
        if blank >= len(text):
            return self._start + len(pending) - blank, blank
        return self._start + pending.index(text), len(text)


class _Evidence(NamedTuple):
    """What was predicted: letters and the like, tokens, numbers that climbed."""

    weight: float = 0.0
    steps: float = 0.0
    climb: float = 0.0


class RepetitionGuard:
    """Reads a request's text as it is generated and says when it has become a loop.

    The idea: text on a page says something new in every line, a loop doesn't. The guard predicts each token
    from where the last three stood before (a word by itself, a number by arithmetic progression: the next
    one, or the same one) and adds up what it predicted right. Something new (a word or number that was
    neither predicted nor there before) takes a quarter of the sum away, a small change a little.
    So a table of any length whose rows differ in one word or number never adds up, while copies,
    climbing numbers, blank cells and copies with small changes do, until a limit is passed that no page
    reaches. What it can't tell from a price list, and leaves to the token limit: a line that repeats with a
    new number each time that follows no progression.

    The limits are `repetition_*` of the settings, which give their reasons. Cost: O(1) amortised a character.
    """

    def __init__(self, settings: Settings) -> None:
        self._weight = settings.repetition_weight
        self._copies = settings.repetition_copies
        self._climb = settings.repetition_climb
        self._run = settings.repetition_run
        self._min_copies = settings.repetition_min_copies
        self._tokenizer = TextTokenizer()
        self._seen: list[TextToken] = []
        self._lags: list[int] = []  # how far back each token was predicted from; 0: it wasn't
        self._returns: list[int] = []  # how far back each token and the two before it stood last; 0: never
        self._left: list[float] = []  # what each token left of the evidence before it
        self._known: set[str] = set()
        self._next: dict[tuple[str, ...], int] = {}  # last three keys -> index of what came next
        self._copy = -1  # index of the token that predicts the next one
        self._misses = 0  # wrong predictions in a row
        self._last_miss = -_LOST
        self._lost = True
        self._evidence = _Evidence()
        self._quiet = 0  # index up to which nothing was suspected
        self._look_again = 0  # index before which a rejected alarm isn't raised again

    def push(self, piece: str) -> int | None:
        """Take the next piece; once the text is a loop, return how many characters of the whole to keep.

        That is everything up to the end of the first copy of what repeats.
        """
        for token in self._tokenizer.push(piece):
            keep = self._take(token)
            if keep is not None:
                return keep
        start, length = self._tokenizer.open_run()
        return start + 1 if length >= self._run else None

    def _take(self, token: TextToken) -> int | None:
        index = len(self._seen)
        lag, left = self._predicted_from(token, index), 1.0
        if lag:
            self._misses = 0
        else:
            self._misses += 1
            self._lost = self._lost or index - self._last_miss < _LOST
            self._last_miss = index
            known = token.kind in ("tag", "symbol") or token.text in self._known
            left = _SMALL_CHANGE if known or self._resembles(token) else _NEWS
        self._seen.append(token)
        self._lags.append(lag)
        self._left.append(left)
        self._known.add(token.text)
        self._move(index + 1)
        evidence = self._evidence = self._weigh(self._evidence, index)
        if evidence.weight < _QUIET * self._weight and evidence.climb < _QUIET * self._climb:
            self._quiet, self._look_again = index, 0
        return self._alarm(lag) if lag else None

    def _weigh(self, evidence: _Evidence, index: int, period: int = 0) -> _Evidence:
        """Add what token `index` says to the evidence; with a period, count only the steps of this length."""
        weight, steps, climb = evidence
        lag, left, token = self._lags[index], self._left[index], self._seen[index]
        if not lag:
            return _Evidence(
                weight * left, steps * left, climb * left * (_OTHER_COUNT if token.kind == "number" else 1)
            )
        climbed = token.value != self._seen[index - lag].value
        return _Evidence(weight + token.weight, steps + (not period or _near(lag, period)), climb + climbed)

    def _predicted_from(self, token: TextToken, index: int) -> int:
        """Return how far back a token was predicted from, or 0; follows a copy that got longer or shorter."""
        if self._copy < 0:
            return 0
        # After a miss the loop may have got a token more, or one fewer, than the copy before.
        for shift in (0, -self._misses, 1) if self._misses else (0,):
            copy = self._copy + shift
            if 0 <= copy < index:
                before, first = self._seen[copy], self._seen[max(0, 2 * copy - index)]
                alike = first.decimals == before.decimals == token.decimals
                if token.repeats(before) or (alike and 2 * copy >= index and _climbs(first, before, token)):
                    self._copy = copy
                    return index - copy
        return 0

    def _resembles(self, token: TextToken) -> bool:
        """Whether a word is the predicted one but for one or two letters in a row."""
        if self._copy < 0:
            return False
        word, other = token.key, self._seen[self._copy].key
        shorter, longer = sorted((len(word), len(other)))
        if shorter < 4 or longer - shorter > 2:
            return False
        head = 0
        while head < shorter and word[head] == other[head]:
            head += 1
        tail = 0
        while tail < shorter - head and word[-1 - tail] == other[-1 - tail]:
            tail += 1
        return longer - head - tail <= 2

    def _move(self, index: int) -> None:
        """Point at the token that predicts the next one, `index`."""
        if self._copy >= 0:
            self._copy += 1
        context = tuple(token.key for token in self._seen[-_CONTEXT:])
        before = self._next.get(context)
        self._returns.append(0 if before is None else index - before)
        if self._lost and before is not None:
            self._copy, self._misses, self._lost = before, 0, False
        self._next[context] = index

    def _alarm(self, lag: int) -> int | None:
        """Compare the evidence with the limits; only past one of them look at the text as a whole."""
        end = len(self._seen)
        if end < self._look_again or not self._passes(self._evidence, lag, 1.0):
            return None
        # The loop may have begun a little before it was suspected.
        first = max(0, end - 2 * (end - self._quiet))
        lately = end - 1 - (end - 1 - self._quiet) // 4
        # The lags show the period of rows with equal cells, the returns that of copies with changes.
        distances = max((self._lags, self._returns), key=lambda each: _steadiness(each[lately:]))
        period = _usual(distances[lately:])
        start = self._start_of_loop([_near(each, period) for each in distances[first:]], period)
        if self._is_loop(start, period):
            return self._seen[start].start
        self._look_again = end + int(_LOOK_AGAIN * (end - self._quiet))
        return None

    def _passes(self, evidence: _Evidence, period: int, scale: float) -> bool:
        """Whether evidence of copies of `period` tokens passes one of the limits, times `scale`."""
        return (
            evidence.weight >= scale * self._weight
            or evidence.steps >= scale * self._copies * period
            or evidence.climb >= scale * self._climb
        )

    def _is_loop(self, start: int, period: int) -> bool:
        """Whether what follows `start` is enough by itself, as copies of `period` tokens each."""
        if len(self._seen) - start < self._min_copies * period:
            return False
        evidence = _Evidence()
        for index in range(start, len(self._seen)):
            evidence = self._weigh(evidence, index, period)
        return self._passes(evidence, period, _ALONE)

    def _start_of_loop(self, near: list[bool], period: int) -> int:
        """Return the index at which the second copy starts, given the length of a copy in tokens.

        near: for the last tokens, whether each stood about a period before as well. The start is where the
        sum of hits and misses, read backwards, is largest. A miss counts as much as the loop itself allows:
        of an exact loop a few copies, of a loop with small changes not quite twice its own share. So the rows
        of a table before the loop don't belong to it.
        """
        seen = self._seen
        recent = near[-_RECENT * period :]
        hits = recent.count(True)
        miss = min(max(8.0, 2.0 * period), 0.5 * hits / max(1, len(recent) - hits))
        best, start, total = 0.0, len(seen) - 1, 0.0
        for back, hit in enumerate(reversed(near), start=1):
            total += 1.0 if hit else -miss
            if total > best:
                best, start = total, len(seen) - back
        # What stands right before is a copy as well: a first step of a count couldn't be foreseen.
        while start > period:
            here, before, after = start - 1, start - 1 - period, start - 1 + period
            climbs = after < len(seen) and _climbs(seen[before], seen[here], seen[after])
            if not climbs and not seen[here].repeats(seen[before]):
                break
            start -= 1
        return start


def _climbs(first: TextToken, second: TextToken, third: TextToken) -> bool:
    """Whether these are three numbers in arithmetic progression, their separators left out."""
    numbers = first.kind == second.kind == third.kind == "number"
    return numbers and third.value - second.value == second.value - first.value


def _usual(distances: list[int]) -> int:
    """The median of the distances that are known, 1 if none is."""
    return median_low([each for each in distances if each] or [1])


def _steadiness(distances: list[int]) -> float:
    """Share of the distances that are about the usual one."""
    usual = _usual(distances)
    return sum(_near(each, usual) for each in distances) / len(distances)


def _near(distance: int, period: int) -> bool:
    """Whether a distance is a period, give or take what a copy with small changes may add."""
    return distance > 0 and abs(distance - period) <= max(period > 4, period // 10)
