"""Calls from one model to another (BLS): a call, an iteration over a stream, errors as ours."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from rtprune.errors import EngineError, InvalidInput, OcrError, Unavailable
from server.triton.backend import Array

KEPT_SECONDS = 5.0  # Triton lets go within milliseconds, under load within tenths of a second
_KEPT: deque[tuple[float, Any]] = deque()
_KEPT_LOCK = threading.Lock()
ANSWER = ("TEXT", "FINISH_REASON", "TEXT_LENGTH", "TOKENS", "KEPT", "LAYOUT", "TIMINGS")
PROMPT = ("INPUT_IDS", "VISUAL", "KEPT", "COUNTS", "LAYOUT", "SAMPLING", "CLOCK")


# The error's own code is INTERNAL whatever the model gave, so its status is read from the message.
_SPELLED = re.compile(r"(?:in ensemble '[^']*', )*(INVALID_ARGUMENT|UNAVAILABLE|INTERNAL): ")
# What Triton itself says when a stage's queue is full, or a request waited in it too long; it spells no status.
_QUEUE = re.compile(r"Exceeds maximum queue size|Request timeout expired")
_KINDS: dict[str, type[OcrError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "UNAVAILABLE": Unavailable,
    "INTERNAL": EngineError,
}


def call(model: str, inputs: Mapping[str, Array], outputs: tuple[str, ...], request_id: str) -> Any:
    """One request to a model with one answer.

    Raises:
        OcrError: of the class that fits the answer's status.
    """
    answered = _request(model, inputs, outputs, request_id).exec()
    _check(answered)
    return answered


def stream(
    model: str, inputs: Mapping[str, Array], outputs: tuple[str, ...], request_id: str
) -> Iterator[Any]:
    """One request to a decoupled model; its answers as they come.

    Raises:
        OcrError: of the class that fits the answer's status.
    """
    answers = _request(model, inputs, outputs, request_id).exec(decoupled=True)
    ended = False
    try:
        for answered in answers:
            _check(answered)
            if answered.output_tensors():
                yield answered
        ended = True
    finally:
        if not ended:
            for _ in answers:  # else whoever lets go of it waits for them
                pass
        _keep(answers)


def _keep(answers: Any) -> None:
    """Hold an iteration that has ended for KEPT_SECONDS, and let go of those that were held for so long.

    Triton lets go of it too, from a thread without Python's lock. If that is the last reference, Triton before
    24.12 frees the answers' arrays there, and the heap is corrupted: fixed upstream in python_backend #390.
    """
    now = time.monotonic()
    over = []
    with _KEPT_LOCK:
        _KEPT.append((now + KEPT_SECONDS, answers))
        while _KEPT[0][0] < now:
            over.append(_KEPT.popleft())
    over.clear()


def _request(model: str, inputs: Mapping[str, Array], outputs: tuple[str, ...], request_id: str) -> Any:
    return pb_utils.InferenceRequest(
        model_name=model,
        request_id=request_id,
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
        requested_output_names=list(outputs),
    )


def _check(answered: Any) -> None:
    if not answered.has_error():
        return
    message = answered.error().message()
    spelled = _SPELLED.match(message)
    if spelled is None:
        if _QUEUE.search(message):
            raise Unavailable("The server is busy: a stage's queue is full. Try again later.")
        raise EngineError(message)
    error = _KINDS[spelled[1]](message[spelled.end() :])
    error.relayed = True
    raise error
