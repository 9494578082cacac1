"""Checks an ONNX graph against what TensorRT's parser takes: operators, attributes, types, shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from rtprune.errors import EngineError

TABLE = Path(__file__).parent / "data" / "tensorrt_operators.json"

ELEMENT_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing in a graph that TensorRT's parser refuses."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.node!r} ({self.operator}): {self.reason}"


@lru_cache(maxsize=1)
def operator_table() -> dict[str, Any]:
    """The table of `data/tensorrt_operators.json`, with its source and the versions that it holds for."""
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def check_graph(model: onnx.ModelProto | Path) -> list[Violation]:
    """Every reason why TensorRT would refuse the graph; an empty list when there is none.

    Beyond the table's operators, types and attributes: a shape that depends on the values of the inputs, and
    an input with a free dimension other than its batch, are violations too, because engines and CUDA graphs
    need fixed shapes. Weights outside the file aren't read.
    """
    if isinstance(model, Path):
        model = onnx.load(str(model), load_external_data=False)
    return list(_GraphCheck(model).violations())


def require_supported(path: Path) -> None:
    """Raise EngineError with the first node and its reason if TensorRT would refuse the graph in `path`."""
    found = check_graph(path)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise EngineError(f"{path.name} can't become a TensorRT engine: {found[0]}{more}.")


class _GraphCheck:
    """The walk over one graph: what is constant, what depends on the data, what each tensor's type is."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.table = operator_table()
        self.graph = model.graph
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except onnx.shape_inference.InferenceError:  # an operator that isn't ONNX; the walk reports it
            inferred = model.graph
        self.types: dict[str, int] = {}
        self.shapes: dict[str, list[int | None]] = {}
        for info in (*inferred.input, *inferred.output, *inferred.value_info):
            tensor = info.type.tensor_type
            self.types[info.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.shapes[info.name] = [
                    d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
                ]
        self.constants: dict[str, TensorProto] = {}
        for weight in model.graph.initializer:
            self.types[weight.name] = weight.data_type
            self.shapes[weight.name] = list(weight.dims)
            self.constants[weight.name] = weight
        weights = {w.name for w in model.graph.initializer}
        self.inputs = [i for i in model.graph.input if i.name not in weights]
        # Names whose VALUES come from the graph's inputs; a Shape cuts the dependence.
        self.from_data = {i.name for i in self.inputs}

    def violations(self) -> Iterator[Violation]:
        low, high = self.table["opset"]
        if not low <= self.opset <= high:
            yield Violation("", "graph", f"opset {self.opset} isn't between {low} and {high}")
        for entry in self.inputs:
            shape = self.shapes.get(entry.name)
            if shape is None or any(d is None for d in shape[1:]):
                yield Violation(entry.name, "input", "only the batch dimension may be free")
        for position, node in enumerate(self.graph.node):
            name = node.name or f"#{position}"
            yield from (Violation(name, node.op_type, reason) for reason in self._node(node))
            self._propagate(node)

    def _propagate(self, node: NodeProto) -> None:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t
                elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                    array = numpy_helper.from_array(_as_array(attribute))
                    self.constants[node.output[0]] = array
        elif node.op_type not in ("Shape", "Size") and any(i in self.from_data for i in node.input):
            self.from_data.update(node.output)

    def _node(self, node: NodeProto) -> Iterator[str]:
        if node.domain not in ("", "ai.onnx"):
            yield f"operators of the domain {node.domain!r} aren't standard ONNX"
            return
        rules = self.table["operators"].get(node.op_type)
        if rules is None:
            yield self._why_not(node.op_type)
            return
        yield from self._attributes(node, rules)
        yield from self._element_types(node, rules)
        yield from self._inputs(node, rules)

    def _why_not(self, operator: str) -> str:
        table = self.table
        if operator in table["data_dependent"]:
            return "its output's shape depends on the data"
        if operator in table["unsupported"]:
            return "TensorRT's ONNX parser doesn't support this operator"
        if operator in table["left_out"]:
            return f"this project's graphs may not use it ({table['left_out'][operator]})"
        lowest, highest = table["tensorrt"]["lowest"], table["tensorrt"]["highest"]
        return f"not in the operator table of TensorRT {lowest} to {highest}"

    def _attributes(self, node: NodeProto, rules: dict[str, Any]) -> Iterator[str]:
        given = {a.name: _value(a) for a in node.attribute}
        for name, allowed in rules.get("attributes", {}).items():
            if name in given and given[name] not in allowed:
                yield f"{name}={given[name]} isn't supported, only {', '.join(map(str, allowed))}"
        for name in rules.get("forbidden_attributes", ()):
            if name in given:
                yield f"the attribute {name} isn't supported"
        for name in rules.get("ones", ()):
            if any(v != 1 for v in given.get(name, ())):
                yield f"{name} must be all ones, not {list(given[name])}"
        if "kernel_rank" in rules and len(given.get("kernel_shape", ())) not in rules["kernel_rank"]:
            yield "only two- and three-dimensional pooling is supported"
        if len([o for o in node.output if o]) > rules.get("max_outputs", len(node.output)):
            yield f"only its first {rules['max_outputs']} output is supported"

    def _element_types(self, node: NodeProto, rules: dict[str, Any]) -> Iterator[str]:
        schema = onnx.defs.get_schema(node.op_type, self.opset or onnx.defs.onnx_opset_version())
        # Indices, shapes and axes have constraints of their own; the table's types are those of the data.
        data = {p.type_str for p in (*schema.inputs[:1], *schema.outputs[:1])}
        checked = [
            name
            for index, name in enumerate(node.input)
            if name and schema.inputs[min(index, len(schema.inputs) - 1)].type_str in data
        ]
        if node.op_type in ("Cast", "CastLike", "Constant", "ConstantOfShape"):
            checked.extend(node.output)
        for name in checked:
            element = self.types.get(name)
            if element and ELEMENT_TYPES.get(element, "") not in rules["types"]:
                known = ELEMENT_TYPES.get(element) or helper.tensor_dtype_to_string(element)
                yield f"tensor {name!r} is {known}, supported are {', '.join(rules['types'])}"

        if "from_uint8" in rules and self.types.get(node.input[0]) == TensorProto.UINT8:
            target = ELEMENT_TYPES.get(self.types.get(node.output[0], 0), "another type")
            if target not in rules["from_uint8"]:
                yield f"UINT8 may only become {' or '.join(rules['from_uint8'])}, not {target}"

    def _inputs(self, node: NodeProto, rules: dict[str, Any]) -> Iterator[str]:
        def given(indices: list[int]) -> Iterator[str]:
            return (node.input[i] for i in indices if i < len(node.input) and node.input[i])

        for name in given(rules.get("shape_inputs", [])):
            if name in self.from_data:
                yield f"its output's shape depends on the data, through {name!r}"
        for name in given(rules.get("constant_inputs", [])):
            if name not in self.constants:
                yield f"the input {name!r} must be a constant"
        for index, limit in rules.get("below", {}).items():
            for name in given([int(index)]):
                tensor = self.constants.get(name)
                if tensor is not None and int(numpy_helper.to_array(tensor).max()) >= limit:
                    yield f"the input {name!r} must be below {limit}"
        shape = self.shapes.get(node.input[0]) if node.input else None
        if rules.get("static_input") and (shape is None or None in shape):
            yield "its input must have a fixed shape"
        if "input_rank" in rules and shape is not None and len(shape) != rules["input_rank"]:
            yield f"its input must have {rules['input_rank']} dimensions, not {len(shape)}"


def _value(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _as_array(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return np.asarray(value, np.float32 if "float" in attribute.name else np.int64)
