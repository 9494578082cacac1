"""Writes DeepSeek-OCR's vision encoder (SAM, CLIP, projector) as an ONNX graph for one input side.

The graph is written node by node instead of being traced: every shape but the batch is a constant in it, no
node computes one, position tables are baked in, and casts say where a half-precision graph computes wider.
Source of the computation: DeepSeek-OCR's deepencoder.py; transformers' `unlimited_ocr` is what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from export.checkpoint import Tensors
from export.family import PATCH, WINDOW, Vision
from export.onnx_graph import GraphWriter, WeightFile
from export.position_tables import one_hot, relative_positions, resize_positions
from rtprune.errors import InvalidInput
from rtprune.modes import BLOCK
from rtprune.vision.engines.base import INPUT, OUTPUT

SAM, CLIP, PROJECTOR = "model.sam_model", "model.vision_model", "model.projector.layers"
SAM_EPSILON, CLIP_EPSILON = 1e-6, 1e-5


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """How a graph computes.

    dtype: of weights and activations. LayerNorm and softmax compute in float32 whatever it is.
    score_bytes: largest block of attention scores at a time, 0 for all at once. Blocks keep a CPU's memory
        small (a 1280 px page of the published size has 2 GB of scores a layer); a GPU's fused attention
        never writes scores out, and blocks would keep it from fusing.
    relative_as_channels: put the relative positions into the product of queries and keys, as 2 x 80 more channels at
        1280 px, instead of adding them to the scores. Twice the work on a CPU; on a GPU the attention is a
        plain one then, without any tensor of the scores' size.
    """

    dtype: torch.dtype = torch.float32
    score_bytes: int = 64 * 2**20
    relative_as_channels: bool = False

    @classmethod
    def for_cpu(cls) -> GraphSettings:
        """Float32, in blocks."""
        return cls()

    @classmethod
    def for_gpu(cls, dtype: torch.dtype) -> GraphSettings:
        """Half precision, attention in one piece."""
        return cls(dtype, score_bytes=0, relative_as_channels=True)


def write_vision_graph(
    path: Path,
    weights: WeightFile,
    *,
    tensors: Tensors,
    vision: Vision,
    hidden_size: int,
    side: int,
    settings: GraphSettings,
) -> None:
    """Write the graph of one input side.

    Its input is `images`, uint8 (batch, side, side, 3), RGB; its output `tokens`, float32
    (batch, (side / 64)^2, hidden_size). Raises InvalidInput for a weight beyond the range of `settings.dtype`.
    """
    graph = GraphWriter(f"vision_{side}", weights)
    _VisionWriter(graph, tensors, vision, side, settings).write(hidden_size)
    graph.save(path)


class _VisionWriter:
    """Activations between layers are matrices (batch * positions, channels), so that every linear is one Gemm."""

    def __init__(
        self, graph: GraphWriter, tensors: Tensors, vision: Vision, side: int, settings: GraphSettings
    ) -> None:
        self.g, self.tensors, self.side, self.settings = graph, tensors, side, settings
        self.sam, self.clip = vision.width.sam, vision.width.clip
        self.dtype = settings.dtype
        self.grid = side // PATCH
        self.token_count = (side // BLOCK) ** 2

    def write(self, hidden_size: int) -> None:
        g = self.g
        images = g.input(INPUT, torch.uint8, ["batch", self.side, self.side, 3])
        sam = self.write_sam(images)
        clip = self.write_clip(sam)
        both = g.op("Concat", clip, sam, scope="projector", axis=-1)
        tokens = self.linear(both, PROJECTOR, "projector")
        tokens = self.reshape(
            self.cast(tokens, torch.float32, "projector"), "projector", -1, self.token_count, hidden_size
        )
        g.output(tokens, OUTPUT, torch.float32, ["batch", self.token_count, hidden_size])

    # SAM

    def write_sam(self, images: str) -> str:
        """Return SAM's map as a matrix (batch * tokens, CLIP's width)."""
        g, grid, width = self.g, self.grid, self.sam.width
        # (x / 255 - 0.5) / 0.5
        x = g.op("Cast", images, scope="normalise", to=1)
        x = g.op("Mul", x, g.scalar(2 / 255, torch.float32), scope="normalise")
        x = g.op("Sub", x, g.scalar(1.0, torch.float32), scope="normalise")
        x = g.op("Transpose", x, scope="normalise", perm=[0, 3, 1, 2])
        x = self.cast(x, self.dtype, "normalise")
        patches = f"{SAM}.patch_embed.proj"
        x = g.op(
            "Conv",
            x,
            self.stored(f"{patches}.weight"),
            self.stored(f"{patches}.bias"),
            scope="sam/patches",
            kernel_shape=[PATCH, PATCH],
            strides=[PATCH, PATCH],
        )
        x = g.op("Transpose", x, scope="sam/patches", perm=[0, 2, 3, 1])
        table = self.made(f"{SAM}.pos_embed@{grid}", lambda: self.sam_positions())
        x = self.reshape(g.op("Add", x, table, scope="sam/patches"), "sam/patches", -1, width)
        for index in range(self.sam.layers):
            x = self.sam_block(x, index)
        return self.sam_neck(x)

    def sam_positions(self) -> torch.Tensor:
        """The absolute position table at this grid, (1, grid, grid, width)."""
        return resize_positions(self.tensors.read(f"{SAM}.pos_embed").float(), self.grid)

    def sam_block(self, x: str, index: int) -> str:
        name, scope = f"{SAM}.blocks.{index}", f"sam/{index}"
        windowed = index not in self.sam.global_attn_indexes
        y = self.layer_norm(x, f"{name}.norm1", SAM_EPSILON, scope)
        if windowed:
            y = self.to_windows(y, scope)
        y = self.sam_attention(y, name, WINDOW if windowed else self.grid, scope)
        if windowed:
            y = self.from_windows(y, scope)
        x = self.g.op("Add", x, y, scope=scope)
        y = self.layer_norm(x, f"{name}.norm2", SAM_EPSILON, scope)
        y = self.g.op("Gelu", self.linear(y, f"{name}.mlp.lin1", scope), scope=scope)
        return self.g.op("Add", x, self.linear(y, f"{name}.mlp.lin2", scope), scope=scope)

    def to_windows(self, x: str, scope: str) -> str:
        """Cut into windows, padded with zeros at the right and the bottom; the padding is attended to."""
        g, grid, width = self.g, self.grid, self.sam.width
        count = -(-grid // WINDOW)
        x = self.reshape(x, scope, -1, grid, grid, width)
        missing = count * WINDOW - grid
        if missing:
            x = g.op("Pad", x, g.ints(0, 0, 0, 0, 0, missing, missing, 0), scope=scope)
        x = self.reshape(x, scope, -1, count, WINDOW, count, WINDOW, width)
        return self.reshape(g.op("Transpose", x, scope=scope, perm=[0, 1, 3, 2, 4, 5]), scope, -1, width)

    def from_windows(self, x: str, scope: str) -> str:
        g, grid, width = self.g, self.grid, self.sam.width
        count = -(-grid // WINDOW)
        x = self.reshape(x, scope, -1, count, count, WINDOW, WINDOW, width)
        x = g.op("Transpose", x, scope=scope, perm=[0, 1, 3, 2, 4, 5])
        x = self.reshape(x, scope, -1, count * WINDOW, count * WINDOW, width)
        if count * WINDOW != grid:
            x = g.op("Slice", x, g.ints(0, 0), g.ints(grid, grid), g.ints(1, 2), scope=scope)
        return self.reshape(x, scope, -1, width)

    def sam_attention(self, x: str, name: str, side: int, scope: str) -> str:
        """Attention over `side` x `side` positions with decomposed relative positions (MViTv2, section 4.1)."""
        g, heads, n = self.g, self.sam.heads, side * side
        head = self.sam.width // heads
        query, key, value = self.split_heads(x, f"{name}.attn.qkv", n, heads, scope)
        # The query is scaled already; the relative positions want it as it was.
        rows = self.made(
            f"{name}.rel_pos_h@{side}",
            lambda: relative_positions(self.tensors.read(f"{name}.attn.rel_pos_h"), side) * math.sqrt(head),
        )
        columns = self.made(
            f"{name}.rel_pos_w@{side}",
            lambda: relative_positions(self.tensors.read(f"{name}.attn.rel_pos_w"), side) * math.sqrt(head),
        )
        grid = self.reshape(query, scope, -1, heads, side, side, head)
        by_row = g.op("MatMul", grid, rows, scope=f"{scope}/rows")
        turned = g.op("Transpose", grid, scope=f"{scope}/columns", perm=[0, 1, 3, 2, 4])
        by_column = g.op("MatMul", turned, columns, scope=f"{scope}/columns")
        by_column = g.op("Transpose", by_column, scope=f"{scope}/columns", perm=[0, 1, 3, 2, 4])
        by_row = self.reshape(by_row, scope, -1, heads, n, side)
        by_column = self.reshape(by_column, scope, -1, heads, n, side)
        if self.settings.relative_as_channels:
            query = g.op("Concat", query, by_row, by_column, scope=scope, axis=-1)
            # (channels, keys): row r of the first half is 1 at the keys of grid row r, then the same for columns.
            key = g.op("Pad", key, g.ints(0, 0, 0, 0, 0, 0, 2 * side, 0), scope=scope)
            key = g.op(
                "Add", key, self.made(f"sam.one_hot@{side}+{head}", lambda: one_hot(side, head)), scope=scope
            )
            context = g.op(
                "MatMul", self.softmax(g.op("MatMul", query, key, scope=scope), scope), value, scope=scope
            )
        else:
            context = self.sam_context(query, key, value, by_row, by_column, side, scope)
        return self.linear(self.merge_heads(context, heads * head, scope), f"{name}.attn.proj", scope)

    def sam_context(
        self, query: str, key: str, value: str, by_row: str, by_column: str, side: int, scope: str
    ) -> str:
        """softmax(query key + relative positions) value, block of queries by block."""
        g, heads, n = self.g, self.sam.heads, side * side
        blocks = block_count(side, heads * n * n * 4, self.settings.score_bytes)
        split = [[tensor] for tensor in (query, by_row, by_column)]
        if blocks > 1:
            split = [
                g.ops("Split", tensor, scope=scope, outputs=blocks, axis=2, num_outputs=blocks)
                for tensor in (query, by_row, by_column)
            ]
        rows, parts = n // blocks, []
        for block_query, block_row, block_column in zip(*split, strict=True):
            scores = g.op("MatMul", block_query, key, scope=scope)
            bias = g.op(
                "Add",
                self.reshape(block_row, scope, -1, heads, rows, side, 1),
                self.reshape(block_column, scope, -1, heads, rows, 1, side),
                scope=scope,
            )
            scores = g.op("Add", scores, self.reshape(bias, scope, -1, heads, rows, n), scope=scope)
            parts.append(g.op("MatMul", self.softmax(scores, scope), value, scope=scope))
        return g.op("Concat", *parts, scope=scope, axis=2) if blocks > 1 else parts[0]

    def sam_neck(self, x: str) -> str:
        g, grid, scope = self.g, self.grid, "sam/neck"
        channels = self.sam.out_chans
        first = self.made(f"{SAM}.neck.0", lambda: self.tensors.read(f"{SAM}.neck.0.weight")[:, :, 0, 0].T)
        x = g.op("MatMul", x, first, scope=scope)
        x = self.layer_norm(x, f"{SAM}.neck.1", SAM_EPSILON, scope)
        x = g.op(
            "Transpose", self.reshape(x, scope, -1, grid, grid, channels), scope=scope, perm=[0, 3, 1, 2]
        )
        x = self.conv3(x, f"{SAM}.neck.2", scope, stride=1)
        x = g.op("Transpose", x, scope=scope, perm=[0, 2, 3, 1])
        x = self.layer_norm(x, f"{SAM}.neck.3", SAM_EPSILON, scope)
        x = g.op("Transpose", x, scope=scope, perm=[0, 3, 1, 2])
        x = self.conv3(x, f"{SAM}.net_2", scope, stride=2)
        x = self.conv3(x, f"{SAM}.net_3", scope, stride=2)
        x = g.op("Transpose", x, scope=scope, perm=[0, 2, 3, 1])
        return self.reshape(x, scope, -1, self.clip.width)

    def conv3(self, x: str, name: str, scope: str, *, stride: int) -> str:
        return self.g.op(
            "Conv",
            x,
            self.stored(f"{name}.weight"),
            scope=scope,
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[stride, stride],
        )

    # CLIP

    def write_clip(self, sam: str) -> str:
        """Return CLIP's tokens without the class token, (batch * tokens, width)."""
        g, width, n = self.g, self.clip.width, self.token_count + 1
        scope = "clip/embeddings"
        x = self.reshape(sam, scope, -1, self.token_count, width)
        # An empty place for the class token, which is a part of the table: no node has to know the batch.
        x = g.op("Pad", x, g.ints(0, 1, 0, 0, 0, 0), scope=scope)
        x = g.op(
            "Add", x, self.made(f"{CLIP}.positions@{self.token_count}", self.clip_positions), scope=scope
        )
        x = self.reshape(x, scope, -1, width)
        x = self.layer_norm(x, f"{CLIP}.pre_layrnorm", CLIP_EPSILON, scope)
        for index in range(self.clip.layers):
            x = self.clip_layer(x, index)
        x = self.reshape(x, "clip", -1, n, width)
        x = g.op("Slice", x, g.ints(1), g.ints(n), g.ints(1), scope="clip")
        return self.reshape(x, "clip", -1, width)

    def clip_positions(self) -> torch.Tensor:
        """Class token and position table at this size, (1, 1 + tokens, width)."""
        table = self.tensors.read(f"{CLIP}.embeddings.position_embedding.weight").float()
        grid = math.isqrt(len(table) - 1)
        patches = resize_positions(table[1:].reshape(1, grid, grid, -1), self.side // BLOCK)
        first = table[:1] + self.tensors.read(f"{CLIP}.embeddings.class_embedding").float()
        return torch.cat([first, patches.reshape(self.token_count, -1)])[None]

    def clip_layer(self, x: str, index: int) -> str:
        g, heads, scope = self.g, self.clip.heads, f"clip/{index}"
        name = f"{CLIP}.transformer.layers.{index}"
        y = self.layer_norm(x, f"{name}.layer_norm1", CLIP_EPSILON, scope)
        query, key, value = self.split_heads(
            y, f"{name}.self_attn.qkv_proj", self.token_count + 1, heads, scope
        )
        y = self.softmax(g.op("MatMul", query, key, scope=scope), scope)
        y = self.merge_heads(g.op("MatMul", y, value, scope=scope), self.clip.width, scope)
        x = g.op("Add", x, self.linear(y, f"{name}.self_attn.out_proj", scope), scope=scope)
        y = self.layer_norm(x, f"{name}.layer_norm2", CLIP_EPSILON, scope)
        y = self.linear(y, f"{name}.mlp.fc1", scope)
        # quick_gelu
        gate = g.op("Sigmoid", g.op("Mul", y, g.scalar(1.702, self.dtype), scope=scope), scope=scope)
        y = g.op("Mul", y, gate, scope=scope)
        return g.op("Add", x, self.linear(y, f"{name}.mlp.fc2", scope), scope=scope)

    # What both have

    def split_heads(self, x: str, name: str, n: int, heads: int, scope: str) -> tuple[str, str, str]:
        """Queries (scaled), keys and values: (groups, heads, n, head), (groups, heads, head, n), as the first."""
        width = self.tensors.shape(f"{name}.weight")[1]
        head = width // heads
        parts = []
        for index, (letter, perm) in enumerate(
            (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        ):
            factor = head**-0.5 if letter == "q" else 1.0
            x_part = self.linear(x, name, f"{scope}/{letter}", part=(index, factor))
            x_part = self.reshape(x_part, f"{scope}/{letter}", -1, n, heads, head)
            parts.append(self.g.op("Transpose", x_part, scope=f"{scope}/{letter}", perm=perm))
        return parts[0], parts[1], parts[2]

    def merge_heads(self, x: str, width: int, scope: str) -> str:
        return self.reshape(self.g.op("Transpose", x, scope=scope, perm=[0, 2, 1, 3]), scope, -1, width)

    def linear(self, x: str, name: str, scope: str, part: tuple[int, float] | None = None) -> str:
        """x W^T + b; `part`: which third of the rows (queries, keys, values), and what they are multiplied with."""
        index, factor = part or (0, 1.0)
        suffix = f"[{index}]" if part else ""

        def load(kind: str) -> torch.Tensor:
            tensor = self.tensors.read(f"{name}.{kind}")
            if part:
                tensor = tensor.chunk(3)[index].float() * factor
            return tensor.T if kind == "weight" else tensor

        weight = self.made(f"{name}.weight{suffix}", lambda: load("weight"))
        bias = self.made(f"{name}.bias{suffix}", lambda: load("bias"))
        return self.g.op("Gemm", x, weight, bias, scope=scope)

    def layer_norm(self, x: str, name: str, epsilon: float, scope: str) -> str:
        wide = torch.float32
        x = self.cast(x, wide, scope)
        weight = self.made(f"{name}.weight@wide", lambda: self.tensors.read(f"{name}.weight"), wide)
        bias = self.made(f"{name}.bias@wide", lambda: self.tensors.read(f"{name}.bias"), wide)
        x = self.g.op("LayerNormalization", x, weight, bias, scope=scope, axis=-1, epsilon=epsilon)
        return self.cast(x, self.dtype, scope)

    def softmax(self, x: str, scope: str) -> str:
        x = self.g.op("Softmax", self.cast(x, torch.float32, scope), scope=scope, axis=-1)
        return self.cast(x, self.dtype, scope)

    def cast(self, x: str, dtype: torch.dtype, scope: str) -> str:
        """Cast, where the graph's own type isn't the wanted one."""
        if self.dtype == torch.float32:
            return x
        element = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}[dtype]
        return self.g.op("Cast", x, scope=scope, to=element)

    def reshape(self, x: str, scope: str, *shape: int) -> str:
        return self.g.op("Reshape", x, self.g.ints(*shape), scope=scope)

    def stored(self, name: str) -> str:
        """A tensor of the checkpoint as it stands."""
        return self.made(name, lambda: self.tensors.read(name))

    def made(self, name: str, make: Callable[[], torch.Tensor], dtype: torch.dtype | None = None) -> str:
        """A constant that is computed once for all graphs. Raises InvalidInput beyond the range of its type."""
        if self.g.knows(name):
            return self.g.weight(name)
        tensor = make()
        cast = tensor.to(dtype or self.dtype)
        if not bool(torch.isfinite(cast).all()):
            raise InvalidInput(
                f"{name} holds {tensor.abs().max().item():.4g}, beyond {cast.dtype}; export in bfloat16."
            )
        return self.g.weight(name, cast)


def block_count(side: int, score_bytes: int, limit: int) -> int:
    """The smallest number of equal blocks of whole rows of a `side` x `side` grid with scores of at most `limit` bytes.

    score_bytes: of all of them. 1 for no limit, and `side`, a row each, where not even that is enough.
    """
    if limit <= 0:
        return 1
    fitting = (n for n in range(1, side + 1) if side % n == 0 and score_bytes / n <= limit)
    return next(fitting, side)
