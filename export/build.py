"""The step that needs the GPU: TensorRT plans of the vision graphs, and TensorRT-LLM's engine of the decoder.

It runs in the TensorRT-LLM container on the files that the other steps wrote, and imports neither transformers
nor onnx; TensorRT and torch only when something is built.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.store import atomic
from rtprune.errors import EngineError, InvalidInput
from rtprune.manifest import sha256_of
from rtprune.vision.engines.base import INPUT

TRTLLM_VERSION = "1.2.1"
KEY_FILE = "built_for.json"


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Batch sizes that a plan takes: from 1 to `largest`, tuned for `best`."""

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

    def command(self, program: str, checkpoint: Path, output: Path, timing_cache: Path) -> list[str]:
        """The argument list; every option is one of 1.2.1's parser."""
        options: dict[str, object] = {
            "checkpoint_dir": checkpoint,
            "output_dir": output,
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
            "input_timing_cache": timing_cache,
            "output_timing_cache": timing_cache,
            "log_level": "info",
        }
        return [program, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def build_vision(
    graph: Path,
    plan: Path,
    profile: BatchProfile,
    *,
    companions: Sequence[Path] = (),
    timing_cache: Path | None = None,
    workspace_bytes: int = 4 * 2**30,
) -> dict[str, str]:
    """Build the strongly typed plan of one graph; returns what it is keyed by, for the manifest's `built_for`.

    `companions` are the files of weights beside the graph. A plan that was built from the same graph, for this GPU,
    TensorRT and profile, stays. Raises InvalidInput for a graph that isn't there, EngineError when TensorRT refuses.
    """
    for path in (graph, *companions):
        if not path.is_file():
            raise InvalidInput(f"There is no {path}; export the vision graph first.")
    trt = _tensorrt()
    key = {
        "compute_capability": _compute_capability(),
        "tensorrt": str(trt.__version__),
        "graph": _sha256_of_all((graph, *companions)),
        "batch": f"1,{profile.best},{profile.largest}",
    }
    note = plan.with_name(f"{plan.name}.{KEY_FILE}")
    if _is_current(note, key, [plan]):
        return key
    note.unlink(missing_ok=True)
    content = _build_plan(trt, graph, profile, timing_cache, workspace_bytes)
    write_atomically(plan, content)
    _note(note, key, [plan])
    return key


def build_decoder(
    checkpoint: Path,
    output: Path,
    settings: DecoderBuild,
    *,
    timing_cache: Path,
    checkpoint_sha256: str | None = None,
    on_line: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Run `trtllm-build` on a checkpoint of export.trtllm; returns what the engine is keyed by.

    The engine's folder `output` changes only when the build has succeeded. `checkpoint_sha256` spares the hashing of
    `rank0.safetensors` when the caller knows it. `on_line` gets each line of the log, which is kept beside
    `output`. Raises InvalidInput without a checkpoint, EngineError without TensorRT-LLM 1.2.1 or when it fails.
    """
    weights, config = checkpoint / "rank0.safetensors", checkpoint / "config.json"
    if not (weights.is_file() and config.is_file()):
        raise InvalidInput(f"{checkpoint} holds no TensorRT-LLM checkpoint; export the decoder first.")
    program = _trtllm_build()
    command = settings.command(program, checkpoint, output, timing_cache)
    key = {
        "compute_capability": _compute_capability(),
        "tensorrt": str(_tensorrt().__version__),
        "tensorrt_llm": TRTLLM_VERSION,
        "graph": _sha256_of_all((config,)),
        "weights": checkpoint_sha256 or sha256_of(weights),
        "settings": hashlib.sha256(json.dumps(_settings_of(command)).encode()).hexdigest(),
    }
    note = output / KEY_FILE
    if _is_current(note, key, _engine_files(output)):
        return key
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    timing_cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run(settings.command(program, checkpoint, partial, timing_cache), _log_of(output), on_line)
        files = _engine_files(partial)
        if not files:
            raise EngineError(f"trtllm-build ended well and wrote no engine; see {_log_of(output)}.")
        _note(partial / KEY_FILE, key, files)
        replace_folder(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return key


def write_atomically(path: Path, content: bytes) -> None:
    """Write bytes so that `path` holds all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic(path) as file:
            file.write(content)
    except OSError as error:
        raise EngineError(f"{path} couldn't be written: {error.strerror or error}.") from error


def replace_folder(new: Path, old: Path) -> None:
    """Let `new` take the place of `old`; folders can't be swapped in one step, so `old` steps aside first."""
    aside = old.with_name(old.name + ".replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        if aside.exists():
            aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _build_plan(
    trt: Any, graph: Path, profile: BatchProfile, timing_cache: Path | None, workspace_bytes: int
) -> bytes:
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
    stored = timing_cache.read_bytes() if timing_cache is not None and timing_cache.is_file() else b""
    cache = config.create_timing_cache(stored)
    # A cache of another GPU or TensorRT is refused here, and then simply starts empty.
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    shapes = builder.create_optimization_profile()
    image = tuple(network.get_input(0).shape)[1:]
    shapes.set_shape(INPUT, (1, *image), (profile.best, *image), (profile.largest, *image))
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"TensorRT refused batches of 1 to {profile.largest} for {graph}.")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT couldn't build {graph}; its own log says why.")
    if timing_cache is not None:
        write_atomically(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _run(command: list[str], log: Path, on_line: Callable[[str], None] | None) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    last: deque[str] = deque(maxlen=1)
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
                if on_line is not None:
                    on_line(line.rstrip("\n"))
        except BaseException:  # Ctrl-C as well: the build must not go on by itself
            process.terminate()
            raise
        finally:
            code = process.wait()
    if code:
        reason = last[0] if last else "no output"
        raise EngineError(f"trtllm-build failed with status {code}: {reason} (log: {log})")


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


def machine() -> dict[str, str]:
    """What plans and engines are bound to. Raises EngineError without TensorRT or a GPU."""
    return {"compute_capability": _compute_capability(), "tensorrt": str(_tensorrt().__version__)}


def _compute_capability() -> str:
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            "There is no GPU here that torch can see; engines are built on the GPU that runs them."
        )
    return "{}.{}".format(*torch.cuda.get_device_capability())


def _settings_of(command: list[str]) -> list[str]:
    """The command without the paths, which may change without changing the engine."""
    paths = {"--checkpoint_dir", "--output_dir", "--input_timing_cache", "--output_timing_cache"}
    pairs = zip(command[1::2], command[2::2], strict=True)
    return [word for name, value in pairs if name not in paths for word in (name, value)]


def _engine_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.is_file() and p.name != KEY_FILE)


def _sha256_of_all(paths: Sequence[Path]) -> str:
    return hashlib.sha256("".join(sha256_of(p) for p in paths).encode()).hexdigest()


def _note(path: Path, key: Mapping[str, str], files: Sequence[Path]) -> None:
    content = {"key": dict(key), "files": {f.name: sha256_of(f) for f in files}}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _is_current(note: Path, key: Mapping[str, str], files: Sequence[Path]) -> bool:
    """Whether `files` are those of the note, whole, and were built for `key`."""
    try:
        content = json.loads(note.read_text())
        return bool(content["key"] == dict(key)) and content["files"] == {f.name: sha256_of(f) for f in files}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _log_of(output: Path) -> Path:
    return output.with_name(output.name + ".log")
