"""PDF pages: rendered one at a time, and a sentence for every file that can't be."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepseek_ocr_client.documents import open_document, parse_pages
from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.pages import Document, Page
from deepseek_ocr_client.settings import ClientSettings
from tests.client.pdf_files import LOCKED, PageSpec, make_pdf, text_pages

SETTINGS = ClientSettings()


def opened(folder: Path, data: bytes, password: str | None = None, **settings: Any) -> Document:
    path = folder / "a.pdf"
    path.write_bytes(data)
    return open_document(path, replace(SETTINGS, **settings), password)


def picture(page: Page) -> Image.Image:
    assert page.error is None, page.error
    return Image.open(io.BytesIO(page.image))


def test_pages_come_at_144_dpi_in_order(tmp_path: Path) -> None:
    with opened(tmp_path, text_pages(3)) as document:
        assert document.page_count == 3
        pages = list(document.pages(document.choose(None)))
        assert [page.number for page in pages] == [1, 2, 3]
        assert picture(pages[0]).size == (1190, 1684)
        assert len({page.image for page in pages}) == 3
        assert np.asarray(picture(pages[0]).convert("L")).min() < 50  # there's text on it


def test_pages_are_rendered_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, text_pages(50)) as document:
        rendered: list[int] = []
        render = document.render

        def recording(number: int) -> Page:
            rendered.append(number)
            return render(number)

        monkeypatch.setattr(document, "render", recording)
        pages = document.pages(document.choose(None))
        next(pages)
        next(pages)
        assert rendered == [1, 2]


def test_reopening_in_between_changes_nothing(tmp_path: Path) -> None:
    with (
        opened(tmp_path, text_pages(7)) as once,
        open_document(once.path, replace(SETTINGS, pdf_reopen_pages=2)) as often,
    ):
        images = [[page.image for page in document.pages(range(1, 8))] for document in (once, often)]
    assert images[0] == images[1]


def test_rotation_is_applied(tmp_path: Path) -> None:
    upright = PageSpec(["text"])
    with opened(tmp_path, make_pdf([upright, replace(upright, rotate=90)])) as document:
        first, second = (picture(page) for page in document.pages([1, 2]))
        assert second.size == (first.height, first.width)
        turned = np.asarray(first.convert("L").rotate(-90, expand=True), np.int16)
        assert np.abs(np.asarray(second.convert("L"), np.int16) - turned).mean() < 2


@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_a_protected_file_asks_for_its_password(tmp_path: Path, password: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        opened(tmp_path, LOCKED, password)
    assert "password" in str(raised.value)
    assert ("wrong" in str(raised.value)) == (password == "wrong")


def test_the_right_password_opens_it(tmp_path: Path) -> None:
    with opened(tmp_path, make_pdf([PageSpec(["secret"])])) as plain:
        image = plain.page(1).image
    with opened(tmp_path, LOCKED, "sesame") as locked:
        assert locked.page(1).image == image


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"%PDF-1.4\n", "broken"),
        pytest.param(text_pages(2)[:200], "broken", id="cut off"),
        (b"not a pdf at all", "broken"),
        pytest.param(make_pdf([]), "no pages", id="no pages"),
    ],
)
def test_files_that_cannot_be_opened_get_a_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        opened(tmp_path, data)


def test_a_missing_file_and_a_folder_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no file"):
        open_document(tmp_path / "none.pdf", SETTINGS)
    with pytest.raises(InvalidRequest, match="folder"):
        open_document(tmp_path, SETTINGS)


def test_a_large_page_is_rendered_at_fewer_dpi_and_says_so(tmp_path: Path) -> None:
    with opened(tmp_path, make_pdf([PageSpec(["big"], size=(5000, 4000))])) as document:
        page = document.page(1)
        width, height = picture(page).size
        assert SETTINGS.max_page_pixels * 0.95 < width * height <= SETTINGS.max_page_pixels
        assert "rendered at" in page.note


@pytest.mark.parametrize("size", [(200_000, 200_000), (14_400, 14_400)])
def test_a_huge_page_is_refused_before_it_takes_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    with opened(tmp_path, make_pdf([PageSpec(["small"]), PageSpec(["huge"], size=size)])) as document:
        page = document.page(2)
        assert not page.image
        assert "inches" in str(page.error)
        assert document.page(1).image  # the others are read


def test_a_page_without_area_gets_a_sentence_or_a_default_size(tmp_path: Path) -> None:
    with opened(tmp_path, make_pdf([PageSpec(["thin"], size=(0, 100))])) as document:
        page = document.page(1)
        assert (page.error is None) == bool(page.image)


def test_the_page_limit_is_a_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="limit of 3"):
        opened(tmp_path, text_pages(4), max_pages=3)


def test_bytes_changed_anywhere_never_crash(tmp_path: Path) -> None:
    data = text_pages(2)
    generator = np.random.default_rng(7)
    for _ in range(60):
        broken = bytearray(data)
        for place in generator.integers(0, len(data), 12):
            broken[place] = generator.integers(0, 256)
        try:
            with opened(tmp_path, bytes(broken), dpi=36) as document:
                for page in document.pages(document.choose(None)):
                    assert bool(page.image) != (page.error is not None)
        except InvalidRequest as error:
            assert "\n" not in str(error)


def test_pages_can_be_chosen(tmp_path: Path) -> None:
    with opened(tmp_path, text_pages(3)) as document:
        assert list(document.choose([3, 1])) == [3, 1]
        with pytest.raises(InvalidRequest, match="no page 4: it has 3 pages"):
            document.choose([4])


def test_page_lists() -> None:
    assert parse_pages("1-3,7, 9") == [1, 2, 3, 7, 9]
    for wrong in ("", "0", "3-1", "a", "1-", "-2", "1,,2", "99999999", "1-3-5"):
        with pytest.raises(InvalidRequest):
            parse_pages(wrong)
