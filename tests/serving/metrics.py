"""Reads the server's Prometheus page."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable

from tests.serving.running import RunningServer

LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")


def read(server: RunningServer) -> dict[str, float]:
    """Every sample: `name{labels}` -> value."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:  # noqa: S310 - loopback
        lines = page.read().decode().splitlines()
    found = (LINE.match(line) for line in lines if not line.startswith("#"))
    return {f"{m[1]}{{{m[2]}}}" if m[2] else m[1]: float(m[3]) for m in found if m}


def total(samples: dict[str, float], name: str, label: str = "") -> float:
    """The sum of a metric's samples that carry `label`."""
    return sum(v for key, v in samples.items() if key.split("{")[0] == name and label in key)


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Poll until the condition holds. Returns the seconds it took; fails beyond `seconds`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start
