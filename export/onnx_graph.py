"""Writes an ONNX graph node by node, its weights streamed into one file that several graphs share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

ALIGNMENT = 4096  # bytes; a page, so that ONNX Runtime maps a tensor instead of reading it
INLINE_BYTES = 1024  # smaller tensors stand in the graph itself
OPSET = 20  # the first with Gelu; TensorRT's parser reads 9 to 20
IR_VERSION = 10  # what ONNX had when opset 20 to 22 were current; older readers refuse newer ones

ELEMENT = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.uint8: TensorProto.UINT8,
}


class WeightFile:
    """Tensors one after the other in one file. `find` knows those that were added, so that graphs share them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._placed: dict[str, TensorProto] = {}

    def add(self, name: str, tensor: torch.Tensor) -> TensorProto:
        """Append a CPU tensor of a type in ELEMENT, at a multiple of ALIGNMENT, and return its initializer."""
        start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.write(b"\0" * (start - self._file.tell()))
        raw = raw_bytes(tensor)
        self._file.write(raw)
        proto = TensorProto(
            name=name,
            data_type=ELEMENT[tensor.dtype],
            dims=tensor.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", self.path.name), ("offset", start), ("length", len(raw))):
            proto.external_data.add(key=key, value=str(value))
        self._placed[name] = proto
        return proto

    def find(self, name: str) -> TensorProto | None:
        """The initializer of a tensor that was added before, else None."""
        return self._placed.get(name)

    def close(self) -> None:
        """Write everything to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """A CPU tensor's elements as they lie in a file: bytes, row-major, not copied where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


class GraphWriter:
    """One graph: every method adds nodes and returns the name of what they compute."""

    def __init__(self, name: str, weights: WeightFile) -> None:
        self._name = name
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._counts: dict[str, int] = {}

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> str:
        """Declare an input; a string in its shape is a free dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENT[dtype], shape))
        return name

    def output(self, value: str, name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> None:
        """Name a value as an output."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, ELEMENT[dtype], shape))

    def op(self, kind: str, *inputs: str, scope: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.ops(kind, *inputs, scope=scope, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, scope: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs. Its name is its scope and kind, numbered where they repeat."""
        base = f"{scope}/{kind}"
        count = self._counts.get(base, 0)
        self._counts[base] = count + 1
        name = f"{base}_{count}" if count else base
        names = [name] if outputs == 1 else [f"{name}:{n}" for n in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names

    def ints(self, *values: int) -> str:
        """A constant int64 vector, such as a shape."""
        name = "ints_" + "_".join(map(str, values))
        if name not in self._initializers:
            self._initializers[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        return name

    def scalar(self, value: float, dtype: torch.dtype) -> str:
        """A constant of shape ()."""
        name = f"scalar_{value!r}_{str(dtype).removeprefix('torch.')}"
        if name not in self._initializers:
            tensor = torch.tensor(value, dtype=dtype)
            self._initializers[name] = helper.make_tensor(
                name, ELEMENT[dtype], [], bytes(raw_bytes(tensor)), raw=True
            )
        return name

    def knows(self, name: str) -> bool:
        """Whether a weight of this name is in the file that the graphs share; `weight` needs no tensor then."""
        return name in self._initializers or self._weights.find(name) is not None

    def weight(self, name: str, tensor: torch.Tensor | None = None) -> str:
        """A constant tensor, written to the shared file where it has INLINE_BYTES and isn't there yet.

        Raises KeyError without a tensor for a name that isn't known.
        """
        if name in self._initializers:
            return name
        found = self._weights.find(name)
        if found is not None:
            self._initializers[name] = found
        elif tensor is None:
            raise KeyError(name)
        elif tensor.numel() * tensor.element_size() < INLINE_BYTES:
            raw = bytes(raw_bytes(tensor))
            self._initializers[name] = helper.make_tensor(
                name, ELEMENT[tensor.dtype], tensor.shape, raw, raw=True
            )
        else:
            self._initializers[name] = self._weights.add(name, tensor)
        return name

    def save(self, path: Path) -> None:
        """Write the graph beside the file of its weights. Raises onnx's ValidationError for one that isn't valid."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="deepseek-ocr-rtprune",
        )
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path))
