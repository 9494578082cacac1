"""Reads Prometheus' text format: enough of it to show a server's live numbers."""

from __future__ import annotations

import re
import urllib.request
from contextlib import suppress
from http.client import HTTPException

from deepseek_ocr_client.errors import InvalidRequest, ServerUnavailable

MAX_BYTES = 8 * 2**20  # a page of metrics has some 100 KB
_LINE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: -?\d+)?")
_LABEL = re.compile(r'(?P<name>[A-Za-z_]\w*)="(?P<value>(?:[^"\\]|\\.)*)"')


class Metrics:
    """A page of metrics."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}  # labels and value, by name
        for line in text.splitlines():
            match = _LINE.fullmatch(line.strip())
            if match is None:
                continue
            labels = {found["name"]: found["value"] for found in _LABEL.finditer(match["labels"] or "")}
            with suppress(ValueError):
                value = float(match["value"])
                self._samples.setdefault(match["name"], []).append((labels, value))

    def total(self, name: str) -> float | None:
        """The sum over a metric's samples; None where there's none."""
        found = self._samples.get(name)
        return sum(value for _, value in found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's sums by the values of one label."""
        found: dict[str, float] = {}
        for labels, value in self._samples.get(name, []):
            if label in labels:
                found[labels[label]] = found.get(labels[label], 0.0) + value
        return found


def fetch(url: str, timeout: float) -> Metrics:
    """The metrics at `url` (http or https), waited for `timeout` seconds at most.

    Raises `InvalidRequest` for another kind of address, `ServerUnavailable` where nothing answers.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"{url!r} is no address of metrics.", "Write http://host:8002/metrics.")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as page:  # noqa: S310 - checked above
            return Metrics(page.read(MAX_BYTES).decode("utf-8", "replace"))
    except (OSError, ValueError, HTTPException) as error:  # a URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise ServerUnavailable(
            f"No metrics at {url}: {reason}.", "Give their address with --metrics-url."
        ) from None
