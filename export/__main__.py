"""`python -m export`: a DeepSeek-OCR checkpoint in, everything that Triton loads out."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from export.job import FACT_NAMES, Job, earlier_facts
from rtprune.errors import InvalidInput, OcrError
from rtprune.modes import MODES

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a DeepSeek-OCR checkpoint into engines for a GPU or a CPU, and verify them.",
        epilog="Steps: vision (graphs), decoder (weights), references (what a GPU machine compares with), build "
        "(TensorRT, on the GPU machine), verify (compare, then put in use), all. A step whose inputs and settings "
        "haven't changed is skipped.",
    )
    made.add_argument(
        "--checkpoint",
        type=Path,
        help="folder of the Hugging Face snapshot; build and verify can go without it",
    )
    made.add_argument("--target", default="cpu", help="cpu (default) or gpu")
    made.add_argument("--modes", help=f"modes to serve, by comma (default: {','.join(MODES)})")
    made.add_argument("--output", type=Path, default=Path("engines"), help="engines folder to write")
    made.add_argument("--vision-precision", help="cpu: fp32; gpu: fp16 (default) or bf16")
    made.add_argument(
        "--decoder-precision",
        help="cpu: fp32, bf16 or auto (default: fp32 up to 2 GB); gpu: bf16 (default), fp16 or int8",
    )
    made.add_argument(
        "--vision-max-batch", type=int, help="images that a TensorRT plan takes at once (default: 8)"
    )
    made.add_argument("step", choices=("vision", "decoder", "references", "build", "verify", "all"))
    return made


def job_of(options: argparse.Namespace) -> Job:
    """The job that the options describe. Without a checkpoint it is the one that the earlier steps were run for.

    Raises InvalidInput as `Job.of`, for a step that needs a checkpoint, and where no earlier step was run.
    """
    asked = {name: getattr(options, name) for name in FACT_NAMES}
    if options.checkpoint is None:
        if options.step not in ("build", "verify"):
            raise InvalidInput(f"The step {options.step} needs a --checkpoint.")
        earlier = earlier_facts(options.output.absolute())
        asked = {name: earlier[name] if value is None else value for name, value in asked.items()}
    asked = {name: value for name, value in asked.items() if value is not None}
    return Job.of(target=options.target, output=options.output, **asked)


def main(arguments: list[str] | None = None) -> int:
    """Run one step; returns the exit status: 0, 1 with one sentence, or 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    # Threads that spin while they wait take cores from whatever else runs here. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from export.pipeline import run
        from export.store import only_one

        job = job_of(options)
        with only_one(job):
            run(job, options.step)
    except OcrError as error:
        return _fail(str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(
            f"The export failed: {error.strerror or error}{where}. The engines in use are as they were."
        )
    except KeyboardInterrupt:
        _fail("Interrupted. Finished steps are kept, and the engines in use are as they were.")
        return INTERRUPTED
    return 0


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
