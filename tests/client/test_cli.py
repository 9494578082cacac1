"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pypdfium2 as pdfium
import pytest
from PIL import Image

from deepseek_ocr_client.cli.report import REFERENCE, harmless, noise_advice
from deepseek_ocr_client.errors import ExitCode
from tests.client.conftest import LONG, Run, start
from tests.client.pdf_files import LOCKED, text_pages
from tests.client.results import make_result
from tests.serving.running import ROOT, RunningServer

pytestmark = pytest.mark.serving
QUICK = ("--mode", "tiny", "--max-tokens", "8")


def test_ocr_prints_text_and_facts_apart(run: Run, page: Path, tmp_path: Path) -> None:
    (tmp_path / "truth.md").write_text("something else")
    done = run("ocr", page, *QUICK, "--facts", "--truth", tmp_path / "truth.md")
    assert done.returncode == ExitCode.OK, done.stderr
    facts = next(line for line in done.stderr.splitlines() if line.startswith("mode "))
    parts = (
        "mode tiny",
        "visual tokens 73 -> ",
        "output tokens ",
        "character error rate ",
        "first token ",
        "total ",
    )
    assert all(part in facts for part in parts), facts
    assert "visual tokens" not in done.stdout


def test_json_and_http_and_standard_input(run: Run, ocr_server: RunningServer, page: Path) -> None:
    texts = set()
    for url in (ocr_server.grpc_url, f"http://{ocr_server.http_url}"):
        record = json.loads(run("ocr", page, "--url", url, *QUICK, "--json").stdout)
        assert (record["page"], record["size"]) == (1, {"width": 600, "height": 800})
        texts.add(record["text"])
    with page.open("rb") as file:
        texts.add(run("ocr", "-", *QUICK, "--raw", stdin=file).stdout.removesuffix("\n"))
    assert len(texts) == 1


def test_several_pages_have_breaks_and_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pages(3))
    done = run("ocr", tmp_path / "a.pdf", "--pages", "1,3", *QUICK, "--output", tmp_path / "out")
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout.count("<!-- page 3 -->") == 1
    assert (tmp_path / "out" / "a.md").read_text().count("<!-- page 3 -->") == 1
    records = [json.loads(line) for line in (tmp_path / "out" / "a.jsonl").read_text().splitlines()]
    assert [record["page"] for record in records] == [1, 3]


def test_text_comes_while_it_is_written(endless_server: RunningServer, long_page: Path) -> None:
    options = ["--mode", LONG["mode"], "--max-tokens", LONG["max_tokens"], "--no-repeat-ngram", "0,0"]
    with start(endless_server, "ocr", long_page, *options, "--prompt", "free", "--raw") as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert process.poll() is None  # still being written
        process.send_signal(2)
        _, said = process.communicate(timeout=60)
        assert process.returncode == ExitCode.INTERRUPTED
        assert said.strip().endswith("interrupted")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ocr", "none.png"], ExitCode.INPUT, "no file"),
        (["ocr", "README.md"], ExitCode.INPUT, "not an image that can be read"),
        (["ocr", "PAGE", "--mode", "giant"], ExitCode.USAGE, "invalid choice"),
        (["ocr", "PAGE", "--retention", "2"], ExitCode.INPUT, "retention"),
        (["ocr", "PAGE", "--pages", "7"], ExitCode.INPUT, "no page 7"),
        (["ocr", "PAGE", "--pages", "x"], ExitCode.INPUT, "no pages"),
        (["ocr", "PAGE", "--max-tokens", "999999"], ExitCode.INPUT, "MAX_TOKENS"),
        (["ocr", "PAGE", "--url", "127.0.0.1:1"], ExitCode.UNAVAILABLE, "--url"),
        (["ocr", "PAGE", "--url", "not an address"], ExitCode.INPUT, "address"),
        (["ocr", "PAGE", "--header", "x"], ExitCode.INPUT, "--header"),
        (["ocr", "PAGE", "--timeout", "0"], ExitCode.INPUT, "--timeout"),
        (["ocr", "PAGE", "none.png", "--mode", "tiny", "--max-tokens", "2"], ExitCode.PARTIAL, "no file"),
        (["ocr", "PAGE", "--truth", "none.md"], ExitCode.INPUT, "truth"),
        (["batch", "none", "--output", "/tmp"], ExitCode.INPUT, "no file"),
        (["show", "PAGE", "--output", "x.txt"], ExitCode.INPUT, ".png"),
        (["status", "--url", "127.0.0.1:1"], ExitCode.UNAVAILABLE, "No server answers"),
        ([], ExitCode.USAGE, "usage"),
    ],
)
def test_errors_are_one_sentence_and_a_code(
    run: Run, page: Path, arguments: list[str], code: ExitCode, words: str
) -> None:
    done = run(*[str(page) if argument == "PAGE" else argument for argument in arguments])
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    if code != ExitCode.USAGE:
        assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1


def test_the_reference_model_is_named_once_a_run_and_noise_is_called_so(run: Run, tmp_path: Path) -> None:
    Image.effect_noise((512, 512), 200).save(tmp_path / "noise.png")
    readable = ROOT / "examples" / "page.png"
    done = run("ocr", readable, tmp_path / "noise.png", "--mode", "tiny", "--max-tokens", 200, "--json")
    assert [json.loads(line)["model"] for line in done.stdout.splitlines()] == [REFERENCE] * 2
    assert done.stderr.count("note: this server runs reference-deepseek-ocr") == 1
    advice = [line for line in done.stderr.splitlines() if "looks like noise" in line]
    assert len(advice) == 1
    assert "noise.png" in advice[0]
    assert "DeepSeek-OCR's weights" in advice[0]


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("", False),
        ("Harbour ledger\ngranite 3.50 | lantern 86\n\n<|ref|>text<|/ref|><|det|>[[1,2,3,4]]<|/det|>", False),
        ("# Title\n\n| 12,50 EUR | (yes) |\n![](figure-1.jpg)", False),
        ("r\u00b0\u00b0-t-c:\nc\u2013r~-c:\nwiwiwuwi\u00d7kiw w\u2026w", True),
        ("-`--s:\n-`---\n`-`-\n\n-`--`-", True),
    ],
)
def test_noise_is_told_from_text(text: str, noise: bool) -> None:
    result = replace(make_result(text), model=REFERENCE)
    assert bool(noise_advice(result)) == noise
    assert not noise_advice(replace(result, model="deepseek-ai/DeepSeek-OCR"))


def test_verbose_shows_where(run: Run, page: Path) -> None:
    assert "Traceback" in run("ocr", page, "--url", "127.0.0.1:1", "--verbose").stderr


def test_a_time_limit_has_its_own_code(
    run: Run, endless_server: RunningServer, long_page: Path, page: Path
) -> None:
    url = {"DEEPSEEK_OCR_URL": endless_server.grpc_url}
    run("ocr", page, *QUICK, **url)
    options = ["--mode", "tiny", "--max-tokens", 8000, "--no-repeat-ngram", "0,0", "--prompt", "free"]
    done = run("ocr", long_page, *options, "--timeout", "1", **url)
    assert done.returncode == ExitCode.TIMEOUT, done.stderr
    assert done.stdout.strip()  # what was written till then is there
    assert "--timeout" in done.stderr


def test_a_password_comes_from_the_environment(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(LOCKED)
    assert run("ocr", tmp_path / "a.pdf", *QUICK).returncode == ExitCode.INPUT
    assert run("ocr", tmp_path / "a.pdf", *QUICK, DEEPSEEK_OCR_PASSWORD="sesame").returncode == ExitCode.OK


def test_status(run: Run, ocr_server: RunningServer) -> None:
    done = run("status")
    assert done.returncode == ExitCode.OK
    assert "triton 2." in done.stdout
    assert "tiny" in done.stdout
    assert "deepseek_ocr_stream" in done.stdout
    for url in (ocr_server.grpc_url, f"http://{ocr_server.http_url}"):
        record = json.loads(run("status", "--json", "--url", url).stdout)
        assert record["serving"] is True
        assert sorted(record["modes"]) == ["base", "gundam", "large", "small", "tiny"]
    without = run("status", "--metrics-url", "http://127.0.0.1:1/metrics")
    assert without.returncode == ExitCode.OK  # pages can be read all the same
    assert "No metrics at" in without.stdout


def test_show_writes_pictures(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(text_pages(2))
    for name, pages in (("one.png", "1"), ("two.png", "1,2"), ("book.pdf", "1,2"), ("page.html", "1,2")):
        done = run(
            "show", tmp_path / "a.pdf", "--pages", pages, "--tokens", *QUICK, "--output", tmp_path / name
        )
        assert done.returncode == ExitCode.OK, done.stderr
    assert Image.open(tmp_path / "one.png").width > 1000
    assert {path.name for path in tmp_path.glob("two*")} == {"two-001.png", "two-002.png"}
    assert len(pdfium.PdfDocument(tmp_path / "book.pdf")) == 2
    assert (tmp_path / "page.html").read_text().count("<section>") == 2


def test_a_terminal_gets_no_escape_sequences() -> None:
    assert (
        harmless("a\tb\nc\x1b]0;title\x07\x9b31m\x7f é漢") == "a\tb\nc\ufffd]0;title\ufffd\ufffd31m\ufffd é漢"
    )
    code = "from deepseek_ocr_client.cli.report import write; write('x\\x1b[31my')"
    near, far = os.openpty()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=far, check=True)
    assert os.read(near, 100) == "x\ufffd[31my".encode()
    piped = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert piped.stdout == b"x\x1b[31my"


def test_help_needs_no_server_and_no_heavy_imports() -> None:
    code = (
        "import sys; from deepseek_ocr_client.__main__ import main\n"
        "try: main(['ocr', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'grpc', 'torch', 'rtprune', 'tritonclient', 'gevent'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "exit codes" in done.stdout


def test_a_reader_that_leaves_is_no_error(ocr_server: RunningServer, page: Path) -> None:
    with start(ocr_server, "ocr", page, page, *QUICK) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
