"""Command line of the launcher: `python -m server serve`, `python -m server run -- COMMAND`, `... ready`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from rtprune.errors import OcrError
from server.launcher.launch import Launcher
from server.launcher.readiness import read_small_page
from server.launcher.settings import ServerSettings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument("--engines", help="folder that export wrote (default: engines, or OCR_ENGINES)")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--http-port", type=int, help="default: 8000")
    parser.add_argument("--grpc-port", type=int, help="default: 8001")
    parser.add_argument("--metrics-port", type=int, help="default: 8002")
    parser.add_argument("--restarts", type=int, help="how often to restart a server that died (default: 0)")
    parser.add_argument("--log-file", help="file for the server's log (default: standard output)")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("serve", help="keep the server up until Ctrl-C")
    run = actions.add_parser("run", help="start the server, run a command against it, stop the server")
    run.add_argument("command", nargs=argparse.REMAINDER, help="the command, after --")
    actions.add_parser("ready", help="read a small page through a running server; exit 0 if that works")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a server that fails, 2 for a wrong setting or no command.

    `run` returns the command's own.
    """
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    given = {
        name: value
        for name, value in vars(args).items()
        if name not in ("action", "command") and value is not None
    }
    try:
        settings = ServerSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        print(f"The setting {first['loc'][0]} is wrong: {first['msg']}.", file=sys.stderr)
        return 2
    if args.action == "serve":
        return Launcher(settings).serve()
    if args.action == "run":
        command = args.command[1:] if args.command[:1] == ["--"] else args.command
        if not command:
            print("'run' needs a command after --.", file=sys.stderr)
            return 2
        return Launcher(settings).run(command)
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    try:
        read_small_page(host, settings.grpc_port)
    except OcrError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
