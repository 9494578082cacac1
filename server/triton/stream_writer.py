"""Sends the decoder's pieces to Triton from a thread of its own, so that generating never waits for sending."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from rtprune import contract
from rtprune.contract import Tensor
from rtprune.decoder.service import Piece
from server.triton.decoder_metrics import DecoderMetrics
from server.triton.failures import error_response, log
from server.triton.tensors import Array, response


@dataclass(slots=True)
class OpenRequest:
    """One request under way: where its answers go, and what is known of it besides its text.

    times: float64, the others int32. text: pieces that were not sent yet. submitted, sent: `time.monotonic()` seconds.
    """

    request_id: str
    sender: Any
    times: Array  # [5] see TIMES
    counts: Array  # [2] see COUNTS
    kept: Array  # [kept] positions in the unpruned sequence
    layout: Array  # [8] see LAYOUT
    model: str  # the checkpoint's name
    stream: bool
    on_end: Callable[[], None]
    submitted: float = field(default_factory=time.monotonic)
    ended: bool = False
    started: bool = False
    text: list[str] = field(default_factory=list)
    sent: float = 0.0  # when its last answer was sent, monotonic seconds


class StreamWriter:
    """A queue of pieces and the thread that sends them.

    Pieces of one request that come within `interval` seconds of its last answer travel together: an answer
    costs more than a token of a small model.
    """

    def __init__(self, interval: float, metrics: DecoderMetrics) -> None:
        self._interval = interval
        self._metrics = metrics
        self._queue: queue.SimpleQueue[tuple[OpenRequest, Piece] | None] = queue.SimpleQueue()
        self._held: dict[int, tuple[OpenRequest, Piece]] = {}  # requests with unsent text, by id
        self._thread = threading.Thread(target=self._run, name="stream-writer", daemon=True)
        self._thread.start()

    def put(self, request: OpenRequest, piece: Piece) -> None:
        """Take a piece; called from the engine's thread, never blocks."""
        self._queue.put((request, piece))

    def close(self) -> None:
        """Handle what was put before and stop; text that is held back for a request that hasn't ended is dropped."""
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
            request, piece = item
            request.text.append(piece.text)
            if piece.finish_reason:
                self._held.pop(id(request), None)
                self._end(request, piece)
            elif request.stream:
                self._held[id(request)] = (request, piece)
                self._flush(time.monotonic())

    def _flush(self, now: float) -> None:
        for key, (request, piece) in list(self._held.items()):
            if now - request.sent >= self._interval:
                del self._held[key]
                if any(request.text):
                    request.sent = now
                    send(request.sender, response(_outputs(request, piece)))

    def _end(self, request: OpenRequest, piece: Piece) -> None:
        request.ended = True
        request.on_end()
        timings = _timings(request, piece)
        if piece.finish_reason == "error":
            answer = error_response("INTERNAL", piece.error)
        else:
            answer = response(_outputs(request, piece) | {contract.TIMINGS_TENSOR: timings})
        finish(request.sender, answer)
        self._metrics.page(request.request_id, request.counts, piece, timings)


def send(sender: Any, answer: Any) -> None:
    """Send one answer of several; a client that has gone is not an error."""
    _send(sender, answer, flags=0)


def finish(sender: Any, answer: Any) -> None:
    """Send the last answer of a request; a client that has gone is not an error."""
    _send(sender, answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _send(sender: Any, answer: Any, flags: int) -> None:
    try:
        sender.send(answer, flags=flags)
    except pb_utils.TritonModelException as error:
        log("not sent", "decoder", "", level="warning", error=str(error))


def _outputs(request: OpenRequest, piece: Piece) -> dict[Tensor, Any]:
    outputs: dict[Tensor, Any] = {
        contract.TEXT: "".join(request.text),
        contract.FINISH_REASON: piece.finish_reason,
        contract.TEXT_LENGTH: [piece.text_length],
        contract.TOKENS: [*request.counts, piece.output_tokens],
    }
    request.text.clear()
    if not request.started:
        outputs |= {contract.KEPT: request.kept, contract.LAYOUT_TENSOR: request.layout}
        outputs[contract.MODEL] = request.model
        request.started = True
    return outputs


def _timings(request: OpenRequest, piece: Piece) -> Array:
    """TIMINGS, float32 [7] in seconds: the first token and the total count from the request's arrival."""
    arrival, _, *stages = request.times
    before = request.submitted - arrival
    decode = piece.total_s - piece.queue_s
    return np.array(
        [*stages, piece.queue_s, before + piece.first_token_s, decode, before + piece.total_s], np.float32
    )
