"""The pages of a load test, and perf_analyzer's input data as our client makes it from them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import serialize_byte_tensor

from deepseek_ocr_client import ClientSettings, OcrOptions
from deepseek_ocr_client.documents import open_document
from deepseek_ocr_client.images import encode_image
from deepseek_ocr_client.inputs import find_sources
from deepseek_ocr_client.request import build_inputs
from rtprune.errors import InvalidInput
from rtprune.modes import MODES


@dataclass(frozen=True, slots=True)
class LoadPage:
    """A page: a name, its encoded image, and its text where it's known."""

    name: str
    image: bytes
    text: str = ""


def rendered_pages(mode: str, count: int, seed: int) -> list[LoadPage]:
    """Different pages, PNG, that the reference checkpoint reads in `mode`, filled to the last line, held-out words."""
    from training.evaluate import RECIPE, page_size
    from training.synthetic_page import random_page

    generator = np.random.default_rng([seed, list(MODES).index(mode)])
    recipe = replace(RECIPE, fill=1.0, narrow=0.0)
    pages = []
    for number in range(count):
        page = random_page(generator, page_size(generator, mode), recipe)
        image = io.BytesIO()
        page.image().save(image, "PNG")
        pages.append(LoadPage(f"page {number + 1}", image.getvalue(), page.text))
    return pages


def pages_of(inputs: Sequence[str], count: int, settings: ClientSettings) -> list[LoadPage]:
    """The first `count` pages of files, folders and patterns, PDFs too; refused where a page can't be rendered.

    Raises:
        ClientError: one of them can't be read.
    """
    pages: list[LoadPage] = []
    for source in find_sources(inputs):
        with open_document(source.path, settings) as document:
            for number in document.choose(None):
                if len(pages) == count:
                    return pages
                pages.append(LoadPage(f"{source.name} {number}", document.render(number).image))
    return pages


class JsonInput:
    """Stands where tritonclient's InferInput stands, and keeps a tensor as perf_analyzer's input data has it."""

    def __init__(self, name: str, shape: Sequence[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, list(shape), datatype
        self.entry: Any = None

    def set_data_from_numpy(self, array: NDArray[Any]) -> None:
        """Numbers as nested lists; an object array of bytes as Triton lays it out, in base64."""
        if self.datatype == "BYTES":
            self.entry = {"b64": base64.b64encode(serialize_byte_tensor(array).item()).decode()}
        else:
            self.entry = array.tolist()


def write_input_data(
    path: Path, pages: Sequence[LoadPage], options: OcrOptions, settings: ClientSettings
) -> None:
    """Write the requests that our client would send for these pages; perf_analyzer sends them in turns.

    Raises:
        InvalidInput: there are no pages.
    """
    if not pages:
        raise InvalidInput("There are no pages to send.")
    requests = [
        {
            tensor.name: tensor.entry
            for tensor in build_inputs(encode_image(page.image, settings), options, JsonInput)
        }
        for page in pages
    ]
    path.write_text(json.dumps({"data": requests}), encoding="utf-8")
