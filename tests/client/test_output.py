"""Files of a run: whole or not at all, safe names, figures, both layouts, the journal."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.inputs import Source, find_sources
from deepseek_ocr_client.journal import NAME, Journal
from deepseek_ocr_client.layouts import DocumentLayout, OmniDocBenchLayout, for_evaluation, prediction_name
from deepseek_ocr_client.output import atomic_write, safe_name
from deepseek_ocr_client.settings import ClientSettings
from tests.client.results import make_page, make_picture, make_result

SETTINGS = ClientSettings()
OPTIONS = {"mode": "base", "retention": None, "no_repeat_ngram": (30, 90)}


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.md"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.md"]


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(InvalidRequest, match="can't be written"), atomic_write(blocked / "a.md"):
        pass
    with pytest.raises(InvalidRequest, match="can't be written"):
        Journal(blocked / "out", OPTIONS)


@given(st.text(max_size=300))
def test_names_are_safe_everywhere(name: str) -> None:
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= 150
    assert not set(safe) & set('/\\:*?"<>|()[]#%\0\n\t ')
    assert safe not in (".", "..")


def test_figures_are_the_pages_own_pixels(tmp_path: Path) -> None:
    layout = DocumentLayout(tmp_path, SETTINGS)
    page, result = make_page(number=7), make_result()
    markdown, lost = layout.save_page("sub/doc", page, result)
    assert not lost
    link = "images/doc/page-0007-figure-1.jpg"
    assert f"![image]({link})" in markdown
    figure = np.asarray(Image.open(tmp_path / "sub" / link).convert("RGB"), np.int16)
    box = result.regions[1].boxes[0]
    expected = np.asarray(make_picture(), np.int16)[box.y1 : box.y2, box.x1 : box.x2]
    assert figure.shape == expected.shape
    assert np.abs(figure - expected).mean() < 3  # JPEG


@pytest.mark.parametrize("box", ["[[0, 0, 0, 0]]", "[[999, 999, 999, 999]]", "[[500, 0, 500, 999]]"])
def test_a_figure_without_area_is_still_a_file(tmp_path: Path, box: str) -> None:
    text = f"<|ref|>image<|/ref|><|det|>{box}<|/det|>"
    DocumentLayout(tmp_path, SETTINGS).save_page("doc", make_page(), make_result(text))
    assert Image.open(tmp_path / "images/doc/page-0001-figure-1.jpg").size >= (1, 1)


def test_documents_have_page_breaks_and_say_what_failed(tmp_path: Path) -> None:
    texts = {1: "one\n", 3: "three"}
    layout = DocumentLayout(tmp_path, SETTINGS)
    layout.finish("doc", Path("doc.pdf"), [1, 2, 3], texts.get, {2: InvalidRequest("It --> broke.")})
    assert (tmp_path / "doc.md").read_text() == (
        "one\n\n---\n\n<!-- page 2 -->\n\n<!-- page 2 couldn't be read: It - - broke. -->"
        "\n\n---\n\n<!-- page 3 -->\n\nthree\n"
    )
    assert layout.is_written("doc", Path("doc.pdf"), 3)
    layout.discard("doc", Path("doc.pdf"), 3)
    assert not layout.is_written("doc", Path("doc.pdf"), 3)


@pytest.mark.parametrize(
    ("image", "prediction"),
    [
        ("docstruct (1) 漢.pdf_101.jpg", "docstruct (1) 漢.pdf_101.md"),
        ("page.png", "page.md"),
        ("page.jpeg", "page.jpeg.md"),
    ],
)
def test_omnidocbench_finds_its_predictions(tmp_path: Path, image: str, prediction: str) -> None:
    assert prediction_name(image) == prediction
    layout = OmniDocBenchLayout(tmp_path)
    layout.finish("x", Path(image), [1], lambda number: "text", {})
    assert (tmp_path / "predictions" / prediction).read_text() == "text"
    # How the evaluation looks a prediction up (dataset/end2end_dataset.py).
    tried = [image[:-4] + ".md", image + ".md"]
    assert any((tmp_path / "predictions" / name).exists() for name in tried)


def test_predictions_are_normalised_as_the_authors_do() -> None:
    text = (
        "<|ref|>equation<|/ref|><|det|>[[1, 1, 2, 2]]<|/det|>\n\\[ a = b \\quad (3) \\]\n"
        "<|ref|>image<|/ref|><|det|>[[1, 1, 2, 2]]<|/det|>\n"
        "<|ref|>image_caption<|/ref|><|det|>[[1, 1, 2, 2]]<|/det|>\n<center>Fig. 1 \\quad (not math)</center>"
    )
    assert for_evaluation(make_result(text)) == "\\[ a = b  \\]\n\nFig. 1 \\quad (not math)\n"


def record(page: int) -> dict[str, object]:
    return {"markdown": f"page {page} 漢", "text": "x"}


def test_the_journal_resumes_without_loss_after_any_cut(tmp_path: Path) -> None:
    with Journal(tmp_path, OPTIONS) as journal:
        for page in (2, 1, 3):
            journal.add("doc", "d1", 3, page, record(page))
        assert journal.done("doc", "d1") == {1, 2, 3}
    whole = (tmp_path / NAME).read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == 10]
    for cut in sorted({*range(0, len(whole), 11), *ends, *(end - 1 for end in ends), len(whole)}):
        (tmp_path / NAME).write_bytes(whole[:cut])
        with Journal(tmp_path, OPTIONS) as journal:
            expected = {page for page, end in zip((2, 1, 3), ends[1:], strict=True) if end <= cut}
            assert journal.done("doc", "d1") == expected
            for page in {1, 2, 3} - expected:
                journal.add("doc", "d1", 3, page, record(page))
            assert [journal.read("doc", page)["markdown"] for page in (1, 2, 3)] == [
                f"page {page} 漢" for page in (1, 2, 3)
            ]
        pages = [json.loads(line).get("page") for line in (tmp_path / NAME).read_text().splitlines()]
        assert sorted(pages[1:]) == [1, 2, 3]  # no duplicates


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    with Journal(tmp_path, OPTIONS) as journal:
        journal.add("doc", "old", 2, 1, record(1))
        journal.add("other", "same", 1, 1, record(1))
        journal.add("doc", "old", 2, 2, record(2))
        journal.add("elsewhere", "kept", 1, 1, record(1))
    with Journal(tmp_path, OPTIONS) as journal:
        assert journal.done("doc", "new") == set()
        journal.drop_stale({"doc": "new", "other": "same"})
        assert "doc" not in journal.documents
        assert journal.done("elsewhere", "kept") == {1}, (
            "not among this run's inputs, and none of its business"
        )
        journal.add("doc", "new", 1, 1, record(9))
        assert journal.done("other", "same") == {1}
        assert journal.read("other", 1)["markdown"] == "page 1 漢"
        assert journal.read("doc", 1)["markdown"] == "page 9 漢"
    assert (tmp_path / NAME).read_text().count('"name":"doc"') == 1


def test_other_options_are_refused_and_overwriting_starts_anew(tmp_path: Path) -> None:
    with Journal(tmp_path, OPTIONS) as journal:
        journal.add("doc", "d", 1, 1, record(1))
    with Journal(tmp_path, OPTIONS) as journal:
        assert journal.done("doc", "d") == {1}
    with pytest.raises(InvalidRequest, match="mode 'base' instead of 'tiny'"):
        Journal(tmp_path, {**OPTIONS, "mode": "tiny"})
    with Journal(tmp_path, {**OPTIONS, "mode": "tiny"}, overwrite=True) as journal:
        assert not journal.documents


def test_a_broken_line_in_the_middle_is_not_thrown_away_silently(tmp_path: Path) -> None:
    with Journal(tmp_path, OPTIONS) as journal:
        journal.add("doc", "d", 2, 1, record(1))
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"kind":"page"}\n')
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(InvalidRequest, match="a line that isn't a page's"):
        Journal(tmp_path, OPTIONS)
    assert (tmp_path / NAME).read_bytes() == before


def open_and_close(folder: Path) -> None:
    Journal(folder, OPTIONS).close()


def test_two_runs_never_write_to_one_folder(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        with Journal(tmp_path, OPTIONS), pytest.raises(InvalidRequest, match="Another run"):
            elsewhere.submit(open_and_close, tmp_path).result(60)
        elsewhere.submit(open_and_close, tmp_path).result(60)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def names(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


def test_folders_patterns_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.pdf", "b/c d.png", "b/notes.txt", "b/.hidden/e.png", "z.JPG"):
        touch(tmp_path / name)
    assert names(find_sources([str(tmp_path)])) == ["a", "b/c_d", "z"]
    assert names(find_sources([str(tmp_path / "*.pdf")])) == ["a"]
    assert names(find_sources([str(tmp_path / "**" / "*.png")])) == ["c_d"]
    assert names(find_sources([str(tmp_path / "b" / "notes.txt")])) == ["notes"]  # named outright: tried
    monkeypatch.chdir(tmp_path)
    assert names(find_sources(["a.pdf", "./a.pdf", "."])) == ["a", "b/c_d", "z"]  # each once
    for missing in ("none.pdf", "*.tif"):
        with pytest.raises(InvalidRequest):
            find_sources([missing])


def test_documents_of_one_name_stay_apart(tmp_path: Path) -> None:
    paths = [touch(tmp_path / name) for name in ("x/a.pdf", "x/a.png", "y/a.pdf", "y/A.pdf")]
    found = names(find_sources([str(path) for path in paths]))
    assert len({name.casefold() for name in found}) == 4


def test_a_pixel_limit_holds_for_figures_too(tmp_path: Path) -> None:
    layout = DocumentLayout(tmp_path, ClientSettings(max_image_pixels=100))
    markdown, lost = layout.save_page("doc", make_page(), make_result())
    assert "Some <script>" in markdown
    assert "![" not in markdown
    assert "at most 100 in all are allowed, so its figures are left out." in lost
    assert not list(tmp_path.rglob("*.jpg"))
