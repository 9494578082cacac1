"""The decoder's Prometheus metrics and the one log line that every page leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rtprune.contract import FINISH_REASONS, STATUSES, TIMINGS
from rtprune.decoder.engines.base import EngineStats
from rtprune.decoder.service import Piece
from server.triton.failures import log
from server.triton.metrics import STAGES, Counters
from server.triton.tensors import Array

FIRST_TOKEN_BOUNDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60)  # seconds
PAGE_BOUNDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)  # seconds; 300 is the default time limit


class DecoderMetrics:
    """Gauges of the engine, counters of the pages that ended.

    What can be counted is there at zero from the start: Prometheus takes no rate of a series that appears
    with its first event.
    """

    def __init__(self) -> None:
        self._counters = Counters()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        for reason in (*FINISH_REASONS, "error"):
            self._count_finished(reason, 0.0)
        for stage in STAGES:
            for status in STATUSES:
                self._counters.error(stage, status, 0.0)
        self._first_token(None)
        self._page_seconds(None)

    def sample(self, stats: Callable[[], EngineStats], seconds: float) -> None:
        """Read the gauges every `seconds` as well: pages start and grow between two events."""

        def run() -> None:
            while not self._stop.wait(seconds):
                self.state(stats())

        self._sampler = threading.Thread(target=run, name="gauges", daemon=True)
        self._sampler.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()

    def state(self, stats: EngineStats) -> None:
        """Set the gauges; autoscaling reads the waiting pages."""
        with self._lock:
            for name, help_text, value in (
                ("ocr_decoder_running", "Pages being decoded.", stats.running),
                ("ocr_decoder_waiting", "Pages waiting for the decoder.", stats.waiting),
                ("ocr_kv_tokens_used", "KV memory in use, tokens.", stats.kv_used),
                ("ocr_kv_tokens_total", "KV memory, tokens.", stats.kv_total),
            ):
                self._counters.set(name, help_text, value)

    def finished(self, piece: Piece) -> None:
        """Count a page that ended, by reason."""
        self._count_finished(piece.finish_reason, 1.0)
        self._counters.add("ocr_output_tokens_total", "Tokens generated.", piece.output_tokens)

    def page(self, request_id: str, counts: Array, piece: Piece, timings: Array) -> None:
        """Log a page that ended and count its seconds.

        Args:
            request_id: the caller's.
            counts: COUNTS, int32 (2,), visual tokens before and after pruning.
            piece: the last one.
            timings: TIMINGS, float32 (7,), seconds.
        """
        seconds = dict(zip(TIMINGS, timings.tolist(), strict=True))
        self._counters.stage_seconds("decoder", piece.total_s - piece.queue_s)
        self._counters.add("ocr_queue_seconds_total", "Seconds in the decoder's queue.", piece.queue_s)
        if piece.output_tokens:
            self._first_token(seconds["first_token"])
        # A client's hanging up says nothing about the server's speed.
        if piece.finish_reason != "cancelled":
            self._page_seconds(seconds["total"])
        if piece.finish_reason == "error":
            self._counters.error("decoder", "INTERNAL")
        log(
            "page",
            "decoder",
            request_id,
            finish=piece.finish_reason,
            visual_tokens=int(counts[0]),
            visual_tokens_kept=int(counts[1]),
            output_tokens=piece.output_tokens,
            seconds={name: round(value, 4) for name, value in seconds.items()},
        )

    def _count_finished(self, reason: str, count: float) -> None:
        self._counters.add("ocr_finished_total", "Pages by finish reason.", count, reason=reason)

    def _first_token(self, seconds: float | None) -> None:
        name, text = "ocr_first_token_seconds", "Seconds from a page's arrival to its first token."
        self._counters.observe(name, text, FIRST_TOKEN_BOUNDS, seconds)

    def _page_seconds(self, seconds: float | None) -> None:
        name, text = "ocr_page_seconds", "Seconds from a page's arrival to its end; cancelled pages left out."
        self._counters.observe(name, text, PAGE_BOUNDS, seconds)
