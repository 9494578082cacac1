"""Watches open streams for a client's cancel or a dropped connection, and passes it on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class CancelWatch:
    """Polls `is_cancelled` of every open stream: Triton tells a model of a cancel only when asked.

    Args:
        cancel: passes a cancel on, given the stream's id; may be called again, must not raise.
        poll_seconds: pause between two rounds.
    """

    def __init__(self, cancel: Callable[[str], None], poll_seconds: float) -> None:
        self._cancel = cancel
        self._poll_seconds = poll_seconds
        self._open: dict[str, Callable[[], bool]] = {}
        self._gone: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancel-watch", daemon=True)
        self._thread.start()

    @property
    def under_way(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def add(self, stream_id: str, is_cancelled: Callable[[], bool]) -> None:
        """Watch a stream."""
        with self._lock:
            self._open[stream_id] = is_cancelled

    def remove(self, stream_id: str) -> None:
        """Forget a stream; from here on it isn't asked. To be called before its last response is sent."""
        with self._lock:
            self._open.pop(stream_id, None)
            self._gone.discard(stream_id)

    def cancelled(self, stream_id: str) -> bool:
        """Whether the stream's client has gone, as far as the last round saw."""
        return stream_id in self._gone

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            for stream_id in list(self._open):
                # Under the lock: Triton crashes when a stream is asked after its last response.
                with self._lock:
                    ask = self._open.get(stream_id)
                    gone = ask is not None and ask()
                    if gone:
                        self._gone.add(stream_id)
                if gone:
                    # Again every round until the stream ends: the decoder may only now have got the request.
                    self._cancel(stream_id)
