"""`deepseek-ocr`, or `python -m deepseek_ocr_client`: reads pages, folders and PDFs with the OCR server."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from deepseek_ocr_client.errors import ClientError, ExitCode

COMMANDS = {
    "ocr": "ocr_command",
    "batch": "batch_command",
    "show": "show_command",
    "status": "status_command",
}
EXIT_CODES = """exit codes:
  0  everything was read            4  no server answers, or it's full
  1  some pages or files failed     5  the server failed
  2  the command line is wrong      6  the time limit passed
  3  an input can't be read        70  a bug in this program
                                  130  interrupted
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
    for name, module in COMMANDS.items():
        command = import_module(f"deepseek_ocr_client.cli.{module}")
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
    except ClientError as error:
        _explain(f"error: {error}{' ' + error.advice if error.advice else ''}", parsed.verbose)
        return int(error.exit_code)
    except KeyboardInterrupt:
        _explain("interrupted", verbose=False)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone; that's its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:
        _explain(
            f"error: a bug in this program: {type(error).__name__}: {error}. "
            "Please report it with what --verbose prints.",
            parsed.verbose,
        )
        return int(ExitCode.INTERNAL)


def _explain(sentence: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
