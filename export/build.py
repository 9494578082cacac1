"""Builds what needs the GPU: TensorRT plans of the vision graphs, and TensorRT-LLM's engine of the decoder.

It runs in the TensorRT-LLM container on the files that the other steps wrote, and imports neither transformers
nor onnx; TensorRT and torch only when something is built.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.job import Job
from export.progress import say
from export.store import atomic
from rtprune.errors import EngineError, InvalidInput
from rtprune.manifest import FileEntry
from rtprune.vision.engines.base import INPUT

CODE = ("build.py",)
PLAN = "vision.plan"
TRTLLM_VERSION = "1.2.1"


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Batch sizes, in images, that a plan takes: from 1 to `largest`, tuned for `best`.

    Raises InvalidInput unless 1 <= best <= largest.
    """

    best: int = 1
    largest: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.best <= self.largest:
            raise InvalidInput(f"A batch profile needs 1 <= {self.best} <= {self.largest}.")


@dataclass(frozen=True, slots=True)
class DecoderBuild:
    """Settings of `trtllm-build`, with its names."""

    max_batch_size: int = 16
    """Requests in the running batch. 16 full contexts are 8.1 GB of KV cache in 16 bits."""
    max_input_len: int = 4096
    """Tokens of a prompt: at most 1,280 visual ones, and the text after them."""
    max_seq_len: int = 8192
    """Prompt and output together: the model's positions."""
    max_num_tokens: int = 8192
    """Tokens of one step over all requests: several prompts at once; longer ones come in chunks."""
    visual_tokens: int = 1280
    """Rows of one request's prompt table; nine tiles of any grid and the global view need at most 1,263."""

    @property
    def options(self) -> dict[str, object]:
        """The options beside paths; every one is of 1.2.1's parser."""
        return {
            "gemm_plugin": "auto",
            "gpt_attention_plugin": "auto",
            "moe_plugin": "auto",
            "kv_cache_type": "paged",
            "remove_input_padding": "enable",
            "context_fmha": "enable",
            "use_paged_context_fmha": "enable",  # prompts in chunks, so that a long one doesn't stall the others
            "logits_dtype": "float32",
            "max_beam_width": 1,
            "max_batch_size": self.max_batch_size,
            "max_input_len": self.max_input_len,
            "max_seq_len": self.max_seq_len,
            "max_num_tokens": self.max_num_tokens,
            "max_prompt_embedding_table_size": self.max_batch_size * self.visual_tokens,
            "log_level": "info",
        }

    def command(self, program: str, checkpoint: Path, output: Path, timing_cache: Path) -> list[str]:
        """The argument list that runs `program`; the timing cache is read and written."""
        paths = {
            "checkpoint_dir": checkpoint,
            "output_dir": output,
            "input_timing_cache": timing_cache,
            "output_timing_cache": timing_cache,
        }
        options = self.options | paths
        return [program, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def machine() -> dict[str, str]:
    """What plans and engines are bound to. Raises EngineError without TensorRT or a GPU."""
    return {"compute_capability": _compute_capability(), "tensorrt": str(_tensorrt().__version__)}


def build_plan(
    graph: Path, plan: Path, profile: BatchProfile, *, timing_cache: Path, workspace_bytes: int = 4 * 2**30
) -> None:
    """Build the strongly typed plan of one graph, whose weights lie beside it.

    timing_cache: file with what TensorRT measured before; read where it fits, and written.
    workspace_bytes: GPU memory that a tactic may take. Raises EngineError when TensorRT refuses or isn't there.
    """
    trt = _tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # From its file, so that the parser finds the weights beside it.
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"TensorRT can't read {graph}: {reasons or 'no reason given'}.")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
    # A cache of another GPU or TensorRT is refused here, and then simply starts empty.
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    shapes = builder.create_optimization_profile()
    image = tuple(network.get_input(0).shape)[1:]
    shapes.set_shape(INPUT, (1, *image), (profile.best, *image), (profile.largest, *image))
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"TensorRT refused batches of 1 to {profile.largest} for {graph}.")
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise EngineError(f"TensorRT couldn't build {graph}; its own log says why.")
    plan.write_bytes(bytes(content))
    with atomic(timing_cache) as file:
        file.write(bytes(config.get_timing_cache().serialize()))


def build_engine(
    checkpoint: Path,
    engine: Path,
    settings: DecoderBuild,
    *,
    timing_cache: Path,
    log: Path,
    on_line: Callable[[str], None],
) -> None:
    """Run `trtllm-build` on a checkpoint of export.trtllm; it makes the folder `engine`.

    log: file for all that it says, which `on_line` gets line by line. Raises EngineError without TensorRT-LLM 1.2.1 or
    when it fails, with its last line.
    """
    last: deque[str] = deque(maxlen=1)
    command = settings.command(_trtllm_build(), checkpoint, engine, timing_cache)
    with log.open("w", encoding="utf-8") as file:
        # An argument list without a shell; the program is the one that _trtllm_build found.
        process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        try:
            for line in process.stdout or ():
                file.write(line)
                if line.strip():
                    last.append(line.strip())
                on_line(line.rstrip("\n"))
        except BaseException:  # Ctrl-C as well: the build must not go on by itself
            process.terminate()
            raise
        finally:
            code = process.wait()
    if code:
        reason = last[0] if last else "no output"
        raise EngineError(f"trtllm-build failed with status {code}: {reason} (log: {log})")
    if not any(engine.glob("*")):
        raise EngineError(f"trtllm-build ended well and wrote no engine; see {log}.")


def write_plan(job: Job, graph: FileEntry, built_for: dict[str, str], out: Path) -> dict[str, Any]:
    """Build the plan of a staged graph as PLAN. Raises EngineError."""
    cache = job.beside("plans.cache")
    build_plan(job.staging / graph.path, out / PLAN, profile_of(job), timing_cache=cache)
    return {"built_for": built_for}


def write_engine(job: Job, checkpoint: str, built_for: dict[str, str], out: Path) -> dict[str, Any]:
    """Build the engine of the staged folder `checkpoint`; what trtllm-build says is passed on. Raises EngineError."""
    cache, log = job.beside("trtllm.cache"), job.beside("trtllm-build.log")
    build_engine(job.staging / checkpoint, out, DecoderBuild(), timing_cache=cache, log=log, on_line=say)
    return {"built_for": built_for}


def profile_of(job: Job) -> BatchProfile:
    """The batch sizes that a job asks for."""
    return BatchProfile(largest=job.vision_max_batch)


def _trtllm_build() -> str:
    program = shutil.which("trtllm-build")
    try:
        version = importlib.metadata.version("tensorrt_llm")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if program is None or version is None:
        raise EngineError(
            f"TensorRT-LLM isn't installed here; build in the container with version {TRTLLM_VERSION}."
        )
    if version.split("+")[0] != TRTLLM_VERSION:
        raise EngineError(f"This is TensorRT-LLM {version}; the decoder needs {TRTLLM_VERSION}.")
    return program


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise EngineError(f"TensorRT isn't usable here: {error}.") from error
    return tensorrt


def _compute_capability() -> str:
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            "There is no GPU here that torch can see; engines are built on the GPU that runs them."
        )
    return "{}.{}".format(*torch.cuda.get_device_capability())
