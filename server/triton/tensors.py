"""Tensors of a request in, answers out, by the contract: each array in its tensor's type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import ArrayLike, NDArray

from rtprune.contract import INPUTS, Tensor
from rtprune.errors import InvalidInput

Array = NDArray[Any]
# Of Triton's own: a request's name, its place in a sequence or queue, how its answer is sent.
PARAMETERS = ("id", "parameters", "sequence_", "priority", "timeout", "triton_", "binary_data_output")
DTYPES: dict[str, Any] = {
    "BYTES": np.object_,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "FP32": np.float32,
    "FP64": np.float64,
}


def optional(request: Any, tensor: Tensor) -> Array | None:
    """One input as an array of the contract's type (BYTES: objects), None where the request leaves it out."""
    found = pb_utils.get_input_tensor_by_name(request, tensor.name)
    return None if found is None else found.as_numpy()


def required(request: Any, tensor: Tensor) -> Array:
    """One input as an array, as `optional` gives it.

    Raises:
        InvalidInput: the request has none.
    """
    value = optional(request, tensor)
    if value is None:
        raise InvalidInput(f"The input {tensor.name} is missing.")
    return value


def check_names(request: Any) -> None:
    """Refuse what a caller may have meant for an input: Triton takes unknown names in JSON for parameters.

    Raises:
        InvalidInput: naming it, and the input that differs from it by its case.
    """
    known = {tensor.name.casefold(): tensor.name for tensor in INPUTS}
    for name in json.loads(request.parameters() or "{}"):
        if name.startswith(PARAMETERS):
            continue
        meant = known.get(name.casefold())
        hint = f"write {meant}" if meant else f"there are {', '.join(known.values())}"
        raise InvalidInput(f"The input {name[:40]!r} is unknown: {hint}.")


def string(request: Any, tensor: Tensor) -> str | None:
    """A BYTES [1] input as text, None where the request leaves it out.

    Raises:
        InvalidInput: it is not UTF-8.
    """
    value = optional(request, tensor)
    if value is None:
        return None
    try:
        return str(value.reshape(-1)[0].decode())
    except UnicodeDecodeError:
        raise InvalidInput(f"The input {tensor.name} is not UTF-8 text.") from None


def number(request: Any, tensor: Tensor) -> Any:
    """An input of one element as Python's int, float or bool, None where the request leaves it out."""
    value = optional(request, tensor)
    return None if value is None else value.reshape(-1)[0].item()


def array(tensor: Tensor, value: ArrayLike | str | bytes) -> Array:
    """A value as a contiguous array of a tensor's type; text becomes BYTES [1] in UTF-8."""
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return np.array([value], np.object_)
    return np.ascontiguousarray(value, DTYPES[tensor.dtype])


def named(values: Mapping[Tensor, ArrayLike | str | bytes]) -> list[Any]:
    """Triton's tensors of these values."""
    return [pb_utils.Tensor(tensor.name, array(tensor, value)) for tensor, value in values.items()]


def response(outputs: Mapping[Tensor, ArrayLike | str | bytes]) -> Any:
    """An answer made of these values."""
    return pb_utils.InferenceResponse(named(outputs))
