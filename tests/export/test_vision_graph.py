"""The vision graphs against transformers' unlimited_ocr classes, for every size and precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.checkpoint import Checkpoint
from export.onnx_graph import WeightFile
from export.operators import check_graph
from export.verify import TOLERANCE, relative_error
from export.vision_graph import GraphSettings, block_count, write_vision_graph
from rtprune.errors import InvalidInput
from rtprune.vision.engines.base import INPUT, OUTPUT
from tests.export.conftest import Comparison

pytestmark = pytest.mark.slow("runs transformers' encoder beside the graphs")

SIDES = (512, 640, 1024, 1280)
SETTINGS = {
    "fp32": GraphSettings.for_cpu(),
    "fp16": GraphSettings.for_gpu(torch.float16),
    "bf16": GraphSettings.for_gpu(torch.bfloat16),
}


def write(folder: Path, checkpoint: Checkpoint, sides: tuple[int, ...], settings: GraphSettings) -> Path:
    weights = WeightFile(folder / "weights")
    for side in sides:
        write_vision_graph(
            folder / f"{side}.onnx",
            weights,
            tensors=checkpoint,
            vision=checkpoint.architecture.vision,
            hidden_size=checkpoint.architecture.decoder.hidden_size,
            side=side,
            settings=settings,
        )
    weights.close()
    return folder


@pytest.fixture(scope="module")
def graphs(opened: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write(tmp_path_factory.mktemp(name), opened, SIDES, settings)
        for name, settings in SETTINGS.items()
    }


def run(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokens: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
    return tokens


def widened(path: Path) -> Path:
    """The same BF16 graph with its arithmetic in FP32, because ONNX Runtime has no BF16 on a CPU."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    wide = path.with_suffix(".wide.onnx")
    onnx.save(model, wide)
    return wide


# BF16 is computed in FP32 here, so that the smaller sizes say all there is to say.
@pytest.mark.parametrize(
    ("precision", "side"),
    [(p, s) for p in SETTINGS for s in SIDES if p != "bf16" or s <= 640],
)
def test_tokens_are_those_of_transformers(
    graphs: dict[str, Path], expected: Callable[[int], Comparison], side: int, precision: str
) -> None:
    images, tokens = expected(side)
    path = graphs[precision] / f"{side}.onnx"
    if precision == "bf16":
        path = widened(path)
    alone, together = run(path, images[:1]), run(path, images)
    assert together.dtype == np.float32
    assert together.shape == (3, (side // 64) ** 2, tokens.shape[-1])
    assert relative_error(alone, tokens[:1]) < TOLERANCE[precision]
    assert relative_error(together, tokens) < TOLERANCE[precision]
    # And no single token is off, which the norm over an image could hide.
    assert np.abs(together - tokens).max() < 4 * TOLERANCE[precision] * np.abs(tokens).max()


@pytest.mark.parametrize("precision", SETTINGS)
@pytest.mark.parametrize("side", SIDES)
def test_tensorrt_takes_the_graph(graphs: dict[str, Path], side: int, precision: str) -> None:
    path = graphs[precision] / f"{side}.onnx"
    assert check_graph(path) == []
    model = onnx.load(path, load_external_data=False)
    used = {node.op_type for node in model.graph.node}
    assert not used & {"Shape", "Resize", "Expand", "Einsum"}, "nothing is computed from a shape"
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    assert [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim] == ["batch", side, side, 3]


def test_half_precision_is_wide_where_it_has_to_be(graphs: dict[str, Path]) -> None:
    """LayerNorm and softmax read FP32; every product reads FP16."""
    model = onnx.shape_inference.infer_shapes(
        onnx.load(graphs["fp16"] / "640.onnx", load_external_data=False), strict_mode=True
    )
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert types[node.input[0]] == TensorProto.FLOAT, node.name
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            assert types[node.input[0]] == TensorProto.FLOAT16, node.name


def test_all_sizes_share_one_file_of_weights(graphs: dict[str, Path], opened: Checkpoint) -> None:
    """The encoder's weights are written once; only position tables come again with each size."""
    model = 4 * opened.parameters("model.sam_model.", "model.vision_model.", "model.projector.")
    assert (graphs["fp32"] / "weights").stat().st_size < 2 * model
    places: dict[str, set[str]] = {}
    for side in SIDES:
        for tensor in onnx.load(graphs["fp32"] / f"{side}.onnx", load_external_data=False).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                place = ",".join(f"{e.key}={e.value}" for e in tensor.external_data)
                places.setdefault(tensor.name, set()).add(place)
    assert all(len(found) == 1 for found in places.values())


def test_attention_in_blocks_is_attention_at_once(
    opened: Checkpoint, expected: Callable[[int], Comparison], tmp_path: Path
) -> None:
    images, tokens = expected(640)
    whole = write(tmp_path, opened, (640,), GraphSettings(score_bytes=0))
    at_once = run(whole / "640.onnx", images)
    (tmp_path / "blocks").mkdir()
    blocks = write(tmp_path / "blocks", opened, (640,), GraphSettings(score_bytes=2**20))
    names = [n.name for n in onnx.load(blocks / "640.onnx", load_external_data=False).graph.node]
    assert sum("sam/1/Softmax" in name for name in names) > 4, "the global layer works in blocks"
    assert relative_error(run(blocks / "640.onnx", images), at_once) < 1e-5
    assert relative_error(at_once, tokens) < TOLERANCE["fp32"]


def test_a_weight_beyond_half_precision_is_refused_by_name(opened: Checkpoint, tmp_path: Path) -> None:
    large = "model.sam_model.blocks.0.mlp.lin1.weight"

    class Large(Checkpoint):
        def read(self, name: str) -> torch.Tensor:
            return super().read(name) * (1e6 if name == large else 1)

    with pytest.raises(InvalidInput, match=f"{large} holds .* beyond torch.float16; export in bfloat16"):
        write(tmp_path, Large.open(opened.folder), (512,), SETTINGS["fp16"])


@given(side=st.integers(8, 80), heads=st.integers(1, 12), limit=st.integers(0, 2**28))
def test_blocks_divide_the_grid_and_fit(side: int, heads: int, limit: int) -> None:
    scores = heads * side**4 * 4
    blocks = block_count(side, scores, limit)
    assert side % blocks == 0
    if limit == 0:
        assert blocks == 1
    elif blocks < side:
        assert scores / blocks <= limit
