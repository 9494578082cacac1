"""Calls from one model to another (BLS): a call, an iteration over a stream, errors as ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from rtprune.errors import EngineError, InvalidInput, OcrError, Unavailable
from server.backend import Array

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
    for answered in _request(model, inputs, outputs, request_id).exec(decoupled=True):
        _check(answered)
        if answered.output_tensors():
            yield answered


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
