"""`deepseek-ocr`, or `python -m deepseek_ocr_client`: reads pages, folders and PDFs with the OCR server."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from deepseek_ocr_client.cli import batch_command, ocr_command, show_command, status_command
from deepseek_ocr_client.cli.report import complain, say
from deepseek_ocr_client.errors import ClientError, ExitCode

COMMANDS = {"ocr": ocr_command, "batch": batch_command, "show": show_command, "status": status_command}
EXIT_CODES = """exit codes:
  0  everything was read            5  the server failed
  1  some pages or files failed     6  the time limit passed
  2  the command line is wrong      7  the key is missing or unknown
  3  an input can't be read        70  a bug in this program
  4  no server, or a full one     130  interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="deepseek-ocr",
        description="Reads pages with DeepSeek-OCR.",
        epilog=EXIT_CODES
        + "\nDEEPSEEK_OCR_* variables set defaults: DEEPSEEK_OCR_URL, DEEPSEEK_OCR_DPI, ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.HELP,
            description=command.HELP[0].upper() + command.HELP[1:] + ".",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.add_argument("--verbose", action="store_true", help="say more when something fails")
        added.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Never shows a traceback unless --verbose asks for it."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC logs to the terminal what we say in a sentence
    # Text goes out as UTF-8 wherever it runs; what the terminal can't show doesn't end the program.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone; that's its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:
        if parsed.verbose:
            traceback.print_exc()
        if isinstance(error, ClientError):
            complain(error)
            return error.exit_code
        name = type(error).__name__
        say(f"error: a bug in this program: {name}: {error}. Please report it with what --verbose prints.")
        return ExitCode.INTERNAL


if __name__ == "__main__":
    sys.exit(main())
