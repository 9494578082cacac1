"""`ocr PAGE...`: prints Markdown as the model writes it, page by page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from deepseek_ocr_client.cli import options as cli
from deepseek_ocr_client.cli.report import (
    ModelNote,
    complain,
    facts,
    noise_advice,
    read_truth,
    say,
    verdict,
    write,
)
from deepseek_ocr_client.documents import open_document, parse_pages
from deepseek_ocr_client.errors import ClientError, ExitCode, InvalidRequest, TimeLimitExceeded
from deepseek_ocr_client.images import sendable
from deepseek_ocr_client.layouts import DocumentFiles, page_break, page_record
from deepseek_ocr_client.ocr import OcrClient
from deepseek_ocr_client.pages import Page
from deepseek_ocr_client.request import OcrOptions
from deepseek_ocr_client.result import OcrResult

HELP = "read pages and print their Markdown as it's written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    add = parser.add_argument
    add("pages_files", nargs="+", metavar="PAGE", help="image or PDF; - is standard input")
    add("--pages", metavar="1-3,7", help="which pages of a PDF; default: all")
    add("--json", action="store_true", help="one JSON object a page instead of Markdown")
    add("--raw", action="store_true", help="the model's text with its tags")
    add("--output", type=Path, metavar="DIR", help="write Markdown, figures and JSON there too")
    add("--facts", action="store_true", help="a line of facts after each page (standard error)")
    add("--truth", type=Path, metavar="FILE", help="with --facts: the right text, for its error rate")
    cli.add_reading(parser)


class OcrCommand:
    """One run of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.settings = cli.settings_of(arguments)
        self.options: OcrOptions = cli.options_of(arguments)
        self.pages = parse_pages(arguments.pages) if arguments.pages else None
        self.truth = read_truth(arguments.truth)
        self.errors: list[ClientError] = []
        self.done = 0
        self.note = ModelNote()

    def run(self) -> ExitCode:
        """Read every page of every file."""
        with cli.client_of(self.arguments, self.settings) as client:
            client.check()
            for name in self.arguments.pages_files:
                try:
                    self._file(client, name)
                except ClientError as error:
                    self.errors.append(error)
                    complain(error)
        return verdict(self.done, self.errors)

    def _file(self, client: OcrClient, name: str) -> None:
        if name == "-":
            image = sendable(sys.stdin.buffer.read(), "standard input", self.settings)
            self._page(client, Page(Path("standard input"), 1, image), None)
            return
        with open_document(name, self.settings, cli.password_of(self.arguments)) as document:
            files = None
            if self.arguments.output is not None:
                files = DocumentFiles(self.arguments.output, Path(name), self.settings)
            for page in document.pages(document.choose(self.pages)):
                try:
                    if page.error is not None:
                        raise page.error
                    self._page(client, page, files)
                except ClientError as error:
                    self.errors.append(error)
                    complain(error, f"{name}, page {page.number}" if document.page_count > 1 else name)
            if files is not None:
                files.finish()

    def _page(self, client: OcrClient, page: Page, files: DocumentFiles | None) -> None:
        if not page.image:
            raise InvalidRequest(f"{page.document} is empty.")
        if page.note:
            say(f"note: {page.note}")
        if self.done and not self.arguments.json:
            write(page_break(page.number))
        started = time.monotonic()
        result = self._read(client, page)
        seconds = time.monotonic() - started
        self.note(result.model)
        if files is not None and (note := files.add(page, result)):
            say(f"warning: {note}")
        if self.arguments.json:
            write(json.dumps(page_record(page, result), ensure_ascii=False) + "\n")
        if self.arguments.facts:
            say(facts(result, self.options.mode, self.truth, seconds))
        if result.finish_reason == "timeout":
            raise TimeLimitExceeded(
                "The time limit passed before the page was finished.", "Give it more time with --timeout."
            )
        self.done += 1
        if result.warning():
            say(f"warning: {page.document}, page {page.number}: {result.warning()}.")
        if advice := noise_advice(result):
            say(f"warning: {page.document}, page {page.number}: {advice}")

    def _read(self, client: OcrClient, page: Page) -> OcrResult:
        """Read a page; prints its text as it comes, where the connection streams and text is asked for."""
        options = page.options(self.options)
        if client.endpoint.http or self.arguments.json:
            result = client.read(page.image, options)
            if not self.arguments.json:
                write((result.text if self.arguments.raw else result.markdown) + "\n")
            return result
        with client.open_stream(page.image, options) as stream:
            for piece in stream if self.arguments.raw else stream.markdown():
                write(piece)
            write("\n")
            return stream.result


def run(arguments: argparse.Namespace) -> ExitCode:
    """Entry point of the command."""
    return OcrCommand(arguments).run()
