"""Reads Prometheus' text format: enough of it to show a server's live numbers."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from deepseek_ocr_client.errors import InvalidRequest, ServerUnavailable

MAX_BYTES = 8 * 2**20  # a page of metrics has some 100 KB
_LINE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: -?\d+)?")
_LABEL = re.compile(r'(?P<name>[A-Za-z_]\w*)="(?P<value>(?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: a metric's labels and its value."""

    labels: Mapping[str, str]
    value: float


class Metrics:
    """A page of metrics."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[Sample]] = {}
        for line in text.splitlines():
            match = _LINE.fullmatch(line.strip())
            if match is None:
                continue
            labels = {found["name"]: found["value"] for found in _LABEL.finditer(match["labels"] or "")}
            try:
                sample = Sample(labels, float(match["value"]))
            except ValueError:
                continue
            self._samples.setdefault(match["name"], []).append(sample)

    def total(self, name: str, **labels: str) -> float | None:
        """The sum over a metric's samples with these labels; None where there's none."""
        found = [
            sample.value
            for sample in self._samples.get(name, [])
            if all(sample.labels.get(key) == value for key, value in labels.items())
        ]
        return sum(found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's values by one label."""
        found: dict[str, float] = {}
        for sample in self._samples.get(name, []):
            if label in sample.labels:
                key = sample.labels[label]
                found[key] = found.get(key, 0.0) + sample.value
        return found


def fetch(url: str, timeout: float) -> Metrics:
    """The metrics at `url` (http or https).

    Raises `InvalidRequest` for another kind of address, `ServerUnavailable` where nothing answers.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"{url!r} is no address of metrics.", "Write http://host:8002/metrics.")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as page:  # noqa: S310 - checked above
            return Metrics(page.read(MAX_BYTES).decode("utf-8", "replace"))
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ServerUnavailable(
            f"No metrics at {url}: {reason}.", "Give their address with --metrics-url."
        ) from None
