"""What a request may ask for: checks every option of the endpoints and fills in the defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtprune.contract import DYNAMIC
from rtprune.errors import InvalidInput
from rtprune.modes import MODES
from rtprune.settings import Settings

NGRAM_MAX = 1000  # longer n-grams or windows than any page needs


@dataclass(frozen=True, slots=True)
class PageOptions:
    """The checked options of one request.

    Attributes:
        mode: one of `MODES`.
        retention: share of content tokens to keep, 0 < r <= 1; None = dynamic.
        max_tokens: output tokens at most.
        ngram: length of the n-grams that may not repeat; 0 = the rule is off.
        window: the last generated tokens in which they may not repeat.
        time_limit: seconds for the whole request, queueing included.
    """

    mode: str
    retention: float | None
    max_tokens: int
    ngram: int
    window: int
    time_limit: float


def check_options(
    settings: Settings,
    *,
    built_sides: frozenset[int],
    context_length: int,
    mode: str | None = None,
    retention: float | None = None,
    max_tokens: int | None = None,
    no_repeat_ngram: tuple[int, int] | None = None,
    time_limit: float | None = None,
) -> PageOptions:
    """Check the options of a request, None standing for an absent one.

    Args:
        settings: the server's defaults and limits.
        built_sides: input sides (px) that an engine was built for.
        context_length: positions of the decoder, prompt and output together.
        mode: MODE.
        retention: RETENTION; -1 is dynamic.
        max_tokens: MAX_TOKENS.
        no_repeat_ngram: NO_REPEAT_NGRAM, n and window.
        time_limit: TIME_LIMIT, seconds.

    Raises:
        InvalidInput: naming the input, what it may be, and what it was.
    """
    mode = _mode(settings.mode if mode is None else mode, built_sides)
    return PageOptions(
        mode=mode,
        retention=_retention(settings, mode, retention),
        max_tokens=_max_tokens(settings, max_tokens, context_length),
        **_ngram(settings, no_repeat_ngram),
        time_limit=_time_limit(settings, time_limit),
    )


def _mode(mode: str, built_sides: frozenset[int]) -> str:
    if mode not in MODES:
        raise InvalidInput(f"MODE must be one of {', '.join(MODES)}; got {mode[:40]!r}.")
    missing = sorted(set(MODES[mode].sides) - built_sides)
    if missing:
        built = [name for name, each in MODES.items() if set(each.sides) <= built_sides]
        raise InvalidInput(
            f"MODE {mode} needs a vision engine for {' and '.join(map(str, missing))} px, which was not "
            f"built on this server; built modes: {', '.join(built) or 'none'}."
        )
    return mode


def _retention(settings: Settings, mode: str, value: float | None) -> float | None:
    if value is None:
        match settings.retention:
            case "auto":
                return None if MODES[mode].prunes else 1.0
            case "dynamic":
                return None
            case "off":
                return 1.0
            case share:
                return share
    if value == DYNAMIC:
        return None
    # FP32 on the wire: 0.7 arrives as 0.699999988, and int(100 * r) must be 70.
    rounded = round(value, 6) if math.isfinite(value) else value
    if not 0.0 < rounded <= 1.0:
        raise InvalidInput(
            f"RETENTION must be above 0 and at most 1, or {DYNAMIC} for dynamic; got {value:g}."
        )
    return rounded


def _max_tokens(settings: Settings, value: int | None, context_length: int) -> int:
    if value is None:
        return min(settings.max_tokens, context_length)
    if not 1 <= value <= context_length:
        raise InvalidInput(
            f"MAX_TOKENS must be from 1 to {context_length}, the decoder's context length; got {value}."
        )
    return value


def _ngram(settings: Settings, value: tuple[int, int] | None) -> dict[str, int]:
    n, window = (settings.ngram, settings.ngram_window) if value is None else value
    if n == 0:
        return {"ngram": 0, "window": 0}
    if not (1 <= n <= NGRAM_MAX and n <= window <= NGRAM_MAX):
        raise InvalidInput(
            f"NO_REPEAT_NGRAM must be n and window with 1 <= n <= window <= {NGRAM_MAX}, or n = 0 for off; "
            f"got {n} and {window}."
        )
    return {"ngram": n, "window": window}


def _time_limit(settings: Settings, value: float | None) -> float:
    if value is None:
        return settings.time_limit
    if not (math.isfinite(value) and 0.0 < value <= settings.max_time_limit):
        raise InvalidInput(
            f"TIME_LIMIT must be above 0 and at most {settings.max_time_limit:g} seconds; got {value:g}."
        )
    return value
