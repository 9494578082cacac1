"""`show PAGE`: boxes and labels on the page, pruned tokens dimmed; PNG, PDF or one HTML page."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from deepseek_ocr_client.cli import options as cli
from deepseek_ocr_client.cli.report import ModelNote, facts, say, write
from deepseek_ocr_client.documents import open_document, parse_pages
from deepseek_ocr_client.errors import ExitCode, InvalidRequest
from deepseek_ocr_client.images import open_image
from deepseek_ocr_client.output import atomic_write, safe_name
from deepseek_ocr_client.show.draw import draw_result
from deepseek_ocr_client.show.html import Shown, render_html

HELP = "draw what the model found on a page, and with --tokens what was pruned"
FORMATS = (".png", ".pdf", ".html")
MAX_PAGES = 50  # in one picture book; each is held in memory until it's written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    add = parser.add_argument
    add("file", type=Path, metavar="PAGE", help="image or PDF")
    add("--pages", metavar="1-3,7", help="which pages of a PDF; default: the first")
    add("--tokens", action="store_true", help="dim the parts of the page that were pruned")
    add("--output", type=Path, metavar="FILE", help="FILE.png, .pdf or .html; default: PAGE-shown.png")
    cli.add_reading(parser)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Entry point of the command."""
    output: Path = arguments.output or Path(f"{safe_name(arguments.file.stem)}-shown.png")
    if output.suffix.lower() not in FORMATS:
        raise InvalidRequest(f"{output} must end in {', '.join(FORMATS)}.")
    settings = cli.settings_of(arguments)
    options = cli.options_of(arguments)
    shown, note = [], ModelNote()
    with (
        open_document(arguments.file, settings, cli.password_of(arguments)) as document,
        cli.client_of(arguments, settings) as client,
    ):
        numbers = document.choose(parse_pages(arguments.pages) if arguments.pages else [1])
        if len(numbers) > MAX_PAGES:
            raise InvalidRequest(
                f"{len(numbers)} pages are too many to show at once; {MAX_PAGES} are allowed."
            )
        client.check()
        for number in numbers:
            page = document.page(number)
            if page.error is not None:
                raise page.error
            started = time.monotonic()
            result = client.read(page.image, page.options(options))
            note(result.model)
            line = facts(result, options.mode, None, time.monotonic() - started)
            name = f"{arguments.file.name}, page {number}" if document.page_count > 1 else arguments.file.name
            shown.append(Shown(name, open_image(page.image, settings, name), result, line))
            say(f"{name}: {line}")
    for path in write_shown(output, shown, arguments.tokens):
        write(f"{path}\n")
    return ExitCode.OK


def write_shown(output: Path, pages: list[Shown], tokens: bool) -> list[Path]:
    """Write the file, or for several pages as PNG a file a page; returns what was written. Raises as `atomic_write`."""
    kind = output.suffix.lower()
    if kind == ".html":
        with atomic_write(output) as file:
            file.write(render_html(pages, tokens=tokens).encode("utf-8", "replace"))
        return [output]
    pictures = [draw_result(page.picture, page.result, tokens=tokens) for page in pages]
    if kind == ".pdf":
        with atomic_write(output) as file:
            rest = pictures[1:]
            pictures[0].save(
                file, "PDF", save_all=True, append_images=rest, resolution=144, title=output.stem
            )
        return [output]
    paths = [output.with_stem(f"{output.stem}-{number:03d}") for number in range(1, len(pages) + 1)]
    if len(pages) == 1:
        paths = [output]
    for path, picture in zip(paths, pictures, strict=True):
        with atomic_write(path) as file:
            picture.save(file, "PNG")
    return paths
