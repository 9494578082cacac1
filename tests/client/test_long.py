"""The long checks: 300 pages in bounded memory, killed half-way; minutes of fuzzing the parser."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deepseek_ocr_client.markdown import MarkdownStream, to_markdown
from deepseek_ocr_client.tags import RegionTag, TagParser, parse
from tests.client.conftest import start
from tests.client.pdf_files import text_pages
from tests.client.test_batch import pages, wait_for_pages
from tests.client.test_tags import ALPHABET, joined
from tests.serving.running import RunningServer

PAGES = 300
MEMORY_MIB = 400
FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "300"))


def watched(process: subprocess.Popen[str], folder: Path, until: int) -> float:
    """Wait for the process, or kill it once `until` pages are there; returns its peak memory in MiB."""
    peak = 0.0
    watch = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            everything = [watch, *watch.children(recursive=True)]
            peak = max(peak, sum(each.memory_info().rss for each in everything) / 2**20)
        except psutil.Error:
            break
        if until and len((folder / "pages.jsonl").read_bytes().splitlines()) > until:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    process.wait(60)
    return peak


@pytest.mark.long
@pytest.mark.serving
@pytest.mark.timeout(3000)
def test_300_pages_in_bounded_memory_killed_and_resumed(
    ocr_server: RunningServer, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    (tmp_path / "book.pdf").write_bytes(text_pages(PAGES))
    out = tmp_path / "out"
    line = ["batch", tmp_path / "book.pdf", "--output", out, "--mode", "tiny", "--max-tokens", 16, "--quiet"]
    peaks = []
    for until in (PAGES // 2, 0):
        with (tmp_path / "said.txt").open("w") as said:
            process = start(ocr_server, *line, stderr=said)
            wait_for_pages(process, out, 1)
            peaks.append(watched(process, out, until))
    words = (tmp_path / "said.txt").read_text()
    assert process.returncode == 0, words
    assert "there already" in words
    assert pages(out, "book") == list(range(1, PAGES + 1))  # no loss, no duplicates
    assert (out / "book.md").read_text().count("<!-- page ") == PAGES - 1
    assert not list(out.rglob("*.part"))
    record_property("peak_mib", peaks)
    print(f"peak memory of the client: {', '.join(f'{peak:.0f}' for peak in peaks)} MiB")
    assert max(peaks) < MEMORY_MIB


def hostile(generator: random.Random) -> str:
    """What a model at its worst might write: tags whole, cut, nested, shuffled, and any character."""
    words = []
    for _ in range(generator.randrange(60)):
        kind = generator.random()
        if kind < 0.7:
            words.append(generator.choice(ALPHABET))
        elif kind < 0.8:
            words.append(str(generator.randrange(-(10**12), 10**12)))
        elif kind < 0.95:
            words.append(
                "".join(
                    chr(generator.choice((generator.randrange(128), generator.randrange(0xD7FF))))
                    for _ in range(5)
                )
            )
        else:
            words.append(generator.choice(ALPHABET) * generator.randrange(2000))
    text = "".join(words)
    for _ in range(generator.randrange(6)):  # damage it
        place = generator.randrange(len(text) + 1)
        text = text[:place] + text[place + generator.randrange(4) :]
    return text


def check(text: str, generator: random.Random) -> None:
    """Everything that must hold of any text, in any pieces."""
    events = list(parse(text))
    assert "".join(event if isinstance(event, str) else event.raw for event in events) == text
    for event in events:
        if isinstance(event, RegionTag):
            assert event.boxes
            assert all(0 <= x1 <= x2 <= 999 and 0 <= y1 <= y2 <= 999 for x1, y1, x2, y2 in event.boxes)
    parser, stream = TagParser(), MarkdownStream()
    found, markdown, at = [], [], 0
    while at < len(text):
        piece = text[at : at + generator.choice((1, 2, 3, 7, 50, 1000))]
        at += len(piece)
        found += parser.feed(piece)
        markdown.append(stream.feed(piece))
    assert joined(found + parser.close()) == joined(events)
    whole, figures = to_markdown(text)
    assert "".join(markdown) + stream.close() == whole
    assert stream.figures == figures
    kept = iter("".join(to_markdown(text, None)[0].split()))
    outside = "".join(event for event in events if isinstance(event, str))
    assert all(character in kept for character in "".join(outside.split()))


@pytest.mark.long
@pytest.mark.timeout(int(FUZZ_SECONDS) + 300)
def test_minutes_of_fuzzing_find_nothing() -> None:
    until = time.monotonic() + FUZZ_SECONDS
    count = 0
    while time.monotonic() < until:
        seed = random.randrange(2**60)
        generator = random.Random(seed)
        text = hostile(generator)
        try:
            check(text, generator)
        except BaseException:
            print(f"seed {seed}: {text[:2000]!r}")
            raise
        count += 1
    print(f"{count} texts in {FUZZ_SECONDS:.0f} s")
    assert count > 100
