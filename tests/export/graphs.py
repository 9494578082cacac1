"""A vision graph in miniature: uint8 images in, one token for each 64 x 64 block out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rtprune.vision.engines.base import INPUT, OUTPUT


def write_graph(path: Path, side: int = 128, hidden: int = 8, kind: int = TensorProto.FLOAT) -> Path:
    """Save a graph that a TensorRT build takes: (B, side, side, 3) -> (B, (side / 64)^2, hidden) in `kind`."""
    weights = np.random.default_rng(0).normal(0, 0.01, (hidden, 3, 64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [INPUT], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["f", "scale"], ["n"]),
        helper.make_node("Transpose", ["n"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["chw", "w"], ["c"], kernel_shape=[64, 64], strides=[64, 64]),
        helper.make_node("Reshape", ["c", "flat"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["t"], [OUTPUT], to=kind),
    ]
    constants = {
        "scale": np.float32(127.5),
        "w": weights,
        "flat": np.array([0, hidden, (side // 64) ** 2], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "vision",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", side, side, 3])],
        [helper.make_tensor_value_info(OUTPUT, kind, ["batch", (side // 64) ** 2, hidden])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
