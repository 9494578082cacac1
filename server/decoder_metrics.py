"""The decoder's Prometheus metrics and the one log line that every page leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from rtprune.decoder.engine import EngineStats
from rtprune.decoder.service import Piece
from server import backend

if TYPE_CHECKING:
    from server.outbox import Page


class DecoderMetrics:
    """Gauges of the engine, counters of the pages that ended."""

    def __init__(self) -> None:
        self._counters = backend.Counters()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None

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
        self._counters.add("ocr_finished_total", "Pages by finish reason.", reason=piece.finish_reason)
        self._counters.add("ocr_output_tokens_total", "Tokens generated.", piece.output_tokens)

    def page(self, page: Page, piece: Piece, timings: list[float]) -> None:
        """Log the page and count the seconds of its last stage."""
        self._counters.stage_seconds("decoder", piece.total_s - piece.queue_s)
        self._counters.add("ocr_first_token_seconds_total", "Seconds to the first token.", timings[4])
        self._counters.add("ocr_queue_seconds_total", "Seconds in the decoder's queue.", piece.queue_s)
        backend.log(
            "page",
            "decoder",
            page.request_id,
            finish=piece.finish_reason,
            visual_tokens=int(page.counts[0]),
            visual_tokens_kept=int(page.counts[1]),
            output_tokens=piece.output_tokens,
            seconds=dict(zip(TIMINGS, (round(value, 4) for value in timings), strict=True)),
        )


TIMINGS = ("preprocess", "vision", "rtprune", "queue", "first_token", "decode", "total")
