"""The streaming safetensors writer: read back by the library, whole or not there at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from export.safetensors_writer import DTYPES, TensorSpec, require_space, write_safetensors
from rtprune.errors import EngineError, InvalidInput

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


def values(spec: TensorSpec, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, spec.shape, generator=generator).to(spec.dtype)


@given(
    st.dictionaries(st.text("abc.", min_size=1), st.tuples(st.sampled_from(list(DTYPES)), SHAPES), min_size=1)
)
def test_the_library_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    path = tmp_path_factory.mktemp("writer") / "file.safetensors"
    specs = {name: TensorSpec(dtype, shape) for name, (dtype, shape) in content.items()}
    tensors = {name: values(spec, i) for i, (name, spec) in enumerate(specs.items())}
    written = write_safetensors(
        path, specs, lambda name: tensors[name].reshape(-1).split(2), metadata={"format": "pt"}
    )
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert written.bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def broken(_: str) -> Iterator[torch.Tensor]:
    yield torch.zeros(2)
    raise InvalidInput("the source is broken")


def interrupted(_: str) -> Iterator[torch.Tensor]:
    yield torch.zeros(2)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("parts", "error", "match"),
    [
        (lambda _: [torch.zeros(3)], EngineError, "'x' has 12 bytes, its header says 16"),
        (lambda _: [torch.zeros(4), torch.zeros(1)], EngineError, "has 20 bytes"),
        (lambda _: [torch.zeros(4, dtype=torch.float16)], EngineError, "'x' is torch.float16"),
        (broken, InvalidInput, "the source is broken"),
        (interrupted, KeyboardInterrupt, ""),
    ],
    ids=["short", "long", "another type", "broken source", "Ctrl-C"],
)
def test_an_error_keeps_the_older_file(
    tmp_path: Path, parts: Callable[[str], Iterable[torch.Tensor]], error: type[BaseException], match: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"older")
    with pytest.raises(error, match=match):
        write_safetensors(path, {"x": TensorSpec(torch.float32, (4,))}, parts)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_small_disk(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"GB free, and 1000000000\.0 GB are needed"):
        require_space(tmp_path, 10**18)
    with pytest.raises(InvalidInput, match="are needed"):
        write_safetensors(tmp_path / "f", {"x": TensorSpec(torch.float32, (10**15,))}, lambda _: [])
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_while_writing(tmp_path: Path) -> None:
    target = tmp_path / "file.safetensors"
    (tmp_path / "file.safetensors.partial").symlink_to("/dev/full")
    with pytest.raises(EngineError, match="couldn't be written: No space left on device"):
        write_safetensors(target, {"x": TensorSpec(torch.float32, (2**20,))}, lambda _: [torch.zeros(2**20)])
    assert not list(tmp_path.iterdir())
