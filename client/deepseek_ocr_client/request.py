"""The wire contract: options -> input tensors, output tensors -> results. Nothing here opens a connection."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deepseek_ocr_client.errors import InvalidRequest, ServerFailed
from deepseek_ocr_client.geometry import Layout
from deepseek_ocr_client.markdown import labels_are_text
from deepseek_ocr_client.result import FINISH_REASONS, OcrResult, Timings

OUTPUTS = ("TEXT", "TEXT_LENGTH", "FINISH_REASON", "TOKENS", "KEPT", "LAYOUT", "TIMINGS")


class Answer(Protocol):
    """What tritonclient's InferResult classes have in common."""

    def as_numpy(self, name: str) -> npt.NDArray[Any] | None:
        """The output tensor `name`, or None."""


@dataclass(frozen=True, slots=True)
class OcrOptions:
    """What a request may say beyond its image; None leaves the choice to the server.

    `retention`: 1 is pruning off, 0 < r < 1 a fixed share of the visual tokens, None the dynamic rule.
    `no_repeat_ngram`: (n, window) in tokens, n = 0 is off. `time_limit`: seconds, queueing included.
    """

    mode: str | None = None
    prompt: str | None = None
    retention: float | None = None
    max_tokens: int | None = None
    no_repeat_ngram: tuple[int, int] | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.retention is not None and not 0 < self.retention <= 1:
            raise InvalidRequest(
                f"retention must be more than 0 and at most 1, not {self.retention}.",
                "Leave it out for dynamic pruning; 1 turns pruning off.",
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if self.time_limit is not None and not 0 < self.time_limit < float("inf"):
            raise InvalidRequest(f"time_limit must be more than 0 seconds, not {self.time_limit}.")
        if self.no_repeat_ngram is not None and min(self.no_repeat_ngram) < 0:
            raise InvalidRequest(
                f"no_repeat_ngram is (n, window), both 0 or more, not {self.no_repeat_ngram}."
            )


def new_request_id() -> str:
    """A request id that also names the request in the server's log."""
    return uuid.uuid4().hex


def build_inputs(image: bytes, options: OcrOptions, tensor: Callable[..., Any]) -> list[Any]:
    """Input tensors of a request; `tensor` is the InferInput class of the transport in use."""
    arrays: list[tuple[str, str, npt.NDArray[Any]]] = [("IMAGE", "BYTES", _bytes(image))]
    if options.prompt is not None:
        arrays.append(("PROMPT", "BYTES", _bytes(options.prompt.encode())))
    if options.mode is not None:
        arrays.append(("MODE", "BYTES", _bytes(options.mode.encode())))
    if options.retention is not None:
        arrays.append(("RETENTION", "FP32", np.array([options.retention], np.float32)))
    if options.max_tokens is not None:
        arrays.append(("MAX_TOKENS", "INT32", _int32([options.max_tokens])))
    if options.no_repeat_ngram is not None:
        arrays.append(("NO_REPEAT_NGRAM", "INT32", _int32(options.no_repeat_ngram)))
    if options.time_limit is not None:
        arrays.append(("TIME_LIMIT", "FP32", np.array([options.time_limit], np.float32)))
    inputs = []
    for name, datatype, array in arrays:
        entry = tensor(name, list(array.shape), datatype)
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    return inputs


def _bytes(value: bytes) -> npt.NDArray[Any]:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def _int32(values: Any) -> npt.NDArray[np.int32]:
    if any(not -(2**31) <= int(value) < 2**31 for value in values):
        raise InvalidRequest(f"{list(values)} doesn't fit into 32 bits.")
    return np.array(list(values), np.int32)


@dataclass(slots=True)
class ResultBuilder:
    """Collects the answers of one request, one or many, into an `OcrResult`."""

    request_id: str
    options: OcrOptions
    _pieces: list[str] = field(default_factory=list)
    _found: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    finish_reason: str = ""

    def add(self, answer: Answer) -> str:
        """Take an answer in; returns its piece of text, which may be empty."""
        piece = _text(answer, "TEXT")
        self._pieces.append(piece)
        for name in ("TEXT_LENGTH", "TOKENS", "KEPT", "LAYOUT", "TIMINGS"):
            array = answer.as_numpy(name)
            if array is not None and array.size:
                self._found[name] = array.reshape(-1)
        self.finish_reason = _text(answer, "FINISH_REASON") or self.finish_reason
        return piece

    def build(self) -> OcrResult:
        """The result; `ServerFailed` where the answers aren't what the contract says."""
        if self.finish_reason not in FINISH_REASONS:
            raise ServerFailed(
                "The server's answer ended without a finish reason."
                if not self.finish_reason
                else f"The server gave an unknown finish reason: {self.finish_reason[:40]!r}."
            )
        for name in ("TOKENS", "LAYOUT"):
            if name not in self._found:
                raise ServerFailed(f"The server's answer lacks {name}.")
        tokens = self._found["TOKENS"]
        if tokens.size != 3:
            raise ServerFailed(f"The server's TOKENS has {tokens.size} numbers instead of 3.")
        whole = "".join(self._pieces)
        length = int(self._found["TEXT_LENGTH"][0]) if "TEXT_LENGTH" in self._found else len(whole)
        kept = whole[: max(length, 0)]
        timings = self._found.get("TIMINGS")
        return OcrResult(
            text=kept,
            finish_reason=self.finish_reason,
            visual_tokens=int(tokens[0]),
            kept_tokens=int(tokens[1]),
            output_tokens=int(tokens[2]),
            kept=self._found.get("KEPT", np.zeros(0, np.int32)).astype(np.int32),
            layout=Layout.of(self._found["LAYOUT"].tolist()),
            timings=_timings(timings) if timings is not None else None,
            request_id=self.request_id,
            model_text=whole if len(kept) < len(whole) else "",
            text_labels=labels_are_text(self.options.prompt),
        )


def _text(answer: Answer, name: str) -> str:
    array = answer.as_numpy(name)
    if array is None or not array.size:
        return ""
    value = array.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value)


def _timings(values: npt.NDArray[Any]) -> Timings:
    if values.size < len(Timings._fields):
        raise ServerFailed(f"The server's TIMINGS has {values.size} numbers instead of 7.")
    return Timings(*(float(value) for value in values[: len(Timings._fields)]))
