"""Reads what perf_analyzer left of one measurement: its CSV report and its profile export.

The profile export holds every request that ended inside the measured windows: when it was sent, when each response
came, and all tensors, raw. Its bytes stand in the JSON as they are, so it's no UTF-8 and is read byte by byte.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtprune.errors import EngineError

BYTES = "latin-1"  # one character a byte, both ways
TIMINGS = ("preprocess", "vision", "rtprune", "decoder_queue", "first_token", "decode", "total")


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was answered. Times in seconds of perf_analyzer's clock."""

    image: bytes
    sent: float
    first: float  # first response with text: the first token, or a little more of the text
    last: float  # response with the finish reason
    first_tokens: int  # output tokens up to the first response
    visual_tokens: tuple[int, int]  # before pruning, after it
    output_tokens: int
    text: str
    finish_reason: str
    timings: tuple[float, ...]  # TIMINGS of the contract, seconds

    @property
    def latency(self) -> float:
        """Seconds from sending to the whole text."""
        return self.last - self.sent

    @property
    def first_latency(self) -> float:
        """Seconds from sending to the first text."""
        return self.first - self.sent

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens a second after the first response, None where everything came in one."""
        return (
            (self.output_tokens - self.first_tokens) / (self.last - self.first)
            if self.last > self.first
            else None
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """The requests of one measurement and how many seconds its windows lasted."""

    requests: tuple[Request, ...]
    seconds: float


def read_profile(path: Path) -> Profile:
    """The profile export of one concurrency.

    Raises:
        EngineError: it isn't what perf_analyzer 2.48 writes for this server's models.
    """
    try:
        content = json.loads(path.read_bytes().decode(BYTES))
        experiment = content["experiments"][0]
        bounds = experiment["window_boundaries"]
        requests = tuple(_request(entry) for entry in experiment["requests"])
        return Profile(requests, (max(bounds) - min(bounds)) / 1e9)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise EngineError(f"perf_analyzer's profile export can't be read: {error!r}.") from None


def read_report(path: Path) -> dict[str, float]:
    """The one row of the CSV report, latencies in microseconds, columns by perf_analyzer's own names.

    Raises:
        EngineError: it isn't such a report.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: float(value) for name, value in rows[0].items() if name and value}
    except (OSError, ValueError, IndexError) as error:
        raise EngineError(f"perf_analyzer's report can't be read: {error!r}.") from None


def _request(entry: Mapping[str, Any]) -> Request:
    answers = [
        (stamp / 1e9, outputs)
        for stamp, outputs in zip(entry["response_timestamps"], entry["response_outputs"], strict=True)
        if outputs.get("TOKENS")  # a stream ends with an empty response
    ]
    first, last = answers[0], answers[-1]
    tokens = [_numbers(outputs["TOKENS"], "<i4") for _, outputs in answers]
    text = "".join(outputs.get("TEXT", "") for _, outputs in answers).encode(BYTES).decode()
    length = int(_numbers(last[1]["TEXT_LENGTH"], "<i4")[0])
    return Request(
        image=entry["request_inputs"]["IMAGE"].encode(BYTES),
        sent=entry["timestamp"] / 1e9,
        first=first[0],
        last=last[0],
        first_tokens=int(tokens[0][2]),
        visual_tokens=(int(tokens[-1][0]), int(tokens[-1][1])),
        output_tokens=int(tokens[-1][2]),
        text=text[:length],
        finish_reason=last[1]["FINISH_REASON"],
        timings=tuple(float(value) for value in _numbers(last[1]["TIMINGS"], "<f4")),
    )


def _numbers(written: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(written.encode(BYTES), kind)
