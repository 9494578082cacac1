"""Where a synchronous client is used: forked processes, threads, running loops, a program that just ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepseek_ocr_client import OcrClient, RequestCancelled, ServerFailed
from tests.client.conftest import LONG, SHORT
from tests.serving.running import ROOT, RunningServer

pytestmark = pytest.mark.serving

BEGIN = """
import gc, os, signal, sys, threading
from deepseek_ocr_client import ClientError, OcrClient, OcrOptions
url, page, long_page = sys.argv[1:]
short = dict(mode="tiny", max_tokens=12)
long = dict(mode="tiny", max_tokens=8000, no_repeat_ngram=(0, 0), prompt="<image>\\nFree OCR.")
client = OcrClient(url)
"""
FORK = """
text = client.ocr(page, **short).text
STREAM
child = os.fork()
if child == 0:
    signal.alarm(60)
    try:
        print(client.ocr(page, **short).text == text, OcrClient(url).ocr(page, **short).text == text)
    except ClientError as error:
        print(error)
    EXIT
assert os.waitpid(child, 0)[1] == 0
print(client.ocr(page, **short).text == text)
"""


def run(url: str, page: Path, long_page: Path, program: str, **environment: str) -> str:
    """What the program prints; it must end by itself and complain of nothing."""
    line = [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", BEGIN + program]
    line += [url, str(page), str(long_page)]
    env = os.environ | environment
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    complaints = [
        line for line in done.stderr.splitlines() if line and "took" not in line and "fork" not in line
    ]
    assert (done.returncode, complaints) == (0, [])
    return done.stdout


def test_a_forked_process_reads_pages_too(url: str, page: Path, long_page: Path) -> None:
    program = FORK.replace("STREAM", "").replace("EXIT", "sys.exit()")
    assert run(url, page, long_page, program) == "True True\nTrue\n"


def test_a_process_forked_amid_a_request_says_that_it_cannot(
    endless_server: RunningServer, page: Path, long_page: Path
) -> None:
    program = FORK.replace("EXIT", "sys.stdout.flush(); os._exit(0)")
    program = program.replace("STREAM", "stream = client.stream(long_page, **long); next(stream)")
    # Without it gRPC's own handlers crash one such process in ten, whether or not it uses gRPC.
    said = run(endless_server.grpc_url, page, long_page, program, GRPC_ENABLE_FORK_SUPPORT="0")
    assert said.startswith("This process was forked while its parent was reading pages")
    assert said.endswith("\nTrue\n")


@pytest.mark.parametrize(
    "program",
    [
        "client.ocr(page, **short)",
        "stream = client.stream(long_page, **long); next(stream)",
        "stream = client.stream(long_page, **long); next(stream); del stream; client.close()",
        "stream = client.stream(long_page, **long); next(stream); client.close(); stream.cancel(); stream = None",
        "client.ocr(page, **short); del client; gc.collect()",
        "import atexit; atexit.register(lambda: client.ocr(page, **short))",
        "pages = client.ocr_document(page, options=OcrOptions(**short)); next(pages)",
    ],
)
def test_a_program_may_end_without_closing_anything(
    endless_server: RunningServer, page: Path, long_page: Path, program: str
) -> None:
    assert run(endless_server.grpc_url, page, long_page, program) == ""


def test_an_interrupt_ends_the_request_and_not_the_client(
    endless_server: RunningServer, page: Path, long_page: Path
) -> None:
    program = """
threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    client.ocr(long_page, **long)
except KeyboardInterrupt:
    print("interrupted", client.ocr(page, **short).finish_reason)
"""
    assert run(endless_server.grpc_url, page, long_page, program) == "interrupted length\n"


def test_inside_a_running_loop(client: OcrClient, page: Path) -> None:
    async def main() -> str:
        return client.ocr(page, **SHORT).text

    assert asyncio.run(main()) == client.ocr(page, **SHORT).text


def test_many_threads_share_a_client_and_none_is_left(ocr_server: RunningServer, page: Path) -> None:
    with OcrClient(ocr_server.grpc_url) as client:
        client.ocr(page, **SHORT)
        before = threading.active_count()
        with ThreadPoolExecutor(12) as threads:
            texts = set(threads.map(lambda _: client.ocr(page, **SHORT).text, range(36)))
        assert len(texts) == 1
    assert threading.active_count() <= before
    with pytest.raises(ServerFailed, match="closed"):
        client.ocr(page, **SHORT)


def test_a_stream_outlives_the_block_of_its_client(ocr_server: RunningServer, page: Path) -> None:
    with OcrClient(ocr_server.grpc_url) as client:
        stream = client.stream(page, mode="tiny", max_tokens=60)
        first = next(stream)
    assert first + "".join(stream) == stream.result.text


def test_a_cancelled_client_refuses_and_its_readers_are_told(
    endless_server: RunningServer, long_page: Path
) -> None:
    with OcrClient(endless_server.grpc_url) as client:
        timer = threading.Timer(1, client.cancel)
        timer.start()
        with pytest.raises(RequestCancelled):
            client.ocr(long_page, **LONG)
        with pytest.raises(RequestCancelled):
            client.ocr(long_page, **LONG)
