"""Fixtures of the client's tests: a client of the session's server, pages to read, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypedDict

import pytest
from PIL import Image, ImageDraw, ImageFont

from deepseek_ocr_client import ClientSettings, OcrClient
from tests.serving.running import ROOT, RunningServer

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page image with some words."""
    picture = Image.new("RGB", (600, 800), "white")
    draw = ImageDraw.Draw(picture)
    for number in range(8):
        draw.text(
            (60, 60 + 60 * number), f"line {number} of a page", fill="black", font=ImageFont.load_default(28)
        )
    path = tmp_path_factory.mktemp("pages") / "page.png"
    picture.save(path)
    return path


class Options(TypedDict, total=False):
    """Options of a request; a call may add the others."""

    mode: str
    prompt: str
    max_tokens: int
    no_repeat_ngram: tuple[int, int]


SHORT: Options = {"mode": "tiny", "max_tokens": 12}
LONG: Options = {
    "mode": "tiny",
    "max_tokens": 8000,
    "no_repeat_ngram": (0, 0),
    "prompt": "<image>\nFree OCR.",
}
"""Options under which `long_page` takes the decoder a while."""


@pytest.fixture(scope="session")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page full of words: there's time to cancel it."""
    picture = Image.new("RGB", (1280, 1280), "white")
    draw = ImageDraw.Draw(picture)
    for row in range(38):
        words = f"line {row} says that {row * 7919 % 1000} birds " * 2
        draw.text((32, 16 + 32 * row), words, fill="black", font=ImageFont.load_default(26))
    path = tmp_path_factory.mktemp("pages") / "long.png"
    picture.save(path)
    return path


@pytest.fixture
def client(ocr_server: RunningServer) -> Iterator[OcrClient]:
    """A gRPC client of the session's server."""
    with OcrClient(ocr_server.grpc_url, settings=ClientSettings(retries=1)) as found:
        yield found


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, ocr_server: RunningServer) -> str:
    """The address of the session's server, with each scheme in turn."""
    return f"{request.param}://{ocr_server.grpc_url if request.param == 'grpc' else ocr_server.http_url}"


def environment(server: RunningServer, **more: str) -> dict[str, str]:
    """The environment of a command line that talks to `server`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSEEK_OCR_")}
    return kept | {"DEEPSEEK_OCR_URL": server.grpc_url, "DEEPSEEK_OCR_METRICS_URL": server.metrics_url} | more


def command(*arguments: object) -> list[str]:
    """The command line's words."""
    return [sys.executable, "-m", "deepseek_ocr_client", *map(str, arguments)]


def start(
    server: RunningServer, *arguments: object, stderr: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    """`deepseek-ocr ARGUMENTS...` under way."""
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(server),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


@pytest.fixture
def run(ocr_server: RunningServer) -> Run:
    """Runs `deepseek-ocr ARGUMENTS...` against the session's server."""

    def call(
        *arguments: object, stdin: IO[bytes] | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=ROOT,
            env=environment(ocr_server, **more),
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return call
