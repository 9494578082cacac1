"""`batch` against a real server: what it writes, what it survives, how it ends."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from deepseek_ocr_client import ClientSettings, OcrClient, OcrOptions, ServerUnavailable
from deepseek_ocr_client.batch import Batch, Failure, Report
from deepseek_ocr_client.errors import ExitCode
from deepseek_ocr_client.inputs import find_sources
from deepseek_ocr_client.journal import NAME
from deepseek_ocr_client.layouts import DocumentLayout
from deepseek_ocr_client.pages import Page
from deepseek_ocr_client.result import OcrResult
from tests.client.conftest import Run, start
from tests.client.forwarder import Forwarder
from tests.client.pdf_files import PageSpec, make_pdf, one_page, stream, text_pages
from tests.serving.running import RunningServer

pytestmark = pytest.mark.serving
QUICK = ("--mode", "tiny", "--max-tokens", "4", "--quiet")


def lines(folder: Path) -> list[dict[str, object]]:
    """The finished pages of a folder, as the journal has them."""
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()[1:]]


def pages(folder: Path, name: str) -> list[int]:
    return sorted(int(str(line["page"])) for line in lines(folder) if line["name"] == name)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with a PDF, an image, a PDF with a page too large, and a broken file."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "report.pdf").write_bytes(text_pages(4))
    Image.new("RGB", (300, 200), "white").save(folder / "sub" / "scan.png")
    huge = [PageSpec(["one"]), PageSpec(["huge"], size=(14_400, 14_400)), PageSpec(["three"])]
    (folder / "huge.pdf").write_bytes(make_pdf(huge))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    return folder


def test_a_folder_becomes_markdown_json_and_a_list_of_failures(
    run: Run, documents: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run("batch", documents, "--output", out, *QUICK)
    assert done.returncode == ExitCode.PARTIAL
    assert "Traceback" not in done.stderr
    assert "7 pages read, 2 failed" in done.stderr
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.md")) == [
        "huge.md",
        "report.md",
        "sub/scan.md",
    ]
    assert pages(out, "report") == [1, 2, 3, 4]
    assert pages(out, "huge") == [1, 3]
    report = (out / "report.md").read_text()
    assert [report.count(f"<!-- page {number} -->") for number in (2, 3, 4)] == [1, 1, 1]
    assert "page 2 couldn't be read" in (out / "huge.md").read_text()
    failures = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert {(Path(failure["document"]).name, failure["page"]) for failure in failures} == {
        ("broken.pdf", None),
        ("huge.pdf", 2),
    }
    first = lines(out)[0]
    assert {"text", "markdown", "regions", "kept", "layout", "timings", "finish_reason", "digest"} <= set(
        first
    )
    # Once more: nothing is read again, what failed is tried again.
    again = run("batch", documents, "--output", out, *QUICK)
    assert "0 pages read, 7 there already, 2 failed" in again.stderr
    assert pages(out, "report") == [1, 2, 3, 4]


def test_other_options_and_other_runs_are_kept_apart(run: Run, documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("batch", documents / "report.pdf", "--output", out, *QUICK).returncode == ExitCode.OK
    other = run("batch", documents / "report.pdf", "--output", out, "--mode", "small", "--quiet")
    assert other.returncode == ExitCode.INPUT
    assert "other options" in other.stderr
    anew = run("batch", documents / "report.pdf", "--output", out, *QUICK, "--retention", "1", "--overwrite")
    assert anew.returncode == ExitCode.OK
    assert pages(out, "report") == [1, 2, 3, 4]


def test_a_document_that_grew_is_read_again_whole(run: Run, documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("batch", documents / "report.pdf", "--output", out, *QUICK)
    (documents / "report.pdf").write_bytes(text_pages(5))
    done = run("batch", documents / "report.pdf", "--output", out, *QUICK)
    assert "5 pages read;" in done.stderr.replace(", 0 failed", ";")
    assert pages(out, "report") == [1, 2, 3, 4, 5]


def wait_for_pages(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not (folder / NAME).exists() or len((folder / NAME).read_bytes().splitlines()) <= count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_goes_on_without_loss_or_duplicates(
    ocr_server: RunningServer, run: Run, tmp_path: Path, how: signal.Signals
) -> None:
    (tmp_path / "long.pdf").write_bytes(text_pages(24))
    out = tmp_path / "out"
    line = ("batch", tmp_path / "long.pdf", "--output", out, "--concurrency", 2, *QUICK)
    process = start(ocr_server, *line)
    wait_for_pages(process, out, 5)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert process.returncode == ExitCode.INTERRUPTED
        assert "goes on from there" in said
        assert "Traceback" not in said
    kept = len(lines(out)) if how != signal.SIGKILL else None
    assert not (out / "long.md").exists()
    done = run(*line)
    assert done.returncode == ExitCode.OK, done.stderr
    assert pages(out, "long") == list(range(1, 25))
    if kept is not None:
        assert f"{24 - kept} pages read, {kept} there already" in done.stderr
    assert (out / "long.md").read_text().count("<!-- page ") == 23
    assert not list(out.rglob("*.part"))


def test_omnidocbench_layout(run: Run, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("book (1).pdf_3.jpg", "page.png"):
        Image.new("RGB", (200, 200), "white").save(images / name)
    out = tmp_path / "out"
    done = run("batch", images, "--output", out, "--layout", "omnidocbench", *QUICK)
    assert done.returncode == ExitCode.OK, done.stderr
    assert sorted(path.name for path in (out / "predictions").iterdir()) == ["book (1).pdf_3.md", "page.md"]
    (images / "sub").mkdir()
    Image.new("RGB", (200, 200), "white").save(images / "sub" / "page.png")
    clash = run("batch", images, "--output", out, "--layout", "omnidocbench", *QUICK)
    assert clash.returncode == ExitCode.INPUT
    assert "one prediction between them" in clash.stderr


def test_odd_files_cost_a_sentence_each_and_every_run_goes_through(run: Run, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    white = Image.new("RGB", (300, 200), "white")
    white.save(scans / "good.png")
    os.rename(scans / "good.png", os.fsencode(scans) + b"/caf\xe9.png")
    os.mkdir(os.fsencode(scans) + b"/f\xfcr")
    white.save(scans / "a.png")
    os.rename(scans / "a.png", os.fsencode(scans) + b"/f\xfcr/caf\xe9.png")
    white.save(scans / "page.jfif", "JPEG")
    white.save(scans / "cut.tif", compression="tiff_lzw")
    (scans / "cut.tif").write_bytes((scans / "cut.tif").read_bytes()[:-60])
    (scans / "head.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    (scans / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    exif = b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\1" * 30
    white.save(scans / "exif.jpg", exif=exif)
    (scans / "letter.docx").write_bytes(b"PK")
    (scans / ".hidden.xyz").write_bytes(b"")
    out = tmp_path / "out"
    for pages_read, there in ((4, 0), (0, 4)):
        done = run("batch", scans, "--output", out, *QUICK)
        assert done.returncode == ExitCode.PARTIAL, done.stderr
        assert f"{pages_read} page" in done.stderr
        assert (f"{there} there already" in done.stderr) == bool(there)
        assert "3 failed" in done.stderr
        assert "letter.docx" in done.stderr
        assert ".hidden.xyz" not in done.stderr
        assert "TIFF" in done.stderr
        assert "HEIC" in done.stderr
        assert not any(word in done.stderr for word in ("Traceback", "TIFFRead", "bug"))
    assert sorted(path.name for path in out.rglob("*.md")) == ["caf_.md", "caf_.md", "exif.md", "page.md"]
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["f_r"]
    names = {str(line["document"]) for line in lines(out)}
    assert os.fsdecode(os.fsencode(scans) + b"/caf\xe9.png") in names
    failures = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert {Path(each["document"]).name for each in failures} == {"cut.tif", "head.tif", "photo.heic"}


def test_what_a_pdf_s_pages_do_not_show_is_in_the_report(run: Run, tmp_path: Path) -> None:
    forms = tmp_path / "forms"
    forms.mkdir()
    (forms / "form.pdf").write_bytes(
        one_page(
            b"0 0 0 rg 40 40 100 20 re f", stream(b"<x/>"), catalog="/AcroForm << /Fields [] /XFA 5 0 R >>"
        )
    )
    (forms / "blank.pdf").write_bytes(one_page(b"1 1 1 rg 40 40 100 20 re f"))
    done = run("batch", forms, "--output", tmp_path / "out", *QUICK)
    assert done.returncode == ExitCode.OK
    assert "form.pdf is an XFA form" in done.stderr
    assert "blank.pdf draws something, and its picture is blank." in done.stderr
    assert sum("note" in line for line in lines(tmp_path / "out")) == 2


def test_a_server_s_advice_is_in_the_report(tmp_path: Path) -> None:
    failure = Failure(Path("a.png"), 1, ServerUnavailable("The server is full.", "Try again later."))
    assert str(failure) == "a.png, page 1: The server is full. Try again later."
    assert failure.to_dict()["advice"] == "Try again later."


@pytest.fixture
def gate(ocr_server: RunningServer) -> Iterator[Forwarder]:
    with Forwarder(ocr_server.grpc_url) as found:
        yield found.start()


class Disturbed(DocumentLayout):
    """Something happens before page 1, 2, 3, ... is saved."""

    def __init__(self, folder: Path, settings: ClientSettings, disturb: Callable[[int], object]) -> None:
        super().__init__(folder, settings)
        self._disturb = disturb
        self._count = itertools.count(1)

    def save_page(self, name: str, page: Page, result: OcrResult) -> tuple[str, str]:
        self._disturb(next(self._count))
        return super().save_page(name, page, result)


def read(
    url: str, source: Path, settings: ClientSettings, disturb: Callable[[int], object] = lambda number: None
) -> Report:
    """Reads `source` into the folder `out` beside it."""
    out = source.parent / "out"
    with OcrClient(url, settings=settings) as client:
        options = OcrOptions(mode="tiny", max_tokens=4)
        return Batch(client, out, Disturbed(out, settings, disturb), options=options).run(
            find_sources([str(source)])
        )


def test_a_server_that_goes_away_stops_the_run_and_keeps_its_pages(
    ocr_server: RunningServer, gate: Forwarder, tmp_path: Path
) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pages(30))

    def cut(number: int) -> None:
        if number == 6:
            gate.close()

    settings = ClientSettings(concurrency=2, retry_seconds=0.5, backoff=0.01)
    report = read(gate.address, tmp_path / "a.pdf", settings, cut)
    assert isinstance(report.stopped, ServerUnavailable)
    assert 6 <= report.pages < 30
    assert len(report.failures) < 3  # it didn't go through the rest page by page
    assert len(pages(tmp_path / "out", "a")) == report.pages
    rest = read(ocr_server.grpc_url, tmp_path / "a.pdf", ClientSettings())
    assert (rest.pages, rest.resumed, rest.failures) == (30 - report.pages, report.pages, [])


def test_a_connection_that_breaks_costs_no_page(gate: Forwarder, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pages(12))

    def cut(number: int) -> None:
        if number % 4 == 0:
            gate.cut()

    settings = ClientSettings(concurrency=3, backoff=0.05)
    report = read(gate.address, tmp_path / "a.pdf", settings, cut)
    assert (report.pages, report.failures, report.stopped) == (12, [], None)


@pytest.mark.parametrize("model", ["decoder", "vision"])
def test_a_server_that_starts_again_costs_no_page(engines: Path, tmp_path: Path, model: str) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pages(12))
    server = RunningServer(engines, tmp_path / "server.log", OCR_RESTARTS="1")
    server.start()

    def kill(number: int) -> None:
        if number == 4:
            server.stubs()[model].send_signal(signal.SIGKILL)

    try:
        report = read(server.grpc_url, tmp_path / "a.pdf", ClientSettings(concurrency=3), kill)
    finally:
        server.stop()
    assert (report.pages, [str(each) for each in report.failures], report.stopped) == (12, [], None)
    assert pages(tmp_path / "out", "a") == list(range(1, 13))


def test_a_folder_that_fills_up_stops_the_run(ocr_server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pages(6))
    blocked = tmp_path / "out" / "a.md"  # a folder where the document should go
    report = read(
        ocr_server.grpc_url, tmp_path / "a.pdf", ClientSettings(), lambda number: blocked.mkdir(exist_ok=True)
    )
    assert report.stopped is not None
    assert "can't be written" in str(report.stopped)
    assert pages(tmp_path / "out", "a") == [1, 2, 3, 4, 5, 6]
