"""Takes a graph's shapes from its cast input: TensorRT has no Shape layer for UINT8 tensors."""

from __future__ import annotations

import onnx


def take_shapes_after_cast(model: onnx.ModelProto) -> int:
    """Let every `Shape` of a UINT8 input read that input's `Cast` instead; returns how many were changed.

    A cast keeps the shape, so the graph computes what it did. The exporter writes such a `Shape` wherever the
    batch is free, because the batch is a symbol of the input. Raises ValueError for an input that isn't cast.
    """
    graph = model.graph
    uint8 = {i.name for i in graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    shapes = [n for n in graph.node if n.op_type == "Shape" and n.input[0] in uint8]
    casts = {n.input[0]: n for n in reversed(graph.node) if n.op_type == "Cast" and n.input[0] in uint8}
    for node in shapes:
        if node.input[0] not in casts:
            raise ValueError(f"The UINT8 input {node.input[0]!r} is never cast, so its shape can't be read.")
        node.input[0] = casts[node.input[0]].output[0]
    if shapes:
        # The cast has to come before its new readers.
        first = list(casts.values())
        rest = [n for n in graph.node if all(n is not c for c in first)]
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (*first, *rest)]
        del graph.node[:]
        graph.node.extend(nodes)
    return len(shapes)
