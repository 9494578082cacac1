"""Calls from one model to another (BLS): a call, an iteration over a stream, errors as ours."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from rtprune.contract import MODELS, Tensor
from rtprune.errors import EngineError, InvalidInput, OcrError, Unavailable
from server.triton.tensors import named

KEPT_SECONDS = 5.0  # Triton lets go within milliseconds, under load within tenths of a second
_KEPT: deque[tuple[float, Any]] = deque()
_KEPT_LOCK = threading.Lock()

# The error's own code is INTERNAL whatever the model gave, so its status is read from the message.
_SPELLED = re.compile(r"(?:in ensemble '[^']*', )*(INVALID_ARGUMENT|UNAVAILABLE|INTERNAL): ")
# What Triton itself says when a stage's queue is full, or a request waited in it too long; it spells no status.
_QUEUE = re.compile(r"Exceeds maximum queue size|Request timeout expired")
_KINDS: dict[str, type[OcrError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "UNAVAILABLE": Unavailable,
    "INTERNAL": EngineError,
}


def call(model: str, inputs: Mapping[Tensor, Any], request_id: str) -> Any:
    """One request to a model with one answer, Triton's, of all its outputs. `inputs`: as `tensors.array` takes them.

    Raises:
        InvalidInput, Unavailable, EngineError: whichever fits the answer's status.
    """
    answered = _request(model, inputs, request_id, MODELS[model].outputs).exec()
    _check(answered)
    return answered


def stream(
    model: str, inputs: Mapping[Tensor, Any], request_id: str, outputs: tuple[Tensor, ...] | None = None
) -> Iterator[Any]:
    """One request to a decoupled model; its answers as they come, of all its outputs unless some are named.

    Answers without outputs are left out.

    Raises:
        InvalidInput, Unavailable, EngineError: whichever fits an answer's status.
    """
    answers = _request(model, inputs, request_id, outputs or MODELS[model].outputs).exec(decoupled=True)
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


def _request(model: str, inputs: Mapping[Tensor, Any], request_id: str, outputs: tuple[Tensor, ...]) -> Any:
    return pb_utils.InferenceRequest(
        model_name=model,
        request_id=request_id,
        inputs=named(inputs),
        requested_output_names=[tensor.name for tensor in outputs],
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
