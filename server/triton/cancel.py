"""Watches open streams for a client's cancel or a dropped connection, and passes it on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class CancelWatch:
    """Polls `is_cancelled` of every open stream: Triton tells a model of a cancel only when asked.

    Args:
        cancel: passes a cancel on, given the stream's ticket; may be called again, must not raise.
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

    def add(self, ticket: str, is_cancelled: Callable[[], bool]) -> None:
        """Watch a stream."""
        with self._lock:
            self._open[ticket] = is_cancelled

    def remove(self, ticket: str) -> None:
        """Forget a stream; from here on it isn't asked. To be called before its last response is sent."""
        with self._lock:
            self._open.pop(ticket, None)
            self._gone.discard(ticket)

    def cancelled(self, ticket: str) -> bool:
        """Whether the stream's client has gone, as far as the last round saw."""
        return ticket in self._gone

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            for ticket in list(self._open):
                # Under the lock: Triton crashes when a stream is asked after its last response.
                with self._lock:
                    ask = self._open.get(ticket)
                    gone = ask is not None and ask()
                    if gone:
                        self._gone.add(ticket)
                if gone:
                    # Again every round until the stream ends: the decoder may only now have got the request.
                    self._cancel(ticket)
