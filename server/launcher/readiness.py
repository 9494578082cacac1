"""The readiness check that Triton's own probe is not: a small page goes through the whole chain."""

from __future__ import annotations

import io

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from rtprune.errors import Unavailable

UNARY_MODEL = "deepseek_ocr"


def small_page() -> bytes:
    """A white 64 x 64 px PNG: the least that exercises every stage."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(buffer, "PNG")
    return buffer.getvalue()


def read_small_page(host: str, grpc_port: int, timeout: float = 60.0) -> str:
    """Read a small page through `deepseek_ocr` with one output token; returns the finish reason.

    Raises:
        Unavailable: the chain did not answer within `timeout` seconds or answered with an error.
    """
    image = triton.InferInput("IMAGE", [1], "BYTES")
    image.set_data_from_numpy(np.array([small_page()], dtype=np.object_))
    tokens = triton.InferInput("MAX_TOKENS", [1], "INT32")
    tokens.set_data_from_numpy(np.array([1], dtype=np.int32))
    try:
        with triton.InferenceServerClient(f"{host}:{grpc_port}") as client:
            answer = client.infer(
                UNARY_MODEL, [image, tokens], request_id="readiness", client_timeout=timeout
            )
    except InferenceServerException as error:
        raise Unavailable(f"The readiness check could not read a page: {error.message()}") from None
    reason = answer.as_numpy("FINISH_REASON")
    return reason[0].decode() if reason is not None else ""
