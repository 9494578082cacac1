"""Every tensor of the endpoints and between the models, once: name, type, shape, default, a line of meaning.

The models' `config.pbtxt` and the README's two tables are held to it by a test (`python -m rtprune.contract` prints the
tables), and the models read and answer through it. The client has a copy of the endpoints' part, held equal by a test.
"""

from __future__ import annotations

import sys
from typing import NamedTuple


class Tensor(NamedTuple):
    """One tensor.

    Attributes:
        name: on the wire.
        dtype: as Triton's clients write it: BYTES, BOOL, UINT8, INT32, FP32, FP64.
        shape: dimensions of one request; -1 is any length.
        default: what an input that is left out stands for, None where it must be given or is an output.
        meaning: for a reader of the README; units where there are any.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    default: str | None
    meaning: str


DEFAULT_PROMPT = "<image>\n<|grounding|>Convert the document to markdown."

DYNAMIC = -1
"""The RETENTION that asks for RTPrune's own: 1 - phi2 * (1 - rho), chosen for each page."""

TIMINGS = ("preprocess", "vision", "rtprune", "queue", "first_token", "decode", "total")
"""Seconds. The first token and the total count from the request's arrival, the others are each stage's own."""

LAYOUT = ("side", "tile_columns", "tile_rows", "width", "height", "left", "top", "scale")
"""What a client needs to draw on the page; `rtprune.preprocess.views.Views` says how."""

FINISH_REASONS = ("stop", "length", "repetition", "cancelled", "timeout")
STATUSES = ("INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL")

# The endpoints
IMAGE = Tensor("IMAGE", "BYTES", (1,), None, "an encoded image, raw or base64")
PROMPT = Tensor(
    "PROMPT", "BYTES", (1,), f"`{DEFAULT_PROMPT}`".replace("\n", "\\n"), "text with one `<image>`"
)
MODE = Tensor("MODE", "BYTES", (1,), "`RTPRUNE_MODE`, large", "tiny, small, base, large, gundam")
RETENTION = Tensor(
    "RETENTION",
    "FP32",
    (1,),
    "`RTPRUNE_RETENTION`, auto",
    f"share of content tokens to keep, above 0; 1 = no pruning, {DYNAMIC} = dynamic, by the page",
)
MAX_TOKENS = Tensor("MAX_TOKENS", "INT32", (1,), "`RTPRUNE_MAX_TOKENS`, 4096", "output tokens at most")
NO_REPEAT_NGRAM = Tensor("NO_REPEAT_NGRAM", "INT32", (2,), "30, 90", "n, window in tokens; n = 0 is off")
TIME_LIMIT = Tensor("TIME_LIMIT", "FP32", (1,), "`RTPRUNE_TIME_LIMIT`, 300", "seconds, queueing included")

TEXT = Tensor("TEXT", "BYTES", (1,), None, "the text, or the next piece of it, always whole characters")
FINISH_REASON = Tensor(
    "FINISH_REASON", "BYTES", (1,), None, f"empty until the last; {', '.join(FINISH_REASONS)}"
)
TEXT_LENGTH = Tensor(
    "TEXT_LENGTH",
    "INT32",
    (1,),
    None,
    "characters of the whole text to keep; the repetition guard cuts a looping tail this way",
)
TOKENS = Tensor("TOKENS", "INT32", (3,), None, "visual tokens before pruning, after it; output tokens")
KEPT = Tensor("KEPT", "INT32", (-1,), None, "which positions of the unpruned sequence were kept, ascending")
LAYOUT_TENSOR = Tensor(
    "LAYOUT",
    "INT32",
    (8,),
    None,
    "global side, tile columns, tile rows, page width and height, padding left and top, scale x 10,000",
)
TIMINGS_TENSOR = Tensor(
    "TIMINGS",
    "FP32",
    (7,),
    None,
    "seconds of preprocess, vision, rtprune, decoder queue, first token, decode, total",
)
MODEL = Tensor("MODEL", "BYTES", (1,), None, "the checkpoint's name, as its `config.json` says")

INPUTS = (IMAGE, PROMPT, MODE, RETENTION, MAX_TOKENS, NO_REPEAT_NGRAM, TIME_LIMIT)
OUTPUTS = (TEXT, FINISH_REASON, TEXT_LENGTH, TOKENS, KEPT, LAYOUT_TENSOR, TIMINGS_TENSOR, MODEL)

# Between the models
ARRIVAL = Tensor("ARRIVAL", "FP64", (1,), "now", "CLOCK_MONOTONIC seconds when an endpoint saw the request")
GLOBAL_VIEW = Tensor("GLOBAL_VIEW", "UINT8", (-1, -1, 3), None, "the page as one square, RGB")
TILES = Tensor("TILES", "UINT8", (-1, 640, 640, 3), None, "tiles, row by row, RGB; may be none")
TILE_GRID = Tensor("TILE_GRID", "INT32", (2,), None, "columns and rows of tiles")
TEXT_DENSITY = Tensor("TEXT_DENSITY", "FP32", (1,), None, "rho of the global view, 0 to 1")
KEPT_SHARE = Tensor("KEPT_SHARE", "FP32", (1,), None, "the retention; 0 = dynamic")
PROMPT_TEXT = Tensor("PROMPT_TEXT", "BYTES", (1,), None, "the checked prompt")
SAMPLING = Tensor("SAMPLING", "INT32", (3,), None, "output tokens at most, n and window of the n-gram rule")
TIMES = Tensor(
    "TIMES",
    "FP64",
    (-1,),
    None,
    "arrival and deadline, CLOCK_MONOTONIC; then the seconds of each stage passed",
)
VISUAL_TOKENS = Tensor("VISUAL_TOKENS", "FP32", (-1, -1), None, "visual tokens (L, hidden) before pruning")
KEPT_TOKENS = Tensor("KEPT_TOKENS", "FP32", (-1, -1), None, "visual tokens (kept, hidden), merged")
INPUT_IDS = Tensor("INPUT_IDS", "INT32", (-1,), None, "the prompt; visual token i is vocab_size + i")
COUNTS = Tensor("COUNTS", "INT32", (2,), None, "visual tokens before and after pruning")
STREAM = Tensor("STREAM", "BOOL", (1,), "true", "whether to send pieces as they come, or only the whole")
STREAM_ID = Tensor("STREAM_ID", "BYTES", (1,), "none", "name for a later CANCEL; unique among open requests")
CANCEL = Tensor(
    "CANCEL", "BYTES", (1,), "none", "control call: the STREAM_ID to cancel; nothing else is read"
)

DECODER_PROMPT = (INPUT_IDS, KEPT_TOKENS, KEPT, COUNTS, LAYOUT_TENSOR, SAMPLING, TIMES)
"""What `encode` answers and the decoder takes."""


class Model(NamedTuple):
    """A model's inputs and outputs. `optional`: names of inputs that a request may leave out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    optional: frozenset[str]


def _model(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Model:
    # Without an image the models say so; Triton would talk of a deadlock in its ensemble.
    optional = (tensor.name for tensor in inputs if tensor.default is not None or tensor is IMAGE)
    return Model(inputs, outputs, frozenset(optional))


def _batch_of_one(*tensors: Tensor) -> tuple[Tensor, ...]:
    """With the batch dimension that `vision`, which batches, adds to what it takes and gives."""
    return tuple(tensor._replace(shape=(1, *tensor.shape)) for tensor in tensors)


_TO_VISION = (GLOBAL_VIEW, TILES, TILE_GRID, TIMES)
_FROM_VISION = (VISUAL_TOKENS, TIMES)
_TO_RTPRUNE = (LAYOUT_TENSOR, TEXT_DENSITY, KEPT_SHARE, PROMPT_TEXT)

MODELS: dict[str, Model] = {
    "deepseek_ocr": _model(INPUTS, OUTPUTS),
    "deepseek_ocr_stream": _model(INPUTS, OUTPUTS),
    "encode": _model((*INPUTS, ARRIVAL), DECODER_PROMPT),
    "preprocess": _model((*INPUTS, ARRIVAL), (*_batch_of_one(*_TO_VISION), *_TO_RTPRUNE, SAMPLING)),
    "vision": _model(_TO_VISION, _FROM_VISION),
    "rtprune": _model(
        (*_batch_of_one(*_FROM_VISION), *_TO_RTPRUNE), (INPUT_IDS, KEPT_TOKENS, KEPT, COUNTS, TIMES)
    ),
    "generate": _model(DECODER_PROMPT, OUTPUTS),
    # All optional, for a control call has none of the prompt; the model says which one is missing.
    "decoder": Model(
        (*DECODER_PROMPT, STREAM_ID, STREAM, CANCEL),
        OUTPUTS,
        frozenset(tensor.name for tensor in (*DECODER_PROMPT, STREAM_ID, STREAM, CANCEL)),
    ),
}


def tables() -> str:
    """The README's two tables of the endpoints, in Markdown."""
    lines = ["| input | type | default |", "|---|---|---|"]
    for tensor in INPUTS:
        lines.append(f"| `{tensor.name}` | {_described(tensor)} | {tensor.default or 'required'} |")
    lines += ["", "| output | type |", "|---|---|"]
    lines += [f"| `{tensor.name}` | {_described(tensor)} |" for tensor in OUTPUTS]
    return "\n".join(lines).replace("<|grounding|>", "<\\|grounding\\|>") + "\n"


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]: {tensor.meaning}"


if __name__ == "__main__":
    sys.stdout.write(tables())
