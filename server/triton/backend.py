"""Between Triton's Python backend and the library: tensors in and out, statuses, logs, metrics."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from rtprune.errors import InvalidInput, OcrError, Unavailable
from rtprune.settings import settings

Array = NDArray[Any]
LEVELS = ("debug", "info", "warning", "error")
STATUSES = ("INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL")
STAGES = ("stream", "preprocess", "vision", "rtprune", "decoder", "generate")  # where an error can arise


def array(request: Any, name: str) -> Array | None:
    """One input as an array, None where the request leaves it out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def required(request: Any, name: str) -> Array:
    """One input as an array.

    Raises:
        InvalidInput: the request has none.
    """
    value = array(request, name)
    if value is None:
        raise InvalidInput(f"The input {name} is missing.")
    return value


def response(outputs: Mapping[str, Array]) -> Any:
    """An answer made of named arrays."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])


def text(value: str) -> Array:
    """A BYTES [1] array of one UTF-8 string."""
    return np.array([value.encode()], dtype=np.object_)


def error_response(sentence: str, code: int) -> Any:
    """An answer that is an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(sentence, code))


def internal_error(sentence: str) -> Any:
    """The answer to a request that an engine failed on (INTERNAL); see `failure` for the spelled status."""
    return error_response(f"INTERNAL: {sentence}", pb_utils.TritonError.INTERNAL)


def failure(error: Exception, stage: str, request_id: str, *, spelled: bool = True) -> Any:
    """The answer to a request that failed: one sentence and a status; a traceback only for our own bugs.

    `spelled` puts the status before the sentence as well ("UNAVAILABLE: ..."): Triton sends errors on gRPC
    streams without a status, and every error that a model gets from another model as INTERNAL.
    """
    status, code = "INTERNAL", pb_utils.TritonError.INTERNAL
    if isinstance(error, OcrError):
        sentence = str(error)
        if isinstance(error, InvalidInput):
            status, code = "INVALID_ARGUMENT", pb_utils.TritonError.INVALID_ARG
        elif isinstance(error, Unavailable):
            status, code = "UNAVAILABLE", pb_utils.TritonError.UNAVAILABLE
        log("refused", stage, request_id, error=sentence)
        if not error.relayed:
            ERRORS.error(stage, status)
    else:
        ERRORS.error(stage, status)
        log("bug", stage, request_id, level="error", error="".join(traceback.format_exception(error)))
        sentence = f"The {stage} stage failed on this page; the server's log has the details."
    return error_response(f"{status}: {sentence}" if spelled else sentence, code)


def log(event: str, stage: str, request_id: str, level: str = "info", **facts: Any) -> None:
    """One line of JSON on standard error, which is the server's log; never with image bytes or page text."""
    if LEVELS.index(level) < LEVELS.index(settings().log_level):
        return
    time_of_day = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": time_of_day, "level": level, "event": event, "stage": stage, "id": request_id, **facts}
    # One write, so that lines of several processes do not mix.
    os.write(2, (json.dumps(line, ensure_ascii=False) + "\n").encode())


def answer(
    request: Any,
    stage: str,
    compute: Callable[[Any], Mapping[str, Array]],
) -> Any:
    """Answer one request with `compute`; whatever it raises becomes the request's error."""
    try:
        return response(compute(request))
    except Exception as error:
        return failure(error, stage, request.request_id())


class Counters:
    """Prometheus counters and gauges beside Triton's own, one family a name, one metric a label set.

    From any thread. A metric that two threads make at once leaves one of them with a dead object, and Triton
    2.51 crashes on it; so there is one lock for all of a process.
    """

    _lock = threading.Lock()

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}

    def _metric(self, name: str, help_text: str, kind: Any, labels: dict[str, str]) -> Any:
        key = (name, tuple(sorted(labels.items())))
        if key not in self._metrics:
            if name not in self._families:
                self._families[name] = pb_utils.MetricFamily(name=name, description=help_text, kind=kind)
            self._metrics[key] = self._families[name].Metric(labels=labels)
        return self._metrics[key]

    def add(self, name: str, help_text: str, value: float = 1.0, **labels: str) -> None:
        """Increase a counter."""
        with self._lock:
            self._metric(name, help_text, pb_utils.MetricFamily.COUNTER, labels).increment(value)

    def set(self, name: str, help_text: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._metric(name, help_text, pb_utils.MetricFamily.GAUGE, labels).set(value)

    def stage_seconds(self, stage: str, seconds: float) -> None:
        """Count one request of a stage and the seconds it took."""
        self.add("ocr_stage_seconds_total", "Seconds of compute, by stage.", seconds, stage=stage)
        self.add("ocr_stage_requests_total", "Requests computed, by stage.", stage=stage)

    def error(self, stage: str, status: str, count: float = 1.0) -> None:
        """Count a request that was answered with an error, once, where the error arose."""
        self.add("ocr_errors_total", "Errors by stage and status.", count, stage=stage, status=status)

    def observe(self, name: str, help_text: str, bounds: Sequence[float], value: float | None) -> None:
        """Count a value in a histogram's buckets, sum and count; None only makes the series, at zero.

        Triton 2.51's Python backend has no histograms, so its series are counters with a histogram's names:
        quantiles over several servers can be taken of buckets, and not of Triton's own summaries.
        """
        for bound in (*bounds, float("inf")):
            if value is None or value <= bound:
                le = "+Inf" if bound == float("inf") else f"{bound:g}"
                self.add(f"{name}_bucket", f"{help_text} Buckets.", float(value is not None), le=le)
        self.add(f"{name}_sum", f"{help_text} Sum.", value or 0.0)
        self.add(f"{name}_count", f"{help_text} Count.", float(value is not None))


ERRORS = Counters()  # of this process; `failure` is called where there is no model at hand


def check_deadline(clock: Array, stage: str) -> None:
    """Refuse a request whose time ran out before this stage could start.

    Raises:
        Unavailable: CLOCK's deadline has passed.
    """
    arrival, deadline = float(clock[0]), float(clock[1])
    if time.monotonic() > deadline:
        raise Unavailable(
            f"The time limit of {deadline - arrival:.3g} s passed before the {stage} stage could start; "
            "the server is busy."
        )


def send(sender: Any, answer: Any) -> None:
    """Send one answer of several; a client that has gone is not an error."""
    try:
        sender.send(answer)
    except pb_utils.TritonModelException as error:
        log("not sent", "decoder", "", level="warning", error=str(error))


def finish(sender: Any, answer: Any) -> None:
    """Send the last answer of a request."""
    try:
        sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except pb_utils.TritonModelException as error:
        log("not sent", "decoder", "", level="warning", error=str(error))
