"""The OmniDocBench comparison on a small data set in its format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from benchmarks import omnidocbench as bench
from tests.serving.running import RunningServer


def entry(image: str, language: str, *blocks: dict[str, object]) -> dict[str, object]:
    return {
        "page_info": {"image_path": image, "page_attribute": {"language": language}},
        "layout_dets": list(blocks),
        "extra": {"relation": []},
    }


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    names = ["a (1).pdf_1.jpg", "b.png"]
    for number, name in enumerate(names):
        picture = Image.new("RGB", (512, 512), "white")
        ImageDraw.Draw(picture).text(
            (40, 40), f"words {number}", fill="black", font=ImageFont.load_default(27)
        )
        picture.save(folder / "images" / name)
    second = {"category_type": "text_block", "order": 2, "text": "second, *part*"}
    first = {"category_type": "title", "order": 1, "text": "First"}
    ignored: list[dict[str, object]] = [
        {"category_type": "page_number", "order": 3, "text": "7"},
        {"category_type": "text_block", "order": 4, "text": "no", "ignore": True},
        {"category_type": "figure", "order": None},
    ]
    formula = {"category_type": "equation_isolated", "order": 1, "latex": "\\[ \\frac{a}{b} \\]"}
    table = {"category_type": "table", "order": 2, "html": "<table><tr><td>1</td></tr></table>"}
    truth = [
        entry(f"images/{names[0]}", "english", second, *ignored, first),
        entry(names[1], "simplified_chinese", formula, table),
    ]
    (folder / "OmniDocBench.json").write_text(json.dumps(truth))
    return folder


def test_the_truth_is_the_pages_words_in_reading_order(dataset: Path) -> None:
    first, second = bench.read_truth(dataset / "OmniDocBench.json")
    assert (first.image, first.language, first.words) == ("a (1).pdf_1.jpg", "EN", "Firstsecondpart")
    assert (second.language, second.words) == ("ZH", "ab1")


def test_distances() -> None:
    assert bench.page_distance("# First\n\nsecond **part**", "Firstsecondpart") == 0
    assert bench.page_distance(None, "abc") == 1
    assert bench.page_distance("", "") == 0
    assert bench.page_distance("abd", "abc") == pytest.approx(1 / 3)


def test_retentions() -> None:
    assert bench.parse_retentions("off, dynamic,0.70") == {"off": 1.0, "dynamic": -1.0, "r=0.7": 0.7}


@pytest.mark.serving
def test_both_settings_are_read_scored_and_left_for_the_evaluation(
    dataset: Path,
    ocr_server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    line = [str(dataset), "--output", str(out), "--mode", "tiny", "--url", ocr_server.grpc_url]
    line += ["--max-tokens", "8"]
    assert bench.main(line) == 0
    said = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    off, dynamic = summary["settings"]["off"], summary["settings"]["dynamic"]
    assert off["visual_tokens_before"] == off["visual_tokens_after"] == dynamic["visual_tokens_before"] == 73
    assert dynamic["visual_tokens_after"] < 73
    assert set(off["distance"]) == {"EN", "ZH"}
    assert "| off |" in said
    assert "| dynamic |" in said
    for label in ("off", "dynamic"):
        names = {path.name for path in (out / "evaluation" / f"tiny-{label}").iterdir()}
        assert names == {"a (1).pdf_1.md", "b.md"}
        assert f"evaluation/tiny-{label}}}" in (out / "evaluation" / f"tiny-{label}.yaml").read_text()
    assert bench.main(line) == 0  # resumed: nothing to do


def test_a_folder_that_is_no_data_set_gets_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([str(tmp_path), "--output", str(tmp_path / "out")]) != 0
    assert "OmniDocBench.json" in capsys.readouterr().err
