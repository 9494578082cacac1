"""Bad input at the endpoints: one clear sentence, the right status, no traceback, and the next request works."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from tests.serving import calls
from tests.serving.pages import BAD_IMAGES, BadImage, encode, picture, upright_cases
from tests.serving.running import RunningServer

pytestmark = pytest.mark.serving
GOOD = encode(picture(512, 512))

BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "huge"}, "MODE must be one of tiny, small, base, large, gundam"),
    ({"mode": ""}, "MODE must be one of"),
    ({"retention": 0.0}, "RETENTION must be above 0 and at most 1, or -1 for dynamic"),
    ({"retention": -0.5}, "RETENTION must be above 0 and at most 1, or -1 for dynamic"),
    ({"retention": 2.0}, "RETENTION must be above 0 and at most 1, or -1 for dynamic"),
    ({"retention": float("nan")}, "RETENTION must be above 0 and at most 1, or -1 for dynamic"),
    ({"max_tokens": 0}, "MAX_TOKENS must be from 1 to"),
    ({"max_tokens": -1}, "MAX_TOKENS must be from 1 to"),
    ({"max_tokens": 10**9}, "MAX_TOKENS must be from 1 to"),
    ({"no_repeat_ngram": [-1, 90]}, "NO_REPEAT_NGRAM must be"),
    ({"no_repeat_ngram": [30, 10]}, "NO_REPEAT_NGRAM must be"),
    ({"time_limit": 0.0}, "TIME_LIMIT must be above 0"),
    ({"time_limit": float("inf")}, "TIME_LIMIT must be above 0"),
    ({"prompt": "no picture"}, "<image> exactly once"),
    ({"prompt": "<image> and <image>"}, "<image> exactly once"),
    ({"prompt": "<image>\n<|det|>"}, "special token"),
    ({"prompt": "<image>\n<｜end▁of▁sentence｜>"}, "special token"),
    ({"prompt": "<image>" + "x" * 5000}, "at most 4096"),
    ({"prompt": b"<image>\xff"}, "not UTF-8"),
]


def good(server: RunningServer) -> None:
    assert calls.unary(server, GOOD, mode="tiny", max_tokens=2).reason


def check(error: InferenceServerException, sentence: str) -> None:
    assert "INVALID_ARGUMENT" in str(error.status())
    message = error.message()
    assert sentence in message
    assert "Traceback" not in message
    assert "\n" not in message.strip()


@pytest.mark.parametrize("bad", BAD_IMAGES, ids=lambda bad: bad.name)
def test_a_bad_image(ocr_server: RunningServer, bad: BadImage) -> None:
    mark = len(ocr_server.log())
    for endpoint in (calls.unary, calls.stream):
        with pytest.raises(InferenceServerException) as raised:
            endpoint(ocr_server, bad.data, mode="tiny", max_tokens=2)
        if endpoint is calls.unary:
            check(raised.value, bad.sentence)
        assert bad.sentence in raised.value.message()
    good(ocr_server)
    assert "Traceback" not in ocr_server.log_since(mark)


@pytest.mark.parametrize(("options", "sentence"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_a_bad_option(ocr_server: RunningServer, options: dict[str, Any], sentence: str) -> None:
    mark = len(ocr_server.log())
    with pytest.raises(InferenceServerException) as raised:
        calls.unary(ocr_server, GOOD, "", **{"mode": "tiny", "max_tokens": 2} | options)
    check(raised.value, sentence)
    good(ocr_server)
    assert "Traceback" not in ocr_server.log_since(mark)


def test_a_bad_image_over_http(ocr_server: RunningServer) -> None:
    answer = calls.generate(ocr_server, b"not an image", mode="tiny")
    assert answer["status"] == 400
    assert "not an image" in answer["error"]


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [("IMAGE", "INT32", [1]), ("IMAGE", "BYTES", [2]), ("PICTURE", "BYTES", [1]), ("MODE", "BYTES", [1])],
)
def test_a_wrong_tensor(ocr_server: RunningServer, name: str, kind: str, shape: list[int]) -> None:
    tensor = grpc.InferInput(name, shape, kind)
    values = np.zeros(shape, np.int32) if kind == "INT32" else np.array([GOOD] * shape[0], dtype=np.object_)
    tensor.set_data_from_numpy(values)
    client = grpc.InferenceServerClient(ocr_server.grpc_url)
    with client, pytest.raises(InferenceServerException) as raised:
        client.infer("deepseek_ocr", [tensor], client_timeout=60)
    assert "INVALID_ARGUMENT" in str(raised.value.status())
    good(ocr_server)


NAMES = "IMAGE, PROMPT, MODE, RETENTION, MAX_TOKENS, NO_REPEAT_NGRAM, TIME_LIMIT"
PAGE = base64.b64encode(GOOD).decode()


def refused(server: RunningServer, path: str, body: dict[str, Any]) -> str:
    """What a POST is refused with, as 400."""
    url = f"http://{server.http_url}/v2/models/{path}"
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60)
    assert raised.value.code == 400
    return str(json.loads(raised.value.read().removeprefix(b"data: "))["error"])


@pytest.mark.parametrize("path", ["deepseek_ocr/generate", "deepseek_ocr_stream/generate_stream"])
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"image": PAGE, "mode": "tiny"}, "The input 'image' is unknown: write IMAGE."),
        ({"IMAGE": PAGE, "Mode": "tiny"}, "The input 'Mode' is unknown: write MODE."),
        ({"IMAGE": PAGE, "max_tokens": 5}, "The input 'max_tokens' is unknown: write MAX_TOKENS."),
        ({"IMAGE": PAGE, "TEMPERATURE": 1}, f"The input 'TEMPERATURE' is unknown: there are {NAMES}."),
        ({"IMAGE": PAGE, "parameters": {"top_p": 1}}, f"The input 'top_p' is unknown: there are {NAMES}."),
        ({"MODE": "tiny"}, "The input IMAGE is missing."),
        ({}, "The input IMAGE is missing."),
    ],
)
def test_unknown_and_missing_names(
    ocr_server: RunningServer, path: str, body: dict[str, Any], sentence: str
) -> None:
    assert refused(ocr_server, path, body).endswith(f"INVALID_ARGUMENT: {sentence}")


def test_a_missing_image_over_the_tensor_protocol(ocr_server: RunningServer) -> None:
    mode = {"name": "MODE", "shape": [1], "datatype": "BYTES", "data": ["tiny"]}
    for inputs in ([mode], []):
        assert refused(ocr_server, "deepseek_ocr/infer", {"inputs": inputs}).endswith(
            "The input IMAGE is missing."
        )


def test_names_of_triton_s_own_are_let_through(ocr_server: RunningServer) -> None:
    body = {"IMAGE": PAGE, "MODE": "tiny", "MAX_TOKENS": 2, "id": "mine", "parameters": {"priority": 0}}
    url = f"http://{ocr_server.http_url}/v2/models/deepseek_ocr/generate"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as page:
        assert json.load(page)["FINISH_REASON"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"IMAGE": 7}', b'{"PICTURE": "x"}'])
def test_broken_json(ocr_server: RunningServer, body: bytes) -> None:
    url = f"http://{ocr_server.http_url}/v2/models/deepseek_ocr/generate"
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=60)
    assert raised.value.code in (400, 500)
    assert json.load(raised.value)["error"]
    good(ocr_server)


@pytest.mark.parametrize("name", ["16-bit grey PNG", "CMYK JPEG", "alpha", "EXIF-rotated", "animated GIF"])
def test_odd_but_good_images(ocr_server: RunningServer, name: str) -> None:
    answer = calls.unary(ocr_server, upright_cases()[name], mode="tiny", max_tokens=2)
    assert answer.outputs["LAYOUT"][3:5].tolist() == [320, 240]
