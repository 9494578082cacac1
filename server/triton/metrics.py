"""Prometheus metrics of the models, beside Triton's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

STAGES = ("stream", "preprocess", "vision", "rtprune", "decoder", "generate")  # where an error can arise


class Counters:
    """Prometheus counters and gauges beside Triton's own, one family a name, one metric a label set.

    From any thread. A metric that two threads make at once leaves one of them with a dead object, and Triton
    2.51 crashes on it; so there is one lock for all of a process.
    """

    _lock = threading.Lock()

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}

    def _metric(self, name: str, help_text: str, kind: Any, labels: dict[str, str]) -> Any:
        key = (name, tuple(sorted(labels.items())))
        if key not in self._metrics:
            if name not in self._families:
                self._families[name] = pb_utils.MetricFamily(name=name, description=help_text, kind=kind)
            self._metrics[key] = self._families[name].Metric(labels=labels)
        return self._metrics[key]

    def add(self, name: str, help_text: str, value: float = 1.0, **labels: str) -> None:
        """Increase a counter by `value`, 0 or more; 0 makes it appear."""
        with self._lock:
            self._metric(name, help_text, pb_utils.MetricFamily.COUNTER, labels).increment(value)

    def set(self, name: str, help_text: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._metric(name, help_text, pb_utils.MetricFamily.GAUGE, labels).set(value)

    def stage_seconds(self, stage: str, seconds: float) -> None:
        """Count one request of a stage and the seconds it took."""
        self.add("ocr_stage_seconds_total", "Seconds of compute, by stage.", seconds, stage=stage)
        self.add("ocr_stage_requests_total", "Requests computed, by stage.", stage=stage)

    def error(self, stage: str, status: str, count: float = 1.0) -> None:
        """Count a request that was answered with an error, once, where the error arose; `count` 0 makes the series."""
        self.add("ocr_errors_total", "Errors by stage and status.", count, stage=stage, status=status)

    def observe(self, name: str, help_text: str, bounds: Sequence[float], value: float | None) -> None:
        """Count a value in a histogram's buckets, up to each of `bounds`, sum and count; None only makes them, at zero.

        Triton 2.51's Python backend has no histograms, so its series are counters with a histogram's names:
        quantiles over several servers can be taken of buckets, and not of Triton's own summaries.
        """
        for bound in (*bounds, float("inf")):
            if value is None or value <= bound:
                le = "+Inf" if bound == float("inf") else f"{bound:g}"
                self.add(f"{name}_bucket", f"{help_text} Buckets.", float(value is not None), le=le)
        self.add(f"{name}_sum", f"{help_text} Sum.", value or 0.0)
        self.add(f"{name}_count", f"{help_text} Count.", float(value is not None))


ERRORS = Counters()  # of this process; `failure` is called where there is no model at hand
