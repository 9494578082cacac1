"""The image through system shared memory, for a client and a server on one host."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.utils import serialize_byte_tensor, shared_memory

from deepseek_ocr_client.request import OcrOptions, build_inputs


@dataclass(frozen=True, slots=True)
class SharedRegion:
    """A region that holds the IMAGE tensor: register it as `name` with `key` and `size` (bytes)."""

    name: str
    key: str
    size: int
    inputs: list[Any]


@contextmanager
def shared_image(image: bytes, options: OcrOptions, tensor: Callable[..., Any]) -> Iterator[SharedRegion]:
    """Put the image into a new region; the region is gone after the block, whatever happened in it."""
    array = np.empty(1, dtype=object)
    array[0] = image
    serialized = serialize_byte_tensor(array)  # four bytes of length, then the image
    size = len(serialized.item())
    name = f"deepseek-ocr-{uuid.uuid4().hex}"  # unguessable, so that nobody else finds the page
    handle = shared_memory.create_shared_memory_region(name, "/" + name, size, create_only=True)
    try:
        shared_memory.set_shared_memory_region(handle, [serialized])
        inputs = build_inputs(b"", options, tensor)
        entry = tensor("IMAGE", [1], "BYTES")
        entry.set_shared_memory(name, size)
        yield SharedRegion(name, "/" + name, size, [entry, *inputs[1:]])
    finally:
        shared_memory.destroy_shared_memory_region(handle)
