"""Writes a safetensors file tensor by tensor; the library's writer wants all of them in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from export.store import atomic
from rtprune.errors import EngineError, InvalidInput

# Names of the safetensors format, https://github.com/huggingface/safetensors#format
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that is whole and on disk."""

    path: Path
    bytes: int
    sha256: str


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorSpec],
    parts: Callable[[str], Iterable[torch.Tensor]],
    *,
    metadata: Mapping[str, str] | None = None,
    on_tensor: Callable[[str, int], None] | None = None,
) -> WrittenFile:
    """Write `tensors` to `path`; `parts(name)` gives a tensor's content in pieces, in storage order.

    The pieces of a tensor have its dtype and together its number of elements; their shapes don't matter. Only
    one piece is in memory at a time. The file appears under its name when it is whole; a kill leaves at most
    a `.partial` file beside it. `on_tensor(name, bytes)` is called after each tensor. InvalidInput when
    the disk is too small, EngineError when the disk fails or the pieces don't add up.
    """
    header = _header(tensors, metadata)
    total = len(header) + sum(spec.bytes for spec in tensors.values())
    require_space(path.parent, total)
    digest = hashlib.sha256(header)
    try:
        with atomic(path) as file:
            file.write(header)
            for name, spec in tensors.items():
                written = 0
                for part in parts(name):
                    if part.dtype != spec.dtype:
                        raise EngineError(f"Tensor {name!r} is {part.dtype}, its header says {spec.dtype}.")
                    raw = part.detach().contiguous().view(-1).view(torch.uint8).numpy().data
                    digest.update(raw)
                    written += file.write(raw)
                if written != spec.bytes:
                    raise EngineError(f"Tensor {name!r} has {written} bytes, its header says {spec.bytes}.")
                if on_tensor is not None:
                    on_tensor(name, written)
    except OSError as error:
        raise EngineError(f"{path} couldn't be written: {error.strerror or error}.") from error
    return WrittenFile(path, total, digest.hexdigest())


def require_space(folder: Path, size: int) -> None:
    """Raise InvalidInput unless `folder`'s disk has room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InvalidInput(f"{folder} has {free / 1e9:.1f} GB free, and {size / 1e9:.1f} GB are needed.")


def _header(tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(metadata)
    offset = 0
    for name, spec in tensors.items():
        entries[name] = {
            "dtype": DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.bytes],
        }
        offset += spec.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the data aligned for readers that map the file
    return len(text).to_bytes(8, "little") + text
