"""Every mode through every endpoint: the same text from all of them, and the contract's numbers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.serving import calls
from tests.serving.running import RunningServer

pytestmark = pytest.mark.serving

MODES = {"tiny": (512, 73), "small": (640, 111), "base": (1024, 273), "large": (1280, 421)}


def page(width: int, height: int, words: str) -> bytes:
    """A page with one line of text, as PNG."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((32, 32), words, fill="black", font_size=27)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_gives_the_same_text_through_every_endpoint(ocr_server: RunningServer, mode: str) -> None:
    side, length = MODES[mode]
    image = page(side, side, f"a page in {mode} mode")
    options: dict[str, Any] = {"mode": mode, "prompt": calls.FREE_OCR, "max_tokens": 60}
    first = calls.unary(ocr_server, image, request_id=f"mode-{mode}", **options)
    answers = [
        first,
        calls.unary_http(ocr_server, image, **options),
        calls.stream(ocr_server, image, request_id="s", **options),
    ]
    assert {answer.text for answer in answers} == {first.text}
    assert calls.generate(ocr_server, image, **options)["TEXT"] == first.text
    events = calls.generate_stream(ocr_server, image, **options)
    assert "".join(event["TEXT"] for event in events) == first.text
    for answer in answers:
        assert answer.reason in ("stop", "length", "repetition")
        before, after, output = answer.outputs["TOKENS"]
        kept = answer.outputs["KEPT"]
        assert before == length
        assert after == len(kept) <= before
        assert 1 <= output <= 60
        assert (np.diff(kept) > 0).all()
        assert 0 <= kept[0] <= kept[-1] == before - 1, "the separator is always kept"
        assert answer.outputs["LAYOUT"][0] == side
        assert list(answer.outputs["LAYOUT"][1:5]) == [0, 0, side, side]
        assert answer.outputs["TIMINGS"].shape == (7,)
        assert (answer.outputs["TIMINGS"] >= 0).all()


def test_gundam_with_tiles(ocr_server: RunningServer) -> None:
    image = page(1280, 1920, "tiles")
    answer = calls.stream(ocr_server, image, mode="gundam", max_tokens=20)
    assert list(answer.outputs["LAYOUT"][:5]) == [1024, 2, 3, 1280, 1920]
    assert answer.outputs["TOKENS"][0] == 903
    assert calls.unary(ocr_server, image, mode="gundam", max_tokens=20).text == answer.text


def test_gundam_without_tiles_is_base(ocr_server: RunningServer) -> None:
    image = page(600, 400, "no tiles")
    gundam = calls.unary(ocr_server, image, mode="gundam", retention=-1, max_tokens=20)
    base = calls.unary(ocr_server, image, mode="base", retention=-1, max_tokens=20)
    assert list(gundam.outputs["LAYOUT"]) == list(base.outputs["LAYOUT"])
    assert gundam.outputs["TOKENS"][0] == 273
    assert gundam.text == base.text


def test_every_input_but_the_image_is_optional(ocr_server: RunningServer) -> None:
    answer = calls.unary(ocr_server, page(300, 200, "defaults"), max_tokens=5)
    assert answer.outputs["LAYOUT"][0] == 1280, "the default mode is large"
    assert 0 < answer.outputs["TOKENS"][1] < 421, "the default retention is dynamic in large"


@pytest.mark.parametrize(
    ("mode", "pruned"), [("tiny", False), ("base", False), ("large", True), ("gundam", True)]
)
def test_pruning_is_on_where_it_pays_and_wherever_it_is_asked_for(
    ocr_server: RunningServer, mode: str, pruned: bool
) -> None:
    image = page(512, 512, "pruning")
    before, after, _ = calls.unary(ocr_server, image, mode=mode, max_tokens=2).outputs["TOKENS"]
    assert (after < before) == pruned
    dynamic = calls.unary(ocr_server, image, mode=mode, retention=-1, max_tokens=2).outputs["TOKENS"]
    assert dynamic[1] < dynamic[0]


@pytest.mark.parametrize(("retention", "content"), [(1.0, 256), (0.7, 179), (0.75, 192), (0.001, 1)])
def test_a_fixed_retention_keeps_what_it_says(
    ocr_server: RunningServer, retention: float, content: int
) -> None:
    image = page(1024, 1024, "retention")
    answer = calls.unary(ocr_server, image, mode="base", retention=retention, max_tokens=2)
    kept = answer.outputs["KEPT"]
    is_content = (kept % 17 != 16) & (kept < 272)
    assert is_content.sum() == content
    if retention == 1.0:
        assert list(kept) == list(range(273))


def test_the_stream_carries_positions_first_and_timings_last(ocr_server: RunningServer) -> None:
    events = calls.generate_stream(ocr_server, page(512, 512, "stream"), mode="tiny", max_tokens=60)
    assert "KEPT" in events[0]
    assert "LAYOUT" in events[0]
    assert "TIMINGS" in events[-1]
    assert [event["FINISH_REASON"] for event in events[:-1]] == [""] * (len(events) - 1)
    assert events[-1]["FINISH_REASON"]
    whole = "".join(event["TEXT"] for event in events)
    assert events[-1]["TEXT_LENGTH"] <= len(whole)


def test_max_tokens_ends_with_length(ocr_server: RunningServer) -> None:
    answer = calls.unary(ocr_server, page(512, 512, "one two three four"), mode="tiny", max_tokens=3)
    assert answer.outputs["TOKENS"][2] <= 3
    assert answer.reason in ("length", "stop")


def test_a_time_limit_ends_the_page(ocr_server: RunningServer) -> None:
    image = page(1280, 1280, "time")
    try:
        answer = calls.unary(ocr_server, image, mode="large", time_limit=0.05)
    except Exception as error:
        assert "time limit of 0.05 s passed" in str(error)  # it ran out before the decoder
    else:
        assert answer.reason == "timeout"
