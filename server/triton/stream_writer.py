"""Sends the decoder's pieces to Triton from its own thread, so that generating never waits for sending."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rtprune.decoder.service import Piece
from server.triton import backend
from server.triton.backend import Array
from server.triton.decoder_metrics import DecoderMetrics


@dataclass(slots=True)
class Page:
    """One request under way: where its answers go, and what is known of it besides its text."""

    request_id: str
    sender: Any
    clock: Array  # [5] arrival, deadline, seconds of preprocess, vision, rtprune
    counts: Array  # [2] visual tokens before and after pruning
    kept: Array  # [kept] positions in the unpruned sequence
    layout: Array  # [8] see LAYOUT
    stream: bool
    on_end: Callable[[], None]
    submitted: float = field(default_factory=time.monotonic)
    ended: bool = False
    started: bool = False
    text: list[str] = field(default_factory=list)


class Outbox:
    """A queue of pieces and the thread that sends them.

    Pieces of one page that come within `interval` seconds of its last answer travel together: an answer
    costs more than a token of a small model.
    """

    def __init__(self, interval: float, metrics: DecoderMetrics) -> None:
        self._interval = interval
        self._metrics = metrics
        self._queue: queue.SimpleQueue[tuple[Page, Piece] | None] = queue.SimpleQueue()
        self._held: dict[int, tuple[Page, Piece]] = {}  # pages with unsent text, by id
        self._sent: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, page: Page, piece: Piece) -> None:
        """Take a piece; called from the engine's thread, never blocks."""
        self._queue.put((page, piece))

    def close(self) -> None:
        """Send what is left and stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=self._interval if self._held else None)
            except queue.Empty:
                self._flush(time.monotonic())
                continue
            if item is None:
                return
            page, piece = item
            page.text.append(piece.text)
            if piece.finish_reason:
                self._held.pop(id(page), None)
                self._sent.pop(id(page), None)
                self._end(page, piece)
            elif page.stream:
                self._held[id(page)] = (page, piece)
                self._flush(time.monotonic())

    def _flush(self, now: float) -> None:
        due = [key for key in self._held if now - self._sent.get(key, 0.0) >= self._interval]
        for key in due:
            page, piece = self._held.pop(key)
            if "".join(page.text):
                self._sent[key] = now
                backend.send(page.sender, backend.response(self._outputs(page, piece)))

    def _outputs(self, page: Page, piece: Piece) -> dict[str, Array]:
        outputs = {
            "TEXT": backend.text("".join(page.text)),
            "FINISH_REASON": backend.text(piece.finish_reason),
            "TEXT_LENGTH": np.array([piece.text_length], np.int32),
            "TOKENS": np.array([*page.counts, piece.output_tokens], np.int32),
        }
        page.text.clear()
        if not page.started:
            outputs |= {"KEPT": page.kept, "LAYOUT": page.layout}
            page.started = True
        return outputs

    def _end(self, page: Page, piece: Piece) -> None:
        page.ended = True
        page.on_end()
        if piece.finish_reason == "error":
            answer = backend.internal_error(piece.error)
        else:
            answer = backend.response(self._outputs(page, piece) | {"TIMINGS": self.timings(page, piece)})
        backend.finish(page.sender, answer)
        self._metrics.page(page, piece, self.timings(page, piece).tolist())

    @staticmethod
    def timings(page: Page, piece: Piece) -> Array:
        """TIMINGS: seconds of preprocess, vision, rtprune, decoder queue, first token, decode, total.

        The first token and the total count from the request's arrival, the others are each stage's own.
        """
        before = page.submitted - float(page.clock[0])
        decode = piece.total_s - piece.queue_s
        return np.array(
            [*page.clock[2:5], piece.queue_s, before + piece.first_token_s, decode, before + piece.total_s],
            np.float32,
        )
