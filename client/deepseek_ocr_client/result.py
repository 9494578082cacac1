"""What the client returns: the text with everything the server said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deepseek_ocr_client.geometry import Layout, TokenMap, to_pixels
from deepseek_ocr_client.markdown import default_figure_name, segments, to_markdown
from deepseek_ocr_client.tags import Box

UNFINISHED = {
    "length": "the output reached its token limit",
    "repetition": "the model began to repeat itself and was stopped",
    "timeout": "the time limit passed",
    "cancelled": "the request was cancelled",
}


class Timings(NamedTuple):
    """The TIMINGS output in seconds, in its order. `first_token` and `total` count from the request's arrival."""

    preprocess: float
    vision: float
    rtprune: float
    queue: float
    first_token: float
    decode: float
    total: float


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the page that the model marked.

    `boxes` are page pixels; `normalized` the same in 0..999 of the page, as the model writes them;
    `text` what follows the tag up to the next one; `dropped` counts boxes that aren't any (three numbers, a corner
    off the page).
    """

    label: str
    boxes: tuple[Box, ...]
    normalized: tuple[Box, ...]
    text: str
    dropped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "label": self.label,
            "boxes": [list(box) for box in self.boxes],
            "normalized": [list(box) for box in self.normalized],
            "text": self.text,
            "dropped_boxes": self.dropped,
        }


@dataclass(frozen=True)
class OcrResult:
    """One page's answer.

    `text` is what the model wrote, tags included, without the tail that the repetition guard cut off;
    `visual_tokens` and `kept_tokens` count the visual sequence before and after pruning (newlines and
    separator included); `kept` are the kept positions of that sequence, INT32 [kept_tokens], ascending;
    `timings` are None where the server sent none; `model` is the checkpoint's name, empty where the server doesn't
    say; `model_text` is the untouched output where the guard cut
    something; `text_labels` says that the prompt made the model write text into the tags' labels.
    """

    text: str
    finish_reason: str
    visual_tokens: int
    kept_tokens: int
    output_tokens: int
    kept: npt.NDArray[np.int32] = field(repr=False)
    layout: Layout
    timings: Timings | None
    request_id: str = ""
    model: str = ""
    model_text: str = field(default="", repr=False)
    text_labels: bool = False

    @property
    def complete(self) -> bool:
        """Whether the model came to its end by itself."""
        return self.finish_reason == "stop"

    @cached_property
    def markdown(self) -> str:
        """The text as Markdown; figures are linked as `figure-1.jpg`, `figure-2.jpg`, ..."""
        return self.to_markdown()[0]

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The marked parts of the page, in reading order."""
        width, height = self.layout.width, self.layout.height
        return tuple(
            Region(
                label=part.tag.label,
                boxes=tuple(to_pixels(box, width, height) for box in part.tag.boxes),
                normalized=part.tag.boxes,
                text=part.text,
                dropped=part.tag.dropped,
            )
            for part in segments(self.text)
        )

    @property
    def tokens(self) -> TokenMap:
        """Where each visual token lies on the page."""
        return TokenMap(self.layout)

    def to_markdown(
        self, figure_name: Callable[[int], str] | None = default_figure_name
    ) -> tuple[str, list[Box]]:
        """Markdown with links of your own (`figure_name(1)`, ...), and the figures' boxes in page pixels.

        With `figure_name=None`, figures are left out. A comment at its end says what the repetition guard cut off.
        """
        markdown, boxes = to_markdown(self.text, figure_name, text_labels=self.text_labels)
        if self.cut_characters:
            markdown += (
                f"\n\n<!-- {self.cut_characters} characters that repeated themselves were cut off here -->"
            )
        width, height = self.layout.width, self.layout.height
        return markdown, [to_pixels(box, width, height) for box in boxes]

    @property
    def cut_characters(self) -> int:
        """How many characters of a looping tail the repetition guard cut off."""
        return max(0, len(self.model_text) - len(self.text))

    def warning(self) -> str:
        """Why the text may be incomplete, or an empty string."""
        cut = f"; {self.cut_characters:,} characters of the loop were cut off" if self.cut_characters else ""
        return UNFINISHED.get(self.finish_reason, "") + cut

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything that the server said, and the Markdown."""
        timings = None
        if self.timings is not None:
            timings = {name: round(seconds, 6) for name, seconds in self.timings._asdict().items()}
        return {
            "request_id": self.request_id,
            "model": self.model,
            "finish_reason": self.finish_reason,
            "cut_characters": self.cut_characters,
            "text": self.text,
            "markdown": self.markdown,
            "regions": [region.to_dict() for region in self.regions],
            "dropped_boxes": sum(region.dropped for region in self.regions),
            "size": {"width": self.layout.width, "height": self.layout.height},
            "visual_tokens": {"before": self.visual_tokens, "after": self.kept_tokens},
            "output_tokens": self.output_tokens,
            "kept": self.kept.tolist(),
            "layout": {
                "side": self.layout.side,
                "tiles": [self.layout.columns, self.layout.rows],
                "padding": [self.layout.left, self.layout.top],
                "scale": self.layout.scale,
            },
            "timings": timings,
        }
