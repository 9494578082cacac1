"""The contract of the server's two endpoints, as the client needs it: every tensor once, with type and shape.

The server's own copy is `rtprune/contract.py`; a test holds both equal. `deepseek_ocr` (one answer) and
`deepseek_ocr_stream` (answers as they come) have the same tensors.
"""

from __future__ import annotations

from typing import NamedTuple


class Tensor(NamedTuple):
    """A tensor of the endpoints: `dtype` as Triton's clients write it, `shape` with -1 for any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]


# An input that is left out, all but the image, stands for the server's default.
IMAGE = Tensor("IMAGE", "BYTES", (1,))  # an encoded page image, raw or in base64
PROMPT = Tensor("PROMPT", "BYTES", (1,))  # with one <image> in it
MODE = Tensor("MODE", "BYTES", (1,))  # tiny, small, base, large or gundam
RETENTION = Tensor("RETENTION", "FP32", (1,))  # share of the content tokens to keep; 1 is pruning off
DYNAMIC = -1  # the RETENTION that lets the page decide
MAX_TOKENS = Tensor("MAX_TOKENS", "INT32", (1,))  # output tokens at most
NO_REPEAT_NGRAM = Tensor("NO_REPEAT_NGRAM", "INT32", (2,))  # n and window in tokens; n = 0 is off
TIME_LIMIT = Tensor("TIME_LIMIT", "FP32", (1,))  # seconds, queueing included

INPUTS = (IMAGE, PROMPT, MODE, RETENTION, MAX_TOKENS, NO_REPEAT_NGRAM, TIME_LIMIT)

TEXT = Tensor("TEXT", "BYTES", (1,))  # the whole text, or its next piece, in whole UTF-8 characters
FINISH_REASON = Tensor("FINISH_REASON", "BYTES", (1,))  # empty until the last answer
TEXT_LENGTH = Tensor(
    "TEXT_LENGTH", "INT32", (1,)
)  # characters that stay when the repetition guard cut the text
TOKENS = Tensor("TOKENS", "INT32", (3,))  # visual tokens before and after pruning; output tokens
KEPT = Tensor("KEPT", "INT32", (-1,))  # kept positions of the unpruned visual sequence, ascending
LAYOUT_TENSOR = Tensor("LAYOUT", "INT32", (8,))  # what the encoder saw of the page, in the order of LAYOUT
TIMINGS_TENSOR = Tensor("TIMINGS", "FP32", (7,))  # seconds, in the order of TIMINGS
MODEL = Tensor("MODEL", "BYTES", (1,))  # the checkpoint's name

OUTPUTS = (TEXT, FINISH_REASON, TEXT_LENGTH, TOKENS, KEPT, LAYOUT_TENSOR, TIMINGS_TENSOR, MODEL)

TIMINGS = ("preprocess", "vision", "rtprune", "queue", "first_token", "decode", "total")
LAYOUT = ("side", "tile_columns", "tile_rows", "width", "height", "left", "top", "scale")
FINISH_REASONS = ("stop", "length", "repetition", "cancelled", "timeout")
