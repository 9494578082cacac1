"""What a request that fails is answered with, and the server's log."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import triton_python_backend_utils as pb_utils

from rtprune.contract import Tensor
from rtprune.errors import InvalidInput, OcrError, Unavailable
from rtprune.settings import settings
from server.triton.metrics import ERRORS
from server.triton.tensors import Array, response

LEVELS = ("debug", "info", "warning", "error")


def error_response(status: str, sentence: str) -> Any:
    """An answer that is an error: a status, one of the contract's STATUSES, and one sentence.

    The status also stands before the sentence ("UNAVAILABLE: ..."): Triton sends errors on gRPC streams without
    one, and every error that a model gets from another model as INTERNAL.
    """
    codes = {
        "INVALID_ARGUMENT": pb_utils.TritonError.INVALID_ARG,
        "UNAVAILABLE": pb_utils.TritonError.UNAVAILABLE,
        "INTERNAL": pb_utils.TritonError.INTERNAL,
    }
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{status}: {sentence}", codes[status]))


def failure(error: Exception, stage: str, request_id: str) -> Any:
    """The answer to a request that failed: one sentence and a status; a traceback only for our own bugs."""
    if not isinstance(error, OcrError):
        ERRORS.error(stage, "INTERNAL")
        log("bug", stage, request_id, level="error", error="".join(traceback.format_exception(error)))
        return error_response(
            "INTERNAL", f"The {stage} stage failed on this page; the server's log has the details."
        )
    status = "INTERNAL"
    if isinstance(error, InvalidInput):
        status = "INVALID_ARGUMENT"
    elif isinstance(error, Unavailable):
        status = "UNAVAILABLE"
    log("refused", stage, request_id, error=str(error))
    if not error.relayed:
        ERRORS.error(stage, status)
    return error_response(status, str(error))


def answer(request: Any, stage: str, compute: Callable[[Any], Mapping[Tensor, Any]]) -> Any:
    """Answer one request with `compute`; whatever it raises becomes the request's error."""
    try:
        return response(compute(request))
    except Exception as error:
        return failure(error, stage, request.request_id())


def check_deadline(times: Array, stage: str) -> None:
    """Refuse a request whose time ran out before this stage could start. `times`: TIMES, float64 (n,).

    Raises:
        Unavailable: the deadline in TIMES has passed.
    """
    arrival, deadline = float(times[0]), float(times[1])
    if time.monotonic() > deadline:
        raise Unavailable(
            f"The time limit of {deadline - arrival:.3g} s passed before the {stage} stage could start; "
            "the server is busy."
        )


def log(event: str, stage: str, request_id: str, level: str = "info", **facts: Any) -> None:
    """One line of JSON on standard error, which is the server's log; never with image bytes or page text.

    `level`: one of LEVELS; below the setting `log_level` nothing is written.
    """
    if LEVELS.index(level) < LEVELS.index(settings().log_level):
        return
    time_of_day = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": time_of_day, "level": level, "event": event, "stage": stage, "id": request_id, **facts}
    # One write, so that lines of several processes do not mix.
    os.write(2, (json.dumps(line, ensure_ascii=False) + "\n").encode())
