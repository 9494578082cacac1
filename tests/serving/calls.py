"""Calls of the server's endpoints with Triton's own clients: the contract, with nothing of ours in between."""

from __future__ import annotations

import base64
import json
import queue
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from numpy.typing import NDArray

from rtprune.contract import INPUTS
from tests.serving.running import RunningServer

NUMPY: dict[str, Any] = {"BYTES": np.object_, "FP32": np.float32, "INT32": np.int32}
DTYPES = {tensor.name: tensor.dtype for tensor in INPUTS}
FREE_OCR = "<image>\nFree OCR."


@dataclass
class Answer:
    """One page's answer, put together from however many responses it came in."""

    text: str = ""
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str:
        return str(self.outputs["FINISH_REASON"][0].decode())

    def add(self, result: Any, names: list[str]) -> None:
        found = {name: result.as_numpy(name) for name in names}
        self.outputs |= {name: value for name, value in found.items() if value is not None}
        piece = self.outputs["TEXT"][0].decode()
        self.pieces.append(piece)
        self.text += piece


def arrays(image: bytes, **options: Any) -> dict[str, NDArray[Any]]:
    """The inputs of a call as arrays: mode="tiny" becomes MODE, and so on."""
    found = {"IMAGE": np.array([image], dtype=np.object_)}
    for key, value in options.items():
        name = key.upper()
        value = value.encode() if isinstance(value, str) else value
        found[name] = np.array(
            value if isinstance(value, (list, tuple)) else [value], dtype=NUMPY[DTYPES[name]]
        )
    return found


def inputs(protocol: Any, image: bytes, **options: Any) -> list[Any]:
    """The inputs of a call for `protocol`, tritonclient's grpc or http module."""
    made = []
    for name, value in arrays(image, **options).items():
        tensor = protocol.InferInput(name, list(value.shape), DTYPES[name])
        tensor.set_data_from_numpy(value)
        made.append(tensor)
    return made


def names(result: Any) -> list[str]:
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    return [each["name"] if isinstance(each, dict) else each.name for each in outputs]


def unary(server: RunningServer, image: bytes, request_id: str = "", **options: Any) -> Answer:
    """`deepseek_ocr` over gRPC."""
    answer = Answer()
    with grpc.InferenceServerClient(server.grpc_url) as client:
        result = client.infer(
            "deepseek_ocr", inputs(grpc, image, **options), request_id=request_id, client_timeout=120
        )
        assert result.get_response().id == request_id
    answer.add(result, names(result))
    return answer


def unary_http(server: RunningServer, image: bytes, **options: Any) -> Answer:
    """`deepseek_ocr` over HTTP with binary tensors."""
    answer = Answer()
    with http.InferenceServerClient(server.http_url, network_timeout=120) as client:
        result = client.infer("deepseek_ocr", inputs(http, image, **options))
    answer.add(result, names(result))
    return answer


def stream(server: RunningServer, image: bytes, request_id: str = "", **options: Any) -> Answer:
    """`deepseek_ocr_stream` over a gRPC stream, to its end.

    Raises the InferenceServerException that the server sent, if it sent one.
    """
    answer = Answer()
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        client.async_stream_infer(
            "deepseek_ocr_stream",
            inputs(grpc, image, **options),
            request_id=request_id,
            enable_empty_final_response=True,
        )
        while True:
            result, error = results.get(timeout=120)
            if error is not None:
                raise error
            response = result.get_response()
            assert response.id == request_id
            if response.outputs:
                answer.add(result, names(result))
            if response.parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
    return answer


def generate(
    server: RunningServer, image: bytes, model: str = "deepseek_ocr", **options: Any
) -> dict[str, Any]:
    """HTTP `generate` with JSON and a base64 image. Returns the status beside the answer's fields."""
    body = {"IMAGE": base64.b64encode(image).decode()} | {
        key.upper(): value for key, value in options.items()
    }
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/{model}/generate", json.dumps(body).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
            fields: dict[str, Any] = json.load(response)
            return {"status": response.status} | fields
    except urllib.error.HTTPError as error:
        fields = json.load(error)
        return {"status": error.code} | fields


def generate_stream(server: RunningServer, image: bytes, **options: Any) -> list[dict[str, Any]]:
    """HTTP `generate_stream`: the server-sent events as dictionaries."""
    body = {"IMAGE": base64.b64encode(image).decode()} | {
        key.upper(): value for key, value in options.items()
    }
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/deepseek_ocr_stream/generate_stream",
        json.dumps(body).encode(),
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        lines = response.read().decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
