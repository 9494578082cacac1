"""Options -> input tensors, output tensors -> results, by the contract. Nothing here opens a connection."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from deepseek_ocr_client import contract
from deepseek_ocr_client.errors import InvalidRequest, ServerFailed
from deepseek_ocr_client.geometry import Layout
from deepseek_ocr_client.markdown import labels_are_text
from deepseek_ocr_client.result import OcrResult, Timings


class Answer(Protocol):
    """What tritonclient's InferResult classes have in common."""

    def as_numpy(self, name: str) -> npt.NDArray[Any] | None:
        """The output tensor `name`, or None."""


Retention: TypeAlias = float | Literal["dynamic", "off"]
RETENTIONS: dict[Any, float] = {"dynamic": float(contract.DYNAMIC), "off": 1.0}


class RequestOptions(TypedDict, total=False):
    """The fields of `OcrOptions` as the keywords of `ocr` and `stream`."""

    mode: str | None
    prompt: str | None
    retention: Retention | None
    max_tokens: int | None
    no_repeat_ngram: tuple[int, int] | None
    time_limit: float | None


@dataclass(frozen=True, slots=True)
class OcrOptions:
    """What a request may say beyond its image; None leaves the choice to the server.

    A field is an input of the contract, its name in lower case. Impossible values raise `InvalidRequest`.

    `mode`: tiny, small, base, large or gundam. `prompt`: a text with one `<image>` in it. `retention`: "dynamic"
    prunes as the page allows, "off" not at all, 0 < r <= 1 keeps a fixed share of the content tokens.
    `max_tokens`: output tokens at most.
    `no_repeat_ngram`: (n, window) in tokens, n = 0 is off. `time_limit`: seconds, queueing included.
    """

    mode: str | None = None
    prompt: str | None = None
    retention: Retention | None = None
    max_tokens: int | None = None
    no_repeat_ngram: tuple[int, int] | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        share = RETENTIONS.get(self.retention, self.retention)
        if not (
            share is None or share == contract.DYNAMIC or (not isinstance(share, str) and 0 < share <= 1)
        ):
            raise InvalidRequest(
                f"retention must be dynamic, off, or a share above 0 and at most 1, not {share}.",
                "Leave it out for the server's choice.",
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
    """Input tensors of a request, those that have a value; `tensor` is the InferInput class to make them with.

    `InvalidRequest` for numbers that don't fit into 32 bits.
    """
    inputs = []
    for each in contract.INPUTS:
        value = image if each is contract.IMAGE else getattr(options, each.name.lower())
        if value is not None:
            entry = tensor(each.name, list(each.shape), each.dtype)
            entry.set_data_from_numpy(_array(each, value))
            inputs.append(entry)
    return inputs


def _array(tensor: contract.Tensor, value: Any) -> npt.NDArray[Any]:
    """The value of an option as an array of the tensor's type and shape."""
    if tensor.dtype == "BYTES":
        return np.array([value.encode() if isinstance(value, str) else value], object)
    if tensor.dtype == "FP32":
        value = RETENTIONS.get(value, value)
        return np.array(value, np.float32).reshape(tensor.shape)
    values = value if isinstance(value, Sequence) else [value]
    if any(not -(2**31) <= int(number) < 2**31 for number in values):
        raise InvalidRequest(f"{list(values)} doesn't fit into 32 bits.")
    return np.array(values, np.int32).reshape(tensor.shape)


@dataclass(slots=True)
class ResultBuilder:
    """Collects the answers of one request, one or many, into an `OcrResult`."""

    request_id: str
    options: OcrOptions
    _pieces: list[str] = field(default_factory=list)
    _found: dict[contract.Tensor, npt.NDArray[Any]] = field(default_factory=dict)
    finish_reason: str = ""
    model: str = ""

    def add(self, answer: Answer) -> str:
        """Take an answer in; returns its piece of text, which may be empty."""
        for tensor in contract.OUTPUTS:
            array = answer.as_numpy(tensor.name)
            if array is not None and array.size and tensor.dtype != "BYTES":
                self._found[tensor] = array.reshape(-1)
        piece = _text(answer, contract.TEXT)
        self._pieces.append(piece)
        self.finish_reason = _text(answer, contract.FINISH_REASON) or self.finish_reason
        self.model = _text(answer, contract.MODEL) or self.model
        return piece

    @property
    def begun(self) -> bool:
        """Whether an answer has come."""
        return bool(self._pieces)

    def build(self) -> OcrResult:
        """The result; `ServerFailed` where the answers aren't what the contract says."""
        if self.finish_reason not in contract.FINISH_REASONS:
            raise ServerFailed(
                "The server's answer ended without a finish reason."
                if not self.finish_reason
                else f"The server gave an unknown finish reason: {self.finish_reason[:40]!r}."
            )
        for tensor in (contract.TOKENS, contract.LAYOUT_TENSOR):
            if tensor not in self._found:
                raise ServerFailed(f"The server's answer lacks {tensor.name}.")
        tokens = self._numbers(contract.TOKENS)
        whole = "".join(self._pieces)
        length = int((self._numbers(contract.TEXT_LENGTH) or [len(whole)])[0])
        kept = whole[: max(length, 0)]
        timings = self._numbers(contract.TIMINGS_TENSOR)
        return OcrResult(
            text=kept,
            finish_reason=self.finish_reason,
            visual_tokens=int(tokens[0]),
            kept_tokens=int(tokens[1]),
            output_tokens=int(tokens[2]),
            kept=self._found.get(contract.KEPT, np.zeros(0)).astype(np.int32),
            layout=Layout.of(self._found[contract.LAYOUT_TENSOR].tolist()),
            timings=Timings(*timings) if timings else None,
            request_id=self.request_id,
            model=self.model,
            model_text=whole if len(kept) < len(whole) else "",
            text_labels=labels_are_text(self.options.prompt),
        )

    def _numbers(self, tensor: contract.Tensor) -> list[float]:
        """A tensor's numbers, as many as the contract says; none where it hasn't come."""
        if tensor not in self._found:
            return []
        array, count = self._found[tensor], tensor.shape[0]
        if array.size < count or (array.size > count and tensor is contract.TOKENS):
            raise ServerFailed(f"The server's {tensor.name} has {array.size} numbers instead of {count}.")
        numbers: list[float] = array[:count].tolist()
        return numbers


def _text(answer: Answer, tensor: contract.Tensor) -> str:
    array = answer.as_numpy(tensor.name)
    if array is None or not array.size:
        return ""
    value = array.reshape(-1)[0]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
