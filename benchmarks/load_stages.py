"""Each stage's queue and compute between two looks at Triton's statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepseek_ocr_client import OcrClient

# The decoder isn't among them: it's decoupled and takes a request at once, so Triton counts neither its queue nor its
# work. What it took stands in the answers' TIMINGS.
STAGES = ("preprocess", "vision", "rtprune")
COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True)
class StageUse:
    """Means over a stage's requests: milliseconds a request queued and was computed, requests a run of the model."""

    requests: int
    queue_ms: float
    compute_ms: float
    batch: float


def statistics(client: OcrClient) -> dict[str, Mapping[str, Any]]:
    """Triton's statistics by model (counts and nanoseconds since the server's start).

    Raises:
        ClientError: no server answers.
    """
    found = client.call("get_inference_statistics", as_json=True)
    return {model["name"]: model for model in found["model_stats"]}


def between(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> dict[str, StageUse]:
    """What happened to each stage from one look to the other; stages without a request are left out."""
    found = {}
    for stage in STAGES:
        earlier, later = before.get(stage, {}), after.get(stage, {})
        requests = _grown(earlier, later, "success", "count")
        if not requests:
            continue
        runs = int(later.get("execution_count", 0)) - int(earlier.get("execution_count", 0))
        compute = sum(_grown(earlier, later, part, "ns") for part in COMPUTE)
        queue = _grown(earlier, later, "queue", "ns")
        found[stage] = StageUse(
            requests, queue / requests / 1e6, compute / requests / 1e6, requests / max(runs, 1)
        )
    return found


def _grown(before: Mapping[str, Any], after: Mapping[str, Any], part: str, kind: str) -> int:
    return _count(after, part, kind) - _count(before, part, kind)


def _count(model: Mapping[str, Any], part: str, kind: str) -> int:
    # JSON out of protobuf: zeros are left out, 64-bit numbers are strings.
    return int(model.get("inference_stats", {}).get(part, {}).get(kind, 0))
