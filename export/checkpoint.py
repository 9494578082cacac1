"""Reads a checkpoint tensor by tensor and refuses one that isn't whole, with the name of the tensor; writes shards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from export.family import FAMILY, Architecture, read_config, special_token_ids
from export.hf_tensors import tensors as expected_tensors
from export.progress import bar
from rtprune.errors import InvalidInput
from rtprune.manifest import sha256_of

HASHES = "sources.json"
SHARD_BYTES = 2**29  # of weights in memory at a time
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
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(Protocol):
    """What writers ask of a checkpoint."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, in its stored type. Raises InvalidInput for NaN or infinity."""
        ...


class Checkpoint:
    """A checkpoint whose every tensor is there, has its shape and lies within its file.

    Opening reads the headers alone; `read` maps one tensor and looks at its values.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        architecture: Architecture,
        tensors: Mapping[str, StoredTensor],
        known: tuple[Path, ...] = (),
    ) -> None:
        self.folder = folder
        self.config = config
        self.architecture = architecture
        self._tensors = tensors
        self._known = known
        self._opened: dict[Path, Any] = {}

    @classmethod
    def open(cls, folder: Path, known: tuple[Path, ...] = ()) -> Self:
        """Open a Hugging Face snapshot.

        known: folders that may hold the hashes of an earlier run.

        Raises:
            InvalidInput: no folder, no or another config.json, no weights, a broken file, or a tensor that is
                missing, unknown, misshapen, of another type or cut off; its name is in the sentence.
        """
        config, architecture = read_config(folder)
        tensors: dict[str, StoredTensor] = {}
        for file in _shards(folder):
            for name, tensor in _header(file).items():
                if name in tensors:
                    raise InvalidInput(
                        f"The tensor {name} is in {tensors[name].file.name} and in {file.name}."
                    )
                tensors[name] = tensor
        expected = expected_tensors(architecture)
        for name, shape in expected.items():
            if name not in tensors:
                raise InvalidInput(f"{folder} lacks the tensor {name}.")
            if tensors[name].shape != shape:
                raise InvalidInput(
                    f"The tensor {name} has shape {list(tensors[name].shape)}, and config.json asks for {list(shape)}."
                )
        for name in tensors:
            if name not in expected:
                raise InvalidInput(f"{folder} holds the tensor {name}, which a {FAMILY} checkpoint hasn't.")
        return cls(folder, config, architecture, tensors, known)

    def names(self, *prefixes: str) -> list[str]:
        """Names of the tensors that start with one of `prefixes`, in the files' order."""
        return [name for name in self._tensors if name.startswith(prefixes)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors[name].shape

    def bytes(self, *prefixes: str) -> int:
        """Bytes of the tensors whose names start with one of `prefixes`."""
        return sum(self._tensors[name].bytes for name in self.names(*prefixes))

    def parameters(self, *prefixes: str) -> int:
        """Number of values in the tensors whose names start with one of `prefixes`."""
        return sum(math.prod(self._tensors[name].shape) for name in self.names(*prefixes))

    def files(self) -> tuple[Path, ...]:
        """Every file that the export reads."""
        weights = sorted({tensor.file for tensor in self._tensors.values()})
        return (self.folder / "config.json", self.folder / "tokenizer.json", *weights)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens by name. Raises InvalidInput for a tokenizer that isn't DeepSeek-OCR's."""
        return special_token_ids(self.folder / "tokenizer.json", self.architecture.decoder.vocab_size)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256, hex digits, of every file that the export reads, by name. Raises OSError for one that is missing."""
        return {entry["name"]: entry["sha256"] for entry in self.hash_entries}

    @cached_property
    def hash_entries(self) -> list[dict[str, str]]:
        """What HASHES holds of each file: name, path, size, time and hash, which is an earlier run's if the rest is."""
        known = {(e["path"], e["size"], e["time"]): e["sha256"] for e in _earlier_hashes(self._known)}
        entries, files = [], self.files()
        with bar("hashing the checkpoint", sum(f.stat().st_size for f in files if f.is_file()), "B") as shown:
            for file in files:
                stat = file.stat()
                known_by = (str(file.resolve()), str(stat.st_size), str(stat.st_mtime_ns))
                sha256 = known.get(known_by) or sha256_of(file)
                shown.update(stat.st_size)
                entries.append(dict(zip(("path", "size", "time"), known_by, strict=True)))
                entries[-1] |= {"name": file.name, "sha256": sha256}
        return entries

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, in its stored type, mapped and not copied.

        Raises InvalidInput for NaN or infinity, and where its file can't be read any more.
        """
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
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{index} isn't an index of shards: {error!r}.") from error
    for name, file in files.items():
        if Path(file).name != file or not (folder / file).is_file():
            raise InvalidInput(f"{index} puts the tensor {name} into {file}, and there is no such file.")
    return [folder / file for file in sorted(set(files.values()))]


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


def _earlier_hashes(folders: tuple[Path, ...]) -> list[dict[str, str]]:
    for folder in folders:
        try:
            entries = json.loads((folder / HASHES).read_text(encoding="utf-8"))
            return [{name: str(value) for name, value in entry.items()} for entry in entries]
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return []


def save_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    tensor: Callable[[str], torch.Tensor],
    shown: tqdm[None],
    after_shard: Callable[[], None] = lambda: None,
) -> int:
    """Write tensors of one type as shards with an index, as Hugging Face names them; returns their bytes.

    tensor: gives a tensor by name, in the order of `shapes`; those of one shard, SHARD_BYTES, are in memory together.
    shown: progress in bytes. after_shard: called once each is written. Raises SafetensorError when a shard can't be
    written.
    """
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, shape in shapes.items():
        taken = math.prod(shape) * dtype.itemsize
        if shards[-1] and size + taken > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + taken, total + taken
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):06}.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = tensor(name).to(dtype)
            shown.update(tensors[name].nbytes)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # the library leaves it to its owner alone
        weight_map |= dict.fromkeys(names, file)
        after_shard()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total
