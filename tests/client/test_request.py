"""Options -> tensors, answers -> results, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
from tritonclient.grpc import InferInput

from deepseek_ocr_client.contract import INPUTS, LAYOUT, LAYOUT_TENSOR, TIMINGS, TIMINGS_TENSOR
from deepseek_ocr_client.errors import InvalidRequest, ServerFailed
from deepseek_ocr_client.pages import Page
from deepseek_ocr_client.request import OcrOptions, RequestOptions, ResultBuilder, Retention, build_inputs
from deepseek_ocr_client.result import Timings
from deepseek_ocr_client.tags import Box


def answer(piece: str, reason: str = "", tokens: Sequence[int] = (273, 150, 7), **more: Any) -> Any:
    """An answer as tritonclient gives it."""
    texts = {"TEXT": piece, "FINISH_REASON": reason}
    outputs = {name: np.array([text.encode()], object) for name, text in texts.items()}
    return SimpleNamespace(as_numpy={**outputs, "TOKENS": np.array(tokens, np.int32), **more}.get)


FIRST: dict[str, Any] = {
    "KEPT": np.array([0, 5, 272], np.int32),
    "LAYOUT": np.array([1024, 0, 0, 999, 1998, 256, 0, 5120], np.int32),
}
LAST: dict[str, Any] = {"TIMINGS": np.arange(7, dtype=np.float32), "TEXT_LENGTH": np.array([4], np.int32)}


def test_only_what_is_asked_for_is_sent() -> None:
    [image] = build_inputs(b"png", OcrOptions(), InferInput)
    assert (image.name(), image.datatype(), image.shape()) == ("IMAGE", "BYTES", [1])
    options = OcrOptions("base", "<image>\nhé", 0.5, 100, (30, 90), 12.5)
    sent = {
        entry.name(): (entry.datatype(), entry.shape()) for entry in build_inputs(b"x", options, InferInput)
    }
    assert sent == {
        "IMAGE": ("BYTES", [1]),
        "PROMPT": ("BYTES", [1]),
        "MODE": ("BYTES", [1]),
        "RETENTION": ("FP32", [1]),
        "MAX_TOKENS": ("INT32", [1]),
        "NO_REPEAT_NGRAM": ("INT32", [2]),
        "TIME_LIMIT": ("FP32", [1]),
    }


@pytest.mark.parametrize(("retention", "sent"), [("dynamic", -1), ("off", 1), (1, 1), (0.5, 0.5), (-1, -1)])
def test_a_retention_may_be_a_word(retention: Retention, sent: float) -> None:
    image, tensor = build_inputs(b"png", OcrOptions(retention=retention), InferInput)
    assert (image.name(), tensor.name()) == ("IMAGE", "RETENTION")
    assert np.frombuffer(tensor._get_content(), np.float32) == [sent]


@pytest.mark.parametrize(
    "options",
    [
        {"retention": 0.0},
        {"retention": 1.5},
        {"retention": float("nan")},
        {"retention": -0.5},
        {"retention": "auto"},
        {"max_tokens": 0},
        {"time_limit": 0.0},
        {"time_limit": float("inf")},
        {"time_limit": float("nan")},
        {"no_repeat_ngram": (-1, 90)},
    ],
)
def test_impossible_options_are_refused_here(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        OcrOptions(**options)


def test_numbers_beyond_32_bits_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="32 bits"):
        build_inputs(b"x", OcrOptions(max_tokens=2**40), InferInput)


def test_a_stream_becomes_a_result() -> None:
    builder = ResultBuilder("id-1", OcrOptions())
    assert builder.add(answer("ab", **FIRST)) == "ab"
    assert builder.add(answer("")) == ""
    assert builder.add(answer("cd漢", "repetition", **LAST)) == "cd漢"
    result = builder.build()
    assert result.text == "abcd"  # the guard's cut, in characters
    assert result.model_text == "abcd漢"
    assert (result.visual_tokens, result.kept_tokens, result.output_tokens) == (273, 150, 7)
    assert result.kept.tolist() == [0, 5, 272]
    assert (result.layout.width, result.layout.height, result.layout.left) == (999, 1998, 256)
    assert result.timings is not None
    assert (result.timings.preprocess, result.timings.first_token, result.timings.total) == (0, 4, 6)
    assert not result.complete
    assert "repeat" in result.warning()


def test_regions_have_pixels_of_the_page_and_their_text() -> None:
    tagged = (
        "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>\n# T\n"
        "<|ref|>image<|/ref|><|det|>[[1, 1, 2, 2]]<|/det|>"
    )
    builder = ResultBuilder("id", OcrOptions())
    builder.add(answer(tagged, "stop", **FIRST))
    result = builder.build()
    title, figure = result.regions
    assert (title.label, title.text, title.boxes) == ("title", "# T", (Box(0, 0, 999, 1000),))
    assert figure.normalized == (Box(1, 1, 2, 2),)
    assert result.markdown == "# T\n\n![image](figure-1.jpg)"
    assert result.to_markdown(None)[0] == "# T"
    found = result.to_dict()
    assert found["visual_tokens"] == {"before": 273, "after": 150}
    assert found["regions"][0]["boxes"] == [[0, 0, 999, 1000]]


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [answer("a", **FIRST)],
        [answer("a", "stop")],
        [answer("a", "because", **FIRST)],
        [answer("a", "stop", LAYOUT=np.array([1, 2], np.int32))],
        [answer("a", "stop", [1], **FIRST)],
        [answer("a", "stop", **FIRST, TIMINGS=np.zeros(2, np.float32))],
    ],
)
def test_answers_against_the_contract_are_the_servers_fault(answers: list[Any]) -> None:
    builder = ResultBuilder("id", OcrOptions())
    for each in answers:
        builder.add(each)
    with pytest.raises(ServerFailed):
        builder.build()


def test_names_that_stand_twice_are_the_same() -> None:
    assert Timings._fields == TIMINGS
    assert TIMINGS_TENSOR.shape == (len(TIMINGS),)
    assert LAYOUT_TENSOR.shape == (len(LAYOUT),)
    assert {field.name.upper() for field in fields(OcrOptions)} == {tensor.name for tensor in INPUTS[1:]}
    assert get_type_hints(OcrOptions) == get_type_hints(RequestOptions)


def test_what_the_guard_cut_off_is_told() -> None:
    builder = ResultBuilder("id", OcrOptions())
    builder.add(answer("One line.\n" * 3, **FIRST))
    builder.add(answer("One line.\n" * 200, "repetition", TEXT_LENGTH=np.array([9], np.int32)))
    result = builder.build()
    assert (result.text, result.cut_characters) == ("One line.", 2021)
    assert result.to_dict()["cut_characters"] == 2021
    assert result.markdown == (
        "One line.\n\n<!-- 2021 characters that repeated themselves were cut off here -->"
    )
    assert result.warning().endswith("2,021 characters of the loop were cut off")


def test_pdf_pages_have_an_n_gram_rule_of_their_own_unless_the_caller_says() -> None:
    page = Page(Path("a.pdf"), 1, no_repeat_ngram=(20, 50))
    assert page.options(OcrOptions(mode="tiny")) == OcrOptions(mode="tiny", no_repeat_ngram=(20, 50))
    assert page.options(OcrOptions(no_repeat_ngram=(0, 0))).no_repeat_ngram == (0, 0)
    assert Page(Path("a.png"), 1).options(OcrOptions()).no_repeat_ngram is None
