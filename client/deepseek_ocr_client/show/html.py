"""One self-contained HTML page: the picture beside the text, both light up together.

Everything that the model wrote is escaped, and the page's policy allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from PIL import Image

from deepseek_ocr_client.markdown import segments
from deepseek_ocr_client.result import OcrResult
from deepseek_ocr_client.show.draw import color_of, css
from deepseek_ocr_client.show.tokens import View, views_of
from deepseek_ocr_client.tags import parse

LONGEST_SIDE = 1800  # pixels of the embedded picture


@dataclass(frozen=True, slots=True)
class Shown:
    """A page to show: a name, its picture, its result and a line of facts."""

    name: str
    picture: Image.Image
    result: OcrResult
    facts: str


def render_html(pages: Sequence[Shown], *, tokens: bool = False) -> str:
    """The HTML text; with `tokens`, pruned blocks are dark from the start and can be switched."""
    here = files("deepseek_ocr_client.show")
    script = here.joinpath("page.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    tiled = any(page.result.layout.tiled for page in pages)
    view = ("tiles" if tiled else "global") if tokens else "none"
    template = Template(here.joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(pages[0].name if len(pages) == 1 else f"{pages[0].name} and {len(pages) - 1} more"),
        script=script,
        script_hash=f"sha256-{digest}",
        view=view,
        controls=_controls(tiled, view),
        pages="\n".join(_section(number, page) for number, page in enumerate(pages)),
    )


def _controls(tiled: bool, chosen: str) -> str:
    choices = {"none": "page", "tiles": "pruned tiles", "global": "pruned global view"}
    if not tiled:
        choices = {"none": "page", "global": "pruned tokens"}
    return " ".join(
        f'<label><input type="radio" name="view" value="{value}"{" checked" * (value == chosen)}> {words}</label>'
        for value, words in choices.items()
    )


def _section(number: int, page: Shown) -> str:
    width, height = page.result.layout.width, page.result.layout.height
    shapes = [_pruned(view) for view in views_of(page.result)]
    for index, region in enumerate(page.result.regions):
        color = css(color_of(region.label))
        shapes += [
            f'<rect class="box" data-part="{number}-{index}" x="{box.x1}" y="{box.y1}" '
            f'width="{box.x2 - box.x1}" height="{box.y2 - box.y1}" fill="{color}" stroke="{color}">'
            f"<title>{escape(region.label)}</title></rect>"
            for box in region.boxes
        ]
    return (
        f'<section><p class="facts">{escape(page.name)}: {escape(page.facts)}</p>'
        f'<div class="page"><img alt="{escape(page.name)}" src="{_data_uri(page.picture)}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(shapes)}</svg></div>'
        f'<div class="text">{_text(number, page.result)}</div></section>'
    )


def _pruned(view: View) -> str:
    path = "".join(
        f"M{area.left:.1f} {area.top:.1f}H{area.right:.1f}V{area.bottom:.1f}H{area.left:.1f}Z"
        for area in view.pruned
    )
    return f'<path class="pruned {view.name}" d="{path}"><title>{escape(view.title)}</title></path>'


def _text(number: int, result: OcrResult) -> str:
    first = next(parse(result.text), "")
    parts = []
    if isinstance(first, str) and first.strip():
        parts.append(f'<div class="part">{escape(first.strip())}</div>')
    for index, segment in enumerate(segments(result.text)):
        color = css(color_of(segment.tag.label))
        parts.append(
            f'<div class="part" data-part="{number}-{index}" style="border-color: {color}">'
            f'<span class="label">{escape(segment.tag.label)}</span>{escape(segment.text)}</div>'
        )
    return "".join(parts)


def _data_uri(picture: Image.Image) -> str:
    page = picture.convert("RGB")
    page.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
