"""Pictures of a result: where boxes and dimmed blocks are, and that HTML is safe."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from deepseek_ocr_client.cli.show_command import write_shown
from deepseek_ocr_client.geometry import Layout
from deepseek_ocr_client.show.draw import DIMMED, GAP, color_of, draw_result
from deepseek_ocr_client.show.html import Shown, render_html
from deepseek_ocr_client.show.tokens import views_of
from tests.client.results import BASE, GUNDAM, make_picture, make_result


def test_boxes_are_drawn_where_they_are() -> None:
    white = Image.new("RGB", (BASE.width, BASE.height), "white")
    result = make_result()
    drawn = np.asarray(draw_result(white, result))
    for region in result.regions:
        x1, y1, x2, y2 = region.boxes[0]
        color = color_of(region.label)
        assert tuple(drawn[(y1 + y2) // 2, x1]) == color
        assert tuple(drawn[y2, (x1 + x2) // 2]) == color
        assert tuple(drawn[y2 - 6, (x1 + x2) // 2]) not in (color, (255, 255, 255))  # lightly filled
    assert tuple(drawn[5, 5]) == (255, 255, 255)


def test_pruned_blocks_are_dark_and_kept_ones_are_not() -> None:
    white = Image.new("RGB", (BASE.width, BASE.height), "white")
    # Keep one block: row 2, column 5 of the 16 x 16 grid; the page fills columns 4 to 11.
    result = make_result("", kept=[2 * 17 + 5])
    drawn = np.asarray(draw_result(white, result, tokens=True))[-BASE.height :]
    assert (drawn[2 * 64 : 3 * 64, 64:128] == 255).all()
    dark = np.delete(drawn.reshape(BASE.height, BASE.width, 3), np.s_[64:128], axis=1)
    assert (dark == int(255 * DIMMED)).all()


def test_the_picture_names_the_model_above_the_page() -> None:
    white = Image.new("RGB", (BASE.width, BASE.height), "white")
    for tokens in (False, True):
        plain = np.asarray(draw_result(white, make_result(), tokens=tokens))
        named = np.asarray(draw_result(white, replace(make_result(), model="some-model"), tokens=tokens))
        assert (named[-BASE.height :] == plain[-BASE.height :]).all()
        assert (named[: -BASE.height] < 128).sum() > (plain[: -BASE.height] < 128).sum()


def test_a_pdf_is_titled_by_its_name(tmp_path: Path) -> None:
    page = Shown("page", Image.new("RGB", (BASE.width, BASE.height), "white"), make_result(), "")
    [path] = write_shown(tmp_path / "result.pdf", [page, page], tokens=False)
    document = pypdfium2.PdfDocument(path)
    assert (document.get_metadata_value("Title"), len(document)) == ("result", 2)


def test_tiles_and_global_view_stand_side_by_side() -> None:
    result = make_result("", GUNDAM)
    assert [view.name for view in views_of(result)] == ["tiles", "global"]
    drawn = draw_result(make_picture(GUNDAM), result, tokens=True)
    assert drawn.width == 2 * GUNDAM.width + GAP


def test_counts_of_the_views() -> None:
    layout = Layout(512, 0, 0, 100, 100, 0, 0, 0.0)
    [view] = views_of(make_result("", layout, kept=list(range(73))))
    assert (view.kept, view.total, view.pruned) == (64, 64, ())
    [view] = views_of(make_result("", layout, kept=[0, 8, 72]))  # a block, a newline, the separator
    assert (view.kept, view.total, len(view.pruned)) == (1, 64, 63)
    assert view.title == "global view: 1 of 64 content tokens kept"


def test_labels_that_no_font_has_and_boxes_outside_do_not_stop_it() -> None:
    text = "<|ref|>漢字 \n label<|/ref|><|det|>[[990, 0, 999, 1], [0, 0, 0, 0]]<|/det|>"
    assert draw_result(make_picture(), make_result(text)).size == (BASE.width, BASE.height)


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("tokens", [False, True])
def test_one_page_of_html_holds_everything_and_runs_nothing_of_the_models(tokens: bool) -> None:
    evil = '<|ref|>"><img src=x onerror=alert(1)><|/ref|><|det|>[[1, 1, 9, 9]]<|/det|></div><script>alert(2)</script>'
    pages = [
        Shown("a<b>.png", make_picture(), make_result(), "facts & figures"),
        Shown("b.png", make_picture(), make_result(evil), "f"),
    ]
    html = render_html(pages, tokens=tokens)
    parser = Elements()
    parser.feed(html)
    tags = [tag for tag, _ in parser.found]
    assert tags.count("script") == 1
    assert tags.count("img") == 2
    assert all(not name.startswith("on") for _, attributes in parser.found for name in attributes)
    sources = [attributes["src"] or "" for tag, attributes in parser.found if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "http://" not in html
    assert "https://" not in html
    assert Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))).size == (
        BASE.width,
        BASE.height,
    )
    # The policy names the hash of the one script that may run.
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; text &amp; more." in html
    parts = [attributes["data-part"] for tag, attributes in parser.found if tag == "rect"]
    assert parts == ["0-0", "0-1", "0-2", "1-0"]


def test_text_before_the_first_tag_is_shown_too() -> None:
    html = render_html([Shown("a", make_picture(), make_result("plain words only"), "f")])
    assert "plain words only" in html
