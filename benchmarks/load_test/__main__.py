"""Load-tests a running server with Triton's perf_analyzer: `make load-test`, or against any server

    python -m benchmarks.load_test --grpc-url HOST:8001 --http-url HOST:8000 --input scans/ --mode base

Every endpoint, every number of requests at once, with pruning and without, in turns; beside them, in the same run,
one process of transformers without a server over the same pages, and a burst beyond the server's bounds. Writes
load_test.md, .json and .png. Options after `--` go to perf_analyzer as they are.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.load_test.conditions import REFERENCE, conditions
from benchmarks.load_test.measure import ENDPOINTS, WINDOWS, Load, burst, measure, percentiles
from benchmarks.load_test.pages import LoadPage, pages_of, rendered_pages, write_input_data
from benchmarks.load_test.perf_analyzer import check_options, find_perf_analyzer
from benchmarks.load_test.report import ENDPOINT_NAMES, Result, write
from benchmarks.measuring import RESULTS
from benchmarks.omnidocbench import parse_retentions
from deepseek_ocr_client import ClientError, ClientSettings, InvalidRequest, OcrClient, OcrOptions
from deepseek_ocr_client.images import encode_image
from deepseek_ocr_client.settings import MODES, PROMPTS
from rtprune.errors import InvalidInput, OcrError
from server.launcher.settings import ServerSettings

if TYPE_CHECKING:
    from benchmarks.load_test.baseline import Baseline, BaselineRun

PATIENCE_SECONDS = 60.0  # perf_analyzer's start, and the requests that its windows leave open
SEED = 8_000_000


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    server = ServerSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grpc-url", default=f"127.0.0.1:{server.grpc_port}", metavar="HOST:PORT")
    parser.add_argument("--http-url", default=f"127.0.0.1:{server.http_port}", metavar="HOST:PORT")
    parser.add_argument("--endpoints", default=",".join(ENDPOINTS), help="default %(default)s")
    parser.add_argument("--concurrency", default="1,2,4,8,16", help="requests at once; default %(default)s")
    parser.add_argument("--pruning", default="dynamic,off", help="dynamic, off, shares; default %(default)s")
    parser.add_argument("--mode", choices=MODES, default="tiny", help="default %(default)s")
    parser.add_argument(
        "--prompt", default="free", help=f"{', '.join(PROMPTS)}, or a prompt; default %(default)s"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=512, help="output tokens at most; default %(default)s"
    )
    parser.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, PDFs, folders; default: rendered pages"
    )
    parser.add_argument("--pages", type=int, default=16, help="different pages at most; default %(default)s")
    parser.add_argument("--window", type=float, default=3.0, help=f"seconds of each of {WINDOWS} windows a point; "
                        "default %(default)s")  # fmt: skip
    parser.add_argument("--overload", type=int, default=160, help="pages sent in one moment at the end, 0: none; "
                        "default %(default)s")  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path, default=REFERENCE, help="for transformers; default %(default)s"
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave transformers out")
    parser.add_argument(
        "--engines", type=Path, default=server.engines, help="named in the report where it's here"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="further options of perf_analyzer")
    return parser.parse_args(arguments)


def levels(written: str) -> list[int]:
    """`1,2,4` -> numbers of requests at once, each once, in order.

    Raises:
        InvalidInput: something else.
    """
    words = [word.strip() for word in written.split(",")]
    if not all(word.isdecimal() and 0 < int(word) <= 1024 for word in words):
        raise InvalidInput(
            f"--concurrency must be numbers from 1 to 1024 with commas between them, not {written!r}."
        )
    return sorted({int(word) for word in words})


def chosen_endpoints(written: str) -> list[str]:
    """`grpc,stream` -> names of endpoints.

    Raises:
        InvalidInput: one is unknown.
    """
    names = [word.strip() for word in written.split(",")]
    for name in names:
        if name not in ENDPOINTS:
            raise InvalidInput(
                f"--endpoints takes {', '.join(ENDPOINTS)} with commas between them, not {name!r}."
            )
    return names


def prunings(written: str) -> dict[str, float]:
    """`dynamic,off,0.7` -> labels and RETENTION values.

    Raises:
        InvalidInput: one is neither a word of these nor a share.
    """
    try:
        return parse_retentions(written)
    except ValueError:
        raise InvalidInput(f"--pruning takes dynamic, off and shares like 0.7, not {written!r}.") from None


def together(runs: Sequence[BaselineRun], model_: Baseline) -> dict[str, Any]:
    """The baseline's passes as one measurement, and each."""
    seconds = sum(run.seconds for run in runs)
    return {
        "choice": f"{model_.threads} thread{'s' if model_.threads > 1 else ''} and experts as {model_.experts}",
        "pages_per_second": sum(run.pages for run in runs) / seconds,
        "tokens_per_second": sum(run.output_tokens for run in runs) / seconds,
        "latency_ms": percentiles([each for run in runs for each in run.page_seconds]),
        "seconds_a_page": model_.tried,
        "passes": [{"pages_per_second": run.pages_per_second, "seconds": run.seconds} for run in runs],
    }


def run(args: argparse.Namespace, line: Sequence[str]) -> Result:
    """The whole test.

    Raises:
        OcrError, ClientError: with a sentence that says what is wrong.
    """
    settings = replace(ClientSettings.from_env(), url=args.grpc_url)
    wanted, endpoints, retentions = (
        levels(args.concurrency),
        chosen_endpoints(args.endpoints),
        prunings(args.pruning),
    )
    if args.window <= 0 or args.pages < 1 or args.overload < 0:
        raise InvalidInput("--window and --pages must be more than 0, --overload 0 or more.")
    base = OcrOptions(args.mode, PROMPTS.get(args.prompt, args.prompt), max_tokens=args.max_tokens)
    options = {name: replace(base, retention=retention) for name, retention in retentions.items()}
    tool = find_perf_analyzer()
    check_options(tool, args.options)
    say("making the pages ...")
    pages = (
        pages_of(args.input, args.pages, settings)
        if args.input
        else rendered_pages(args.mode, args.pages, SEED)
    )
    with OcrClient(settings=settings) as client, tempfile.TemporaryDirectory() as scratch:
        server_version = client.call("get_server_metadata", as_json=True)["version"]
        data = {name: Path(scratch) / f"{number}.json" for number, name in enumerate(options)}
        for name, path in data.items():
            write_input_data(path, pages, options[name], settings)
        result = Result(conditions(args, line, pages, server_version, tool.version))
        urls = {"grpc": args.grpc_url, "http": args.http_url}
        load = Load(tool, client, urls, round(1000 * args.window), PATIENCE_SECONDS, args.options)
        say("warming up ...")
        for each in options.values():
            burst(args.grpc_url, "stream", pages, each, max(wanted), settings)
        first = None if args.no_baseline else baseline(args, base, pages)
        texts = {}
        if first is not None:
            images = [encode_image(page.image, settings) for page in pages]
            texts = dict(zip(images, first[1].texts, strict=True))
        for concurrency, endpoint, (pruning, path) in itertools.product(wanted, endpoints, data.items()):
            point, profile = measure(load, ENDPOINTS[endpoint], pruning, concurrency, path)
            result.points.append(point)
            numbers = point.error or f"{point.pages_per_second:.2f} pages/s"
            say(f"{ENDPOINT_NAMES[endpoint]}, pruning {pruning}, {concurrency} at once: {numbers}")
            same = result.agreement.setdefault(pruning, [0, 0])
            for request in profile.requests if profile and texts else ():
                same[0] += texts.get(request.image) == request.text
                same[1] += 1
        if first is not None:
            say("transformers again ...")
            result.baseline = together([first[1], first[0].run(pages)], first[0])
        if any(not point.error for point in result.points):
            write(
                result, args.output
            )  # the burst may be more than the server bears: what is measured is kept
        for endpoint in ("stream", "http") if args.overload else ():
            say(f"{args.overload} pages in one moment, {ENDPOINT_NAMES[endpoint]} ...")
            url = args.grpc_url if endpoint == "stream" else f"http://{args.http_url}"
            result.overloads.append(
                burst(url, endpoint, pages, next(iter(options.values())), args.overload, settings)
            )
    return result


def baseline(
    args: argparse.Namespace, options: OcrOptions, pages: Sequence[LoadPage]
) -> tuple[Baseline, BaselineRun]:
    """Open the checkpoint in transformers, find its best settings, read the pages once.

    Raises:
        InvalidInput: the checkpoint or transformers isn't there.
    """
    say("transformers ...")
    if not (args.checkpoint / "config.json").is_file():
        raise InvalidInput(
            f"{args.checkpoint} is no checkpoint; name one with --checkpoint, or give --no-baseline."
        )
    try:
        from benchmarks.load_test.baseline import Baseline
    except ImportError as error:
        raise InvalidInput(
            f"The baseline needs {error.name}, which is not installed; or give --no-baseline."
        ) from None
    model_ = Baseline(args.checkpoint, args.mode, str(options.prompt), args.max_tokens)
    model_.tune(pages[0])
    return model_, model_.run(pages)


def say(sentence: str) -> None:
    """Tell a person who waits."""
    print(f"load test: {sentence}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, write the results, print the page; 1 where nothing could be measured, 2 for a wrong option."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    args = parse(line)
    try:
        result = run(args, line)
    except (InvalidInput, InvalidRequest) as error:
        say(str(error))
        return 2
    except (OcrError, ClientError) as error:
        say(" ".join(filter(None, [str(error), getattr(error, "advice", "")])))
        return 1
    if all(point.error for point in result.points):
        say(f"Nothing could be measured: {result.points[0].error}")
        return 1
    print(write(result, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
