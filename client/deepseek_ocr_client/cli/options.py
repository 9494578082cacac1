"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from deepseek_ocr_client.connection import Tls
from deepseek_ocr_client.errors import InvalidRequest
from deepseek_ocr_client.ocr import OcrClient
from deepseek_ocr_client.request import OcrOptions, Retention
from deepseek_ocr_client.settings import MODES, PROMPTS, ClientSettings


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Where the server is and how to talk to it."""
    add = parser.add_argument_group("server").add_argument
    add(
        "--url",
        help="host:port, grpc://, grpcs://, http:// or https:// (HTTP: no streaming); default %(default)s",
        default=os.environ.get("DEEPSEEK_OCR_URL", ClientSettings().url),
    )
    add("--timeout", type=float, metavar="SECONDS", help="time limit of a page, waiting included")
    add("--header", action="append", default=[], metavar="NAME=VALUE", help="sent with every request")
    add("--tls-ca", type=Path, metavar="FILE", help="certificate authorities (PEM)")
    add("--tls-cert", type=Path, metavar="FILE", help="client certificate (PEM)")
    add("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """What to ask the model, how to read PDFs, and where the server is."""
    add = parser.add_argument_group("model").add_argument
    add("--mode", choices=MODES, help="how closely to look; default: the server's choice")
    add("--prompt", help=f"a prompt, or one of {', '.join(PROMPTS)}; default: markdown", metavar="TEXT")
    add(
        "--retention",
        type=_retention,
        metavar="R",
        help="dynamic (as the page allows), off, or the share of content tokens to keep; default: the server's choice",
    )
    add("--max-tokens", type=int, metavar="N", help="output tokens at most")
    add(
        "--no-repeat-ngram",
        metavar="N,WINDOW",
        help="no N tokens may repeat within the last WINDOW; 0,0 = off",
    )
    add("--shared-memory", action="store_true", help="hand images over in shared memory (one host, gRPC)")
    add = parser.add_argument_group("PDF").add_argument
    add("--dpi", type=float, help="resolution of rendered pages; default 144")
    add("--password", help="password of protected files (or DEEPSEEK_OCR_PASSWORD)")
    add_connection(parser)


def settings_of(arguments: argparse.Namespace) -> ClientSettings:
    """The settings: environment first, options over them."""
    given = {
        name: value
        for name in ("timeout", "dpi", "concurrency", "retry_seconds")
        if (value := getattr(arguments, name, None)) is not None
    }
    if given.get("timeout") == 0:
        raise InvalidRequest("--timeout must be more than 0 seconds.")
    return replace(ClientSettings.from_env(), **given)


def client_of(arguments: argparse.Namespace, settings: ClientSettings) -> OcrClient:
    """A client for the server that the options name."""
    headers = {}
    for entry in arguments.header:
        name, separator, value = entry.partition("=")
        if not separator:
            raise InvalidRequest(f"--header {entry!r} has no value.", "Write --header name=value.")
        headers[name.strip()] = value.strip()
    files = (arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    tls = Tls(*files) if any(files) else None
    return OcrClient(
        arguments.url,
        tls=tls,
        headers=headers,
        shared_memory=getattr(arguments, "shared_memory", False),
        settings=settings,
    )


def options_of(arguments: argparse.Namespace) -> OcrOptions:
    """The request's options."""
    return OcrOptions(
        mode=arguments.mode,
        prompt=prompt_of(arguments.prompt),
        retention=arguments.retention,
        max_tokens=arguments.max_tokens,
        no_repeat_ngram=_ngram(arguments.no_repeat_ngram),
    )


def _retention(written: str) -> Retention:
    return written if written in ("dynamic", "off") else float(written)  # type: ignore[return-value]


def password_of(arguments: argparse.Namespace) -> str | None:
    """The password for protected PDFs; the environment keeps it out of the process list."""
    return arguments.password or os.environ.get("DEEPSEEK_OCR_PASSWORD")


def prompt_of(written: str | None) -> str | None:
    """The prompt by its short name, or as written, with the image's place in front where it has none."""
    if written is None:
        return None
    prompt = PROMPTS.get(written, written)
    return prompt if "<image>" in prompt else "<image>\n" + prompt


def _ngram(written: str | None) -> tuple[int, int] | None:
    if written is None:
        return None
    parts = written.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise InvalidRequest(f"--no-repeat-ngram {written!r} isn't N,WINDOW.", "Write it like 30,90.")
    return int(parts[0]), int(parts[1])
