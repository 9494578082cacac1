"""The TensorRT operator check: what it lets through, what it refuses, and that it names node and reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.checkpoint import Checkpoint
from export.onnx_graph import WeightFile
from export.operators import ELEMENT_TYPES, check_graph, operator_table, require_supported
from export.vision_graph import GraphSettings, write_vision_graph
from rtprune.errors import EngineError
from rtprune.modes import MODES
from training.config import checkpoint_config
from training.random_checkpoint import write_random_checkpoint

Constant = NDArray[Any] | np.generic
FLOAT, HALF, INT64, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8


def graph(
    nodes: list[NodeProto],
    constants: Mapping[str, Constant] = {},
    *,
    kind: int = FLOAT,
    shape: Sequence[int | str] = ("N", 4, 8, 8),
    opset: int = 18,
    output: int = FLOAT,
) -> onnx.ModelProto:
    """A one-input, one-output model; `constants` maps names to arrays."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", output, None)],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )


def node(
    operator: str,
    inputs: Sequence[str],
    outputs: Sequence[str] = ("y",),
    name: str = "bad",
    **attributes: Any,
) -> NodeProto:
    return helper.make_node(operator, list(inputs), list(outputs), name=name, **attributes)


def resize(**attributes: Any) -> onnx.ModelProto:
    return graph([node("Resize", ["x", "", "", "sizes"], **attributes)], SIZES)


SIZES = {"sizes": np.array([1, 4, 16, 16], np.int64)}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (resize(mode="linear", antialias=1), "antialias=1"),
        (resize(mode="cubic"), "mode=cubic"),
        (
            graph(
                [
                    node(
                        "Resize",
                        ["x", "", "", "sizes"],
                        coordinate_transformation_mode="half_pixel_symmetric",
                    )
                ],
                SIZES,
            ),
            "half_pixel_symmetric isn",
        ),
        (graph([node("NonZero", ["x"])], output=INT64), "depends on the data"),
        (graph([node("Unique", ["x"])]), "depends on the data"),
        (
            graph(
                [
                    node("Cast", ["x"], ["c"], "cast", to=INT64),
                    node("Reshape", ["x", "c"]),
                ],
                shape=(4,),
            ),
            "shape depends on the data, through 'c'",
        ),
        (
            graph(
                [
                    node("ReduceMax", ["x"], ["m"], "max", keepdims=0),
                    node("Cast", ["m"], ["e"], "cast", to=INT64),
                    node("Range", ["zero", "e", "one"]),
                ],
                {"zero": np.int64(0), "one": np.int64(1)},
                shape=(4,),
                output=INT64,
            ),
            "shape depends on the data, through 'e'",
        ),
        (graph([node("DFT", ["x"])]), "doesn't support"),
        (graph([node("Einstein", ["x"])]), "not in the operator table"),
        (graph([node("RandomNormalLike", ["x"])]), "not deterministic"),
        (
            graph([helper.make_node("Gelu", ["x"], ["y"], name="bad", domain="com.microsoft")]),
            "com.microsoft",
        ),
        (graph([node("Transpose", ["x"], perm=[0, 3, 1, 2])], kind=UINT8, output=UINT8), "'x' is UINT8"),
        (graph([node("Relu", ["x"])], kind=TensorProto.DOUBLE, output=TensorProto.DOUBLE), "'x' is FP64"),
        (graph([node("Cast", ["x"], to=TensorProto.DOUBLE)], output=TensorProto.DOUBLE), "'y' is FP64"),
        (graph([node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])]), "first 1 output"),
        (
            graph([node("MaxPool", ["x"], kernel_shape=[2, 2], dilations=[2, 2])]),
            "dilations must be all ones",
        ),
        (
            graph([node("AveragePool", ["x"], kernel_shape=[2])], shape=("N", 4, 8)),
            "two- and three-dimensional",
        ),
        (
            graph(
                [
                    node("Shape", ["x"], ["s"], "shape"),
                    node("ReduceMean", ["x", "s"]),
                ]
            ),
            "'s' must be a constant",
        ),
        (graph([node("TopK", ["x", "k"], ["y", "i"])], {"k": np.array([4000], np.int64)}), "below 3840"),
        (graph([node("TopK", ["x", "k"], ["y", "i"], sorted=0)], {"k": np.array([4], np.int64)}), "sorted=0"),
        (graph([node("Relu", ["x"])], opset=7), "opset 7"),
        (graph([node("Relu", ["x"])], shape=("N", 4, "H", "W")), "only the batch dimension"),
        (graph([node("EyeLike", ["x"])], shape=("N", 4)), "fixed shape"),
    ],
)
def test_refused(model: onnx.ModelProto, reason: str, tmp_path: Path) -> None:
    found = check_graph(model)
    assert any(reason in str(v) for v in found), [str(v) for v in found]
    path = tmp_path / "bad.onnx"
    onnx.save(model, path)
    with pytest.raises(EngineError, match=r"bad\.onnx can't become a TensorRT engine: node '"):
        require_supported(path)


def test_the_violation_names_the_node() -> None:
    model = graph([node("Relu", ["x"], ["r"], "fine"), node("Det", ["r"], name="encoder/det")])
    (violation,) = check_graph(model)
    assert (violation.node, violation.operator) == ("encoder/det", "Det")
    assert "fine" not in str(violation)


def test_nodes_without_a_name_are_counted() -> None:
    model = graph([node("Relu", ["x"], ["r"], ""), node("Det", ["r"], name="")])
    assert check_graph(model)[0].node == "#1"


def test_a_shape_from_the_batch_is_no_data() -> None:
    """Reshape by a Shape of the input, what the exporter writes for a dynamic batch."""
    model = graph(
        [
            node("Cast", ["x"], ["f"], "cast", to=FLOAT),
            node("Shape", ["f"], ["s"], "shape", start=0, end=1),
            node("Concat", ["s", "rest"], ["t"], "concat", axis=0),
            node("Reshape", ["f", "t"], name="reshape"),
        ],
        {"rest": np.array([-1], np.int64)},
        kind=UINT8,
    )
    assert check_graph(model) == []


class Encoder(torch.nn.Module):
    """The kinds of layers of the vision encoder: uint8 input, convolution, attention, layer norm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 32, 8, 8)
        self.norm = torch.nn.LayerNorm(32)
        self.qkv = torch.nn.Linear(32, 96)
        self.out = torch.nn.Linear(32, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = (images.float() / 127.5 - 1).to(self.out.weight.dtype)
        x = self.patch(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        a = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        result: torch.Tensor = torch.nn.functional.gelu(self.out(a)) + x
        return result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(folder, checkpoint_config(300))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("side", sorted({side for mode in MODES.values() for side in mode.sides}))
@pytest.mark.parametrize(
    "settings",
    [GraphSettings.for_cpu(), GraphSettings.for_gpu(torch.float16), GraphSettings.for_gpu(torch.bfloat16)],
    ids=["cpu", "fp16", "bf16"],
)
def test_every_graph_of_an_export_passes(
    checkpoint: Checkpoint, tmp_path: Path, settings: GraphSettings, side: int
) -> None:
    path, weights = tmp_path / "vision.onnx", WeightFile(tmp_path / "vision.weights")
    write_vision_graph(
        path,
        weights,
        tensors=checkpoint,
        vision=checkpoint.architecture.vision,
        hidden_size=checkpoint.architecture.decoder.hidden_size,
        side=side,
        settings=settings,
    )
    weights.close()
    assert [str(v) for v in check_graph(path)] == []
    require_supported(path)


def test_a_graph_of_an_export_with_one_wrong_node_fails(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The check looks into the real graph: one attribute, one operator, one type at a time."""
    path, weights = tmp_path / "vision.onnx", WeightFile(tmp_path / "vision.weights")
    write_vision_graph(
        path,
        weights,
        tensors=checkpoint,
        vision=checkpoint.architecture.vision,
        hidden_size=checkpoint.architecture.decoder.hidden_size,
        side=512,
        settings=GraphSettings.for_gpu(torch.float16),
    )
    weights.close()
    model = onnx.load(path, load_external_data=False)
    victim = next(n for n in model.graph.node if n.op_type == "Gelu")
    victim.op_type = "Mish2"
    assert [v.node for v in check_graph(model)] == [victim.name]
    victim.op_type = "Gelu"
    victim.domain = "com.microsoft"
    assert victim.name in [v.node for v in check_graph(model)]
    victim.domain = ""
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[1].ClearField("dim_value")
    assert "only the batch dimension may be free" in [v.reason for v in check_graph(model)]


@pytest.mark.slow("exports a graph with the tracing exporter")
def test_what_a_tracing_exporter_writes() -> None:
    """Its operators pass but for one thing: it reads the free batch from the UINT8 input."""
    program = torch.onnx.export(
        Encoder().eval(),
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8),),
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=8)}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    found = check_graph(program.model_proto)
    assert {v.operator for v in found} == {"Shape"}
    assert all("'images' is UINT8" in v.reason for v in found)


def test_the_table_says_where_it_comes_from() -> None:
    table = operator_table()
    assert table["source"]
    assert table["rule"]
    low, high = (tuple(map(int, table["tensorrt"][k].split("."))) for k in ("lowest", "highest"))
    assert low <= (10, 14) <= high, "the pinned container's TensorRT must lie inside"
    listed = [*table["operators"], *table["data_dependent"], *table["unsupported"], *table["left_out"]]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("operator", sorted(operator_table()["operators"]))
def test_every_row_of_the_table_fits_the_onnx_standard(operator: str) -> None:
    """A mistyped attribute, index or type would never be looked at."""
    rules = operator_table()["operators"][operator]
    schema = onnx.defs.get_schema(operator, operator_table()["opset"][1])
    assert set(rules["types"]) <= {*ELEMENT_TYPES.values(), "FP8", "INT4"}
    names = {*rules.get("attributes", ()), *rules.get("ones", ()), *rules.get("forbidden_attributes", ())}
    assert names <= set(schema.attributes)
    indices = [
        *rules.get("shape_inputs", ()),
        *rules.get("constant_inputs", ()),
        *map(int, rules.get("below", ())),
    ]
    assert all(i < len(schema.inputs) for i in indices)
    assert set(rules) <= {
        "types",
        "attributes",
        "forbidden_attributes",
        "ones",
        "kernel_rank",
        "max_outputs",
        "constant_inputs",
        "shape_inputs",
        "static_input",
        "input_rank",
        "below",
        "from_uint8",
    }
