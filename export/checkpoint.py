"""Reads a checkpoint tensor by tensor, and refuses one that isn't whole, with the name of the tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from export.family import Architecture, Family, read_config
from rtprune.errors import InvalidInput

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 * 2**20  # bytes; the limit of the safetensors library itself
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that weights may have, with the names of the safetensors format."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is and what it is, from a file's header."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """A checkpoint whose every tensor is there, has its shape and lies within its file.

    Opening reads the headers alone; `read` maps one tensor and looks at its values.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        config: dict[str, Any],
        architecture: Architecture,
        tensors: Mapping[str, StoredTensor],
    ) -> None:
        self.folder = folder
        self.family = family
        self.config = config
        self.architecture = architecture
        self._tensors = tensors
        self._opened: dict[Path, Any] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a Hugging Face snapshot of a family that export knows.

        Raises:
            InvalidInput: no folder, no or another config.json, no weights, a broken file, or a tensor that is
                missing, unknown, misshapen, of another type or cut off; its name is in the sentence.
        """
        family, config, architecture = read_config(folder)
        tensors: dict[str, StoredTensor] = {}
        for file in _shards(folder):
            for name, tensor in _header(file).items():
                if name in tensors:
                    raise InvalidInput(
                        f"The tensor {name} is in {tensors[name].file.name} and in {file.name}."
                    )
                tensors[name] = tensor
        expected = family.shapes(config)
        for name, shape in expected.items():
            if name not in tensors:
                raise InvalidInput(f"{folder} lacks the tensor {name}.")
            if tensors[name].shape != shape:
                raise InvalidInput(
                    f"The tensor {name} has shape {list(tensors[name].shape)}, and config.json asks for {list(shape)}."
                )
        for name in tensors:
            if name not in expected:
                raise InvalidInput(
                    f"{folder} holds the tensor {name}, which a {family.name} checkpoint hasn't."
                )
        return cls(folder, family, config, architecture, tensors)

    def keys(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors[name].shape

    def bytes(self, *prefixes: str) -> int:
        """Size of the tensors whose names start with one of `prefixes`."""
        return sum(tensor.bytes for name, tensor in self._tensors.items() if name.startswith(prefixes))

    def parameters(self, *prefixes: str) -> int:
        """Number of values in the tensors whose names start with one of `prefixes`."""
        return sum(math.prod(t.shape) for name, t in self._tensors.items() if name.startswith(prefixes))

    def files(self) -> tuple[Path, ...]:
        """Every file that the export reads."""
        weights = sorted({tensor.file for tensor in self._tensors.values()})
        return (self.folder / "config.json", self.folder / "tokenizer.json", *weights)

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, in its stored type, mapped and not copied. Raises InvalidInput for NaN or infinity."""
        stored = self._tensors[name]
        try:
            if stored.file not in self._opened:
                self._opened[stored.file] = safe_open(stored.file, framework="pt", device="cpu")
            tensor: torch.Tensor = self._opened[stored.file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InvalidInput(f"The tensor {name} can't be read from {stored.file}: {error}.") from error
        # The extremes are NaN or infinite when any value is; no copy of the tensor is made for them.
        if not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):
            raise InvalidInput(f"The tensor {name} holds values that are not finite.")
        return tensor

    def close(self) -> None:
        """Unmap the files."""
        self._opened.clear()


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise InvalidInput(f"{folder} holds no .safetensors file.")
        return found
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{index} isn't an index of shards: {error!r}.") from error
    for name, file in places.items():
        if Path(file).name != file or not (folder / file).is_file():
            raise InvalidInput(f"{index} puts the tensor {name} into {file}, and there is no such file.")
    return [folder / file for file in sorted(set(places.values()))]


def _header(file: Path) -> dict[str, StoredTensor]:
    """Read a safetensors header; every tensor it names lies within the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise InvalidInput(f"{file} isn't a safetensors file, or is cut off within its header.")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        tensors = {}
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in DTYPES:
                raise InvalidInput(
                    f"The tensor {name} is stored as {entry['dtype']}; export reads {', '.join(DTYPES)}."
                )
            tensor = StoredTensor(file, DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"]))
            start, end = entry["data_offsets"]
            if end - start != tensor.bytes or min(start, *tensor.shape, 0) < 0:
                raise InvalidInput(f"The tensor {name} of {file} has another size than its shape says.")
            if 8 + length + end > size:
                raise InvalidInput(f"The tensor {name} is cut off: {file} ends within it.")
            tensors[name] = tensor
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{file} can't be read as safetensors: {error}.") from error
    return tensors
