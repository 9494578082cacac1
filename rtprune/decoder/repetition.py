"""Notices text that goes round in circles, and says how much of it to keep."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low

from rtprune.decoder.lexemes import Kind, Lexeme, Lexer
from rtprune.settings import Settings

_CONTEXT = 3  # lexemes that must agree before the guard follows an earlier place
_LOST = 8  # two wrong predictions within so many lexemes, and it looks for another place
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


@dataclass(frozen=True, slots=True)
class RepetitionLimits:
    """What is still text. See the fields of the same names in `Settings` for the reasons."""

    weight: int
    copies: int
    climb: int
    run: int
    min_copies: int

    @classmethod
    def of(cls, settings: Settings) -> RepetitionLimits:
        """Take the limits from the settings."""
        return cls(
            weight=settings.repetition_weight,
            copies=settings.repetition_copies,
            climb=settings.repetition_climb,
            run=settings.repetition_run,
            min_copies=settings.repetition_min_copies,
        )


@dataclass(slots=True)
class _Evidence:
    """What was predicted: letters and the like, lexemes, numbers that climbed."""

    weight: float = 0.0
    steps: float = 0.0
    climb: float = 0.0

    def shrink(self, factor: float) -> None:
        self.weight *= factor
        self.steps *= factor
        self.climb *= factor


class RepetitionGuard:
    """Reads a request's text as it is generated and says when it has become a loop.

    The idea: text on a page says something new in every line, a loop doesn't. The guard predicts each lexeme
    from the place where the last three stood before (a word by itself, a number by arithmetic progression:
    the next one, or the same one) and adds up what it predicted right. Something new (a word or number that
    was neither predicted nor there before) sets the sum back to nothing, a small change takes a little off.
    So a table of any length whose rows differ in one word or number never adds up, while copies,
    climbing numbers, blank cells and copies with small changes do, until a limit is passed that no page
    reaches. What it can't tell from a price list, and leaves to the token limit: a line that repeats with a
    new number each time that follows no progression.

    Cost: O(1) amortised a character.
    """

    def __init__(self, limits: RepetitionLimits) -> None:
        self._limits = limits
        self._lexer = Lexer()
        self._seen: list[Lexeme] = []
        self._lags: list[int] = []  # how far back each lexeme was predicted from; 0: it wasn't
        self._returns: list[int] = []  # how far back each lexeme and the two before it stood last; 0: never
        self._known: set[str] = set()
        self._places: dict[tuple[str, ...], int] = {}  # last three keys -> index of what came next
        self._place = -1  # index of the lexeme that predicts the next one
        self._misses = 0  # wrong predictions in a row
        self._last_miss = -_LOST
        self._lost = True
        self._factors: list[float] = []  # what each lexeme left of the evidence before it
        self._evidence = _Evidence()
        self._quiet = 0  # index up to which nothing was suspected
        self._look_again = 0  # index before which a rejected alarm isn't raised again

    def push(self, piece: str) -> int | None:
        """Take the next piece; once the text is a loop, return how many characters of the whole to keep.

        That is everything up to the end of the first copy of what repeats.
        """
        for lexeme in self._lexer.push(piece):
            keep = self._take(lexeme)
            if keep is not None:
                return keep
        start, length = self._lexer.open_run()
        return start + 1 if length >= self._limits.run else None

    def _take(self, lexeme: Lexeme) -> int | None:
        index = len(self._seen)
        lag = self._predicted_from(lexeme, index)
        if lag:
            self._misses, factor = 0, 1.0
        else:
            self._misses += 1
            self._lost = self._lost or index - self._last_miss < _LOST
            self._last_miss = index
            factor = self._left_after(lexeme)
        self._seen.append(lexeme)
        self._lags.append(lag)
        self._factors.append(factor)
        self._known.add(lexeme.text)
        self._move(index + 1)
        evidence, limits = self._evidence, self._limits
        self._weigh(evidence, index)
        if evidence.weight < _QUIET * limits.weight and evidence.climb < _QUIET * limits.climb:
            self._quiet, self._look_again = index, 0
        return self._alarm(lag) if lag else None

    def _weigh(self, evidence: _Evidence, index: int, period: int = 0) -> None:
        """Add what lexeme `index` says to the evidence; with a period, count only the steps of this length."""
        evidence.shrink(self._factors[index])
        lag, lexeme = self._lags[index], self._seen[index]
        if lag:
            before = self._seen[index - lag]
            evidence.weight += lexeme.weight
            evidence.steps += not period or _near(lag, period)
            evidence.climb += lexeme.value != before.value
        elif lexeme.kind is Kind.NUMBER:
            evidence.climb *= _OTHER_COUNT

    def _predicted_from(self, lexeme: Lexeme, index: int) -> int:
        """Return how far back the lexeme was predicted from, or 0; puts the place right where text was added."""
        if self._place < 0:
            return 0
        # After a miss the loop may have got a lexeme more, or one fewer, than the copy before.
        shifts = (0, -self._misses, 1) if self._misses else (0,)
        for shift in shifts:
            place = self._place + shift
            if 0 <= place < index and self._continues(lexeme, index, place):
                self._place = place
                return index - place
        return 0

    def _continues(self, lexeme: Lexeme, index: int, place: int) -> bool:
        """Whether the lexeme is what its earlier copy makes expect."""
        before = self._seen[place]
        if before.key != lexeme.key:
            return False
        if lexeme.kind is not Kind.NUMBER or before.text == lexeme.text:
            return True
        earlier = 2 * place - index
        if earlier < 0:
            return False
        first = self._seen[earlier]
        if first.kind is not Kind.NUMBER or not first.decimals == before.decimals == lexeme.decimals:
            return False
        return lexeme.value - before.value == before.value - first.value

    def _left_after(self, lexeme: Lexeme) -> float:
        """What a lexeme that wasn't predicted leaves of the evidence."""
        small = lexeme.kind is Kind.STRUCTURE or lexeme.text in self._known or self._resembles(lexeme)
        return _SMALL_CHANGE if small else _NEWS

    def _resembles(self, lexeme: Lexeme) -> bool:
        """Whether a word is the predicted one but for a place of one or two letters."""
        if self._place < 0 or lexeme.kind is not Kind.WORD:
            return False
        word, other = lexeme.key, self._seen[self._place].key
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
        """Point at the lexeme that predicts the next one, `index`."""
        if self._place >= 0:
            self._place += 1
        context = tuple(lexeme.key for lexeme in self._seen[-_CONTEXT:])
        self._returns.append(index - self._places.get(context, index))
        if self._lost and context in self._places:
            self._place, self._misses, self._lost = self._places[context], 0, False
        self._places[context] = index

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
        """Whether evidence of copies of `period` lexemes passes one of the limits, times `scale`."""
        limits = self._limits
        return (
            evidence.weight >= scale * limits.weight
            or evidence.steps >= scale * limits.copies * period
            or evidence.climb >= scale * limits.climb
        )

    def _is_loop(self, start: int, period: int) -> bool:
        """Whether what follows `start` is enough by itself, as copies of `period` lexemes each."""
        if len(self._seen) - start < self._limits.min_copies * period:
            return False
        evidence = _Evidence()
        for index in range(start, len(self._seen)):
            self._weigh(evidence, index, period)
        return self._passes(evidence, period, _ALONE)

    def _start_of_loop(self, near: list[bool], period: int) -> int:
        """Return the index at which the second copy starts, given the length of a copy in lexemes.

        near: for the last lexemes, whether each stood about a period before as well. The start is where the
        sum of hits and misses, read backwards, is largest. A miss counts as much as the loop itself allows:
        of an exact loop a few copies, of a loop with small changes not quite twice its own share. So the rows
        of a table before the loop don't belong to it.
        """
        end = len(self._seen)
        recent = near[-_RECENT * period :]
        hits = recent.count(True)
        miss = min(max(8.0, 2.0 * period), 0.5 * hits / max(1, len(recent) - hits))
        best, best_start, total = 0.0, end - 1, 0.0
        for index, hit in zip(range(end - 1, end - 1 - len(near), -1), reversed(near), strict=True):
            total += 1.0 if hit else -miss
            if total > best:
                best, best_start = total, index
        start = best_start
        while start > period and self._extends(start - 1, period):
            start -= 1
        return start

    def _extends(self, index: int, period: int) -> bool:
        """Whether a lexeme before the predicted ones is a copy as well: the first step couldn't be foreseen."""
        here, before = self._seen[index], self._seen[index - period]
        if here.key != before.key:
            return False
        if here.kind is not Kind.NUMBER or here.text == before.text:
            return True
        if index + period >= len(self._seen):
            return False
        after = self._seen[index + period]
        return after.kind is Kind.NUMBER and after.value - here.value == here.value - before.value


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
