"""`batch INPUT... --output DIR`: folders, patterns, images and PDFs -> Markdown, figures and JSON lines."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tqdm import tqdm

from deepseek_ocr_client.batch import Batch, Report, guard_names
from deepseek_ocr_client.cli import options as cli
from deepseek_ocr_client.cli.report import ModelNote, complain, say
from deepseek_ocr_client.errors import ExitCode
from deepseek_ocr_client.inputs import find_sources, unread_files
from deepseek_ocr_client.layouts import DocumentLayout, OmniDocBenchLayout, OutputLayout
from deepseek_ocr_client.output import write_lines
from deepseek_ocr_client.pages import pages_of

HELP = "read folders, patterns, images and PDFs into a folder; run it again to resume"
ERRORS = "errors.jsonl"
UNREAD_SHOWN = 5  # files of a folder that are named where they aren't read
SHOWN = 20  # failures and warnings listed at the end; the file has them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder or pattern like 'scans/*.pdf'")
    add("--output", type=Path, required=True, metavar="DIR", help="where results go")
    add("--concurrency", type=int, metavar="N", help="pages on their way at once; default 8")
    add(
        "--retry-seconds",
        type=float,
        metavar="SECONDS",
        help="how long to ask a server that is gone before giving up; default 300",
    )
    add("--overwrite", action="store_true", help="start over instead of resuming")
    add("--quiet", action="store_true", help="no progress bar")
    add(
        "--layout",
        choices=(DocumentLayout.kind, OmniDocBenchLayout.kind),
        default=DocumentLayout.kind,
        help="one Markdown a document, or predictions for OmniDocBench's evaluation",
    )
    cli.add_reading(parser)


class Bar:
    """The progress bar: pages, pages/s of this run, time left, failures."""

    def __init__(self, quiet: bool) -> None:
        self._hidden = True if quiet else None  # None: shown on a terminal only
        self._bar: tqdm[None] = tqdm(disable=True)
        self._failed = 0

    def pages(self, total: int, finished: int) -> None:
        """Begin."""
        if finished:
            say(f"resuming: {pages_of(finished)} of {total} are there already")
        self._bar = tqdm(
            total=total, initial=finished, unit="page", disable=self._hidden, file=sys.stderr, smoothing=0.05
        )

    def page(self, failed: bool) -> None:
        """One more."""
        if failed:
            self._failed += 1
            self._bar.set_postfix(failed=self._failed)
        self._bar.update()

    def close(self) -> None:
        """End."""
        self._bar.close()


def run(arguments: argparse.Namespace) -> ExitCode:
    """Entry point of the command."""
    settings = cli.settings_of(arguments)
    options = cli.options_of(arguments)
    sources = find_sources(arguments.inputs)
    layout: OutputLayout = (
        OmniDocBenchLayout(arguments.output)
        if arguments.layout == OmniDocBenchLayout.kind
        else DocumentLayout(arguments.output, settings)
    )
    guard_names(layout, sources)
    unread = unread_files(arguments.inputs)
    bar = Bar(arguments.quiet)
    with cli.client_of(arguments, settings) as client:
        client.check()
        batch = Batch(
            client,
            arguments.output,
            layout,
            options=options,
            password=cli.password_of(arguments),
            overwrite=arguments.overwrite,
            progress=bar,
        )
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run as Ctrl-C does
        try:
            batch.run(sources)
        except KeyboardInterrupt:
            bar.close()
            say(
                f"interrupted: {pages_of(batch.report.pages)} read and kept; the same command goes on from there"
            )
            return ExitCode.INTERRUPTED
        finally:
            bar.close()
            signal.signal(signal.SIGTERM, before)
    if unread:
        batch.report.warnings.append(_unread(unread))
    return _conclude(batch.report, arguments.output)


def _unread(paths: list[Path]) -> str:
    """What to say of files that were passed over."""
    names = ", ".join(str(path) for path in paths[:UNREAD_SHOWN])
    more = f" and {len(paths) - UNREAD_SHOWN} more" if len(paths) > UNREAD_SHOWN else ""
    return f"files that aren't PDFs or images by their names were not read: {names}{more}."


def _conclude(report: Report, folder: Path) -> ExitCode:
    """Say how it went, leave the failures in a file, and choose the exit code."""
    errors = folder / ERRORS
    if report.failures:
        write_lines(errors, (failure.to_dict() for failure in report.failures))
    else:
        errors.unlink(missing_ok=True)
    ModelNote()(report.model)
    _list("warning", report.warnings)
    _list("failed", [str(failure) for failure in report.failures])
    say(
        f"{pages_of(report.pages)} read"
        + (f", {report.resumed} there already" if report.resumed else "")
        + f", {len(report.failures)} failed; results are in {folder}"
        + (f", failures in {errors}" if report.failures else "")
    )
    if report.stopped is not None:
        complain(report.stopped)
        return report.stopped.exit_code
    return ExitCode.PARTIAL if report.failures else ExitCode.OK


def _list(word: str, lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        say(f"{word}: {line}")
    if len(lines) > SHOWN:
        say(f"{word}: {len(lines) - SHOWN} more")
