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
from tests.client.pdf_files import LOCKED, PageSpec, assemble, make_pdf, one_page, stream, text_pages

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
        assert {page.no_repeat_ngram for page in pages} == {(20, 50)}
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


# What a page's picture doesn't show

FORM = b"<xdp:xdp xmlns:xdp='http://ns.adobe.com/xdp/'><template/></xdp:xdp>"
BAR = b"0 0 0 rg 40 40 100 20 re f"


def notes(data: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The notes of a document's pages; nothing may be written to the terminal."""
    path = tmp_path / "doc.pdf"
    path.write_bytes(data)
    with open_document(path, SETTINGS) as document:
        pages = list(document.pages(document.choose(None)))
    assert [page.error for page in pages] == [None] * len(pages)
    assert capfd.readouterr() == ("", "")
    return [page.note.replace(str(path), "doc.pdf") for page in pages]


def cjk(text: str, mode: int = 0) -> bytes:
    """A page with a font for Japanese that isn't in the file."""
    shown = text.encode("utf-16-be").hex()
    content = f"BT /F1 24 Tf {mode} Tr 20 300 Td <{shown}> Tj ET".encode()
    font = b"<< /Type /Font /Subtype /Type0 /BaseFont /Some-Mincho /Encoding /UniJIS-UCS2-H /DescendantFonts [6 0 R] >>"
    descendant = (
        b"<< /Type /Font /Subtype /CIDFontType0 /BaseFont /Some-Mincho /DW 1000 /FontDescriptor 7 0 R "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Japan1) /Supplement 2 >> >>"
    )
    descriptor = (
        b"<< /Type /FontDescriptor /FontName /Some-Mincho /Flags 4 /ItalicAngle 0 /Ascent 800 /Descent -200 "
        b"/CapHeight 700 /StemV 80 /FontBBox [0 -200 1000 800] >>"
    )
    return one_page(content, font, descendant, descriptor, resources="/Font << /F1 5 0 R >>")


def test_characters_without_a_font_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    [note] = notes(cjk("請求書 63.50"), tmp_path, capfd)
    font_there = "lacks characters of Some-Mincho" not in note
    if font_there:  # this machine has a font for them
        assert note == ""
    else:
        assert note == (
            "Page 1 of doc.pdf lacks characters of Some-Mincho: the font is neither in the file nor installed here."
        )
    assert notes(cjk("63.50 EUR"), tmp_path, capfd) == [""]


def test_a_text_layer_that_nobody_sees_is_not_missed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    invisible = cjk("請求書", mode=3).replace(b"BT /F1", BAR + b" BT /F1")
    assert not any("lacks" in note for note in notes(invisible, tmp_path, capfd))


@pytest.mark.parametrize("key", ["", "/NeedsRendering true"])
def test_a_form_that_is_not_in_the_pages_is_told(
    key: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = one_page(BAR, stream(FORM), catalog=f"/AcroForm << /Fields [] /XFA 5 0 R >> {key}")
    assert notes(data, tmp_path, capfd) == [
        "doc.pdf is an XFA form: only its pages were read, and not what the form holds."
    ]


@pytest.mark.parametrize("collection", ["", "/Collection << /Type /Collection /View /D >>"])
def test_attached_files_are_told(collection: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    catalog = f"/Names << /EmbeddedFiles << /Names [(a) 5 0 R (b) 7 0 R] >> >> {collection}"
    files = [
        part
        for number, name in ((6, "invoice.pdf"), (8, "list.xlsx"))
        for part in (
            f"<< /Type /Filespec /F ({name}) /UF ({name}) /EF << /F {number} 0 R >> >>".encode(),
            stream(b"content", "/Type /EmbeddedFile"),
        )
    ]
    assert notes(one_page(BAR, *files, catalog=catalog), tmp_path, capfd) == [
        "doc.pdf has attached files, which were not read: invoice.pdf, list.xlsx."
    ]


@pytest.mark.parametrize(
    ("content", "blank"),
    [
        (b"1 1 1 rg 40 40 100 20 re f", True),
        (b"BT /F1 24 Tf 1 1 1 rg 20 300 Td (white on white) Tj ET", True),
        (b"q 0 0 0 0 re W n 0 0 0 rg 40 40 100 20 re f Q", True),
        (b"", False),
        (BAR, False),
        (
            b"/G gs 0 0 0 rg 0 0 384 384 re f BT /F1 24 Tf 1 1 1 rg 20 300 Td (white on a pale dark) Tj ET",
            False,
        ),
        (b"BT /F1 24 Tf 0.97 0.97 0.97 rg 20 300 Td (pale) Tj ET", False),
    ],
)
def test_a_page_that_draws_and_shows_nothing_is_told(
    content: bytes, blank: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    resources = (
        "/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> "
        "/ExtGState << /G << /ca 0.5 >> >>"
    )
    [note] = notes(one_page(content, resources=resources), tmp_path, capfd)
    assert note == ("Page 1 of doc.pdf draws something, and its picture is blank." if blank else "")


def test_pale_text_is_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "pale.pdf"
    content = b"/G gs 0 0 0 rg 0 0 384 384 re f BT /F1 60 Tf 1 1 1 rg 20 300 Td (white) Tj ET"
    resources = (
        "/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> "
        "/ExtGState << /G << /ca 0.5 >> >>"
    )
    path.write_bytes(
        one_page(content, resources=resources, page="/Group << /S /Transparency /CS /DeviceRGB >>")
    )
    with open_document(path, SETTINGS) as document:
        [page] = document.pages([1])
    grey = np.asarray(Image.open(io.BytesIO(page.image)).convert("L")).astype(int)
    assert 110 < np.median(grey) < 145
    assert (grey > 180).sum() > 2000  # letters


# Page trees that don't say the truth


def tree(claimed: int, kids: int, nested: bool = False) -> bytes:
    """Pages that are `kids` and claim to be `claimed`, in one node or in nodes below."""
    pages = [
        f"<< /Type /Page /Parent {3 if nested else 2} 0 R /MediaBox [0 0 100 100] /Contents 4 0 R >>".encode()
        for _ in range(kids)
    ]
    numbers = " ".join(f"{5 + number} 0 R" for number in range(kids))
    top = f"/Kids [3 0 R] /Count {claimed}" if nested else f"/Kids [{numbers}] /Count {claimed}"
    return assemble(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            f"<< /Type /Pages {top} >>".encode(),
            f"<< /Type /Pages /Parent 2 0 R /Kids [{numbers}] /Count {claimed} >>".encode(),
            stream(b"0 0 0 rg 10 10 50 50 re f"),
            *pages,
        ]
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("claimed", "kids"), [(600, 1), (7, 1), (40, 3)])
def test_pages_that_are_only_claimed_are_one_sentence(
    claimed: int, kids: int, nested: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = notes(tree(claimed, kids, nested), tmp_path, capfd)
    assert len(found) == kids
    assert found[0] in ("", f"doc.pdf claims {claimed} pages and holds {kids}.")
    assert not any(found[1:])


@pytest.mark.parametrize("nested", [False, True])
def test_a_count_that_is_too_low_hides_no_page(
    nested: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert notes(tree(1, 3, nested), tmp_path, capfd) == [""] * 3


def test_a_count_within_a_stream_or_an_outline_is_no_page_count(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outline = b"<< /Type /Outlines /Count 25 >> % /Type /Page"
    assert notes(one_page(BAR + b" % /Type /Page /Count 3", outline), tmp_path, capfd) == [""]


def test_a_unit_of_its_own_changes_no_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert notes(one_page(BAR, page="/UserUnit 4"), tmp_path, capfd) == [""]
