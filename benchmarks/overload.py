"""What the front doors do beyond their bounds: many requests in one moment, and how many of them are refused.

Not perf_analyzer's work, which ends at the first error that it gets: our client sends these, without a second try.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.load_pages import LoadPage
from benchmarks.load_point import percentiles
from deepseek_ocr_client import AsyncOcrClient, ClientError, ClientSettings, OcrOptions, ServerUnavailable

_NUMBER = re.compile(r"^\[request id: [^]]*\] ")  # Triton's own refusals begin with it


@dataclass(slots=True)
class Overload:
    """How one burst ended. Milliseconds; percentiles are 50, 95 and 99."""

    door: str
    sent: int
    answered: int = 0
    refused: int = 0  # UNAVAILABLE
    failed: int = 0  # anything else; it must be none
    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)  # what the server said, each once

    @property
    def share_refused(self) -> float:
        """Refused requests of those that were sent."""
        return self.refused / self.sent


def burst(
    url: str, door: str, pages: Sequence[LoadPage], options: OcrOptions, count: int, settings: ClientSettings
) -> Overload:
    """Send `count` pages at once to `url` (`http://...`: whole answers; else gRPC streams) and wait for all."""
    without_retry = replace(settings, retries=0, concurrency=count)
    return asyncio.run(_burst(url, door, pages, options, count, without_retry))


async def _burst(
    url: str, door: str, pages: Sequence[LoadPage], options: OcrOptions, count: int, settings: ClientSettings
) -> Overload:
    found = Overload(door, count)
    answered: list[float] = []
    refused: list[float] = []
    async with AsyncOcrClient(url, settings=settings) as client:

        async def read(number: int) -> None:
            started = time.perf_counter()
            try:
                await client.read(pages[number % len(pages)].image, options)
                found.answered += 1
                answered.append(time.perf_counter() - started)
            except ClientError as error:
                sentence = _NUMBER.sub("", str(error))
                if isinstance(error, ServerUnavailable) and error.answered:
                    found.refused += 1
                    refused.append(time.perf_counter() - started)
                else:
                    found.failed += 1
                if sentence not in found.sentences:
                    found.sentences.append(sentence)

        await asyncio.gather(*(read(number) for number in range(count)))
    found.answered_ms = percentiles(answered) if answered else []
    found.refused_ms = percentiles(refused) if refused else []
    return found
