"""What a whole load test found, as its page, its plot and its JSON take it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.load_point import Point
from benchmarks.overload import Overload

DOOR_NAMES = {"grpc": "gRPC, whole answer", "http": "HTTP, whole answer", "stream": "gRPC, stream"}


@dataclass(slots=True)
class Result:
    """A whole run. `conditions`: what the numbers hold for, in the order of the page."""

    conditions: dict[str, str]
    points: list[Point] = field(default_factory=list)
    overloads: list[Overload] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, list[int]] = field(
        default_factory=dict
    )  # pruning -> same text as baseline, of requests

    def of(self, door: str, pruning: str) -> list[Point]:
        """Points with numbers of one door and one way to prune."""
        wanted = (door, pruning)
        return [each for each in self.points if (each.door, each.pruning) == wanted and not each.error]

    def best(self, door: str, pruning: str) -> Point | None:
        """The point with the highest throughput, None where none has numbers."""
        return max(self.of(door, pruning), key=lambda each: each.pages_per_second, default=None)

    def doors(self) -> list[str]:
        """Doors that were measured, in order."""
        return list(dict.fromkeys(each.door for each in self.points))

    def prunings(self) -> list[str]:
        """Ways to prune that were measured, in order."""
        return list(dict.fromkeys(each.pruning for each in self.points))
