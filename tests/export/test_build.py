"""The GPU build step against descriptions of TensorRT's Python API and of trtllm-build's options."""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from export import build
from export.build import BatchProfile, DecoderBuild, build_engine, build_plan, machine
from export.operators import check_graph
from rtprune.errors import EngineError, InvalidInput
from tests.export.described_options import OPTIONS, described_parser
from tests.export.described_tensorrt import described_tensorrt
from tests.export.graphs import write_graph

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = described_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(build, "_compute_capability", lambda: "9.0")
    return module


def test_the_step_imports_without_tensorrt_torch_and_transformers() -> None:
    code = "import sys, export.build; print([m for m in sys.modules if m in " + repr(
        ["tensorrt", "torch", "transformers", "onnx", "onnxruntime", "tensorrt_llm"]
    )
    run = subprocess.run([sys.executable, "-c", code + "])"], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


class TestVisionPlan:
    def test_the_graph_here_is_one_that_tensorrt_takes(self, tmp_path: Path) -> None:
        assert check_graph(write_graph(tmp_path / "vision.onnx")) == []

    def test_builds(self, trt: ModuleType, tmp_path: Path) -> None:
        plan, cache = tmp_path / "vision.plan", tmp_path / "timing.cache"
        build_plan(write_graph(tmp_path / "vision.onnx"), plan, BatchProfile(2, 4), timing_cache=cache)
        assert plan.read_bytes().startswith(b"PLAN")
        assert machine() == {"compute_capability": "9.0", "tensorrt": trt.__version__}
        assert cache.read_bytes() == b" timed"
        assert not list(tmp_path.rglob("*.partial"))

    def test_a_timing_cache_of_another_gpu_is_left_aside(self, trt: ModuleType, tmp_path: Path) -> None:
        cache = tmp_path / "timing.cache"
        cache.write_bytes(b"another GPU's")
        build_plan(write_graph(tmp_path / "v.onnx"), tmp_path / "v.plan", BatchProfile(), timing_cache=cache)
        assert cache.read_bytes() == b" timed"

    def test_what_the_parser_says_is_passed_on(self, trt: ModuleType, tmp_path: Path) -> None:
        bad = tmp_path / "bad.onnx"
        bad.write_bytes(b"no graph")
        with pytest.raises(EngineError, match=r"TensorRT can't read .*bad\.onnx: "):
            build_plan(bad, tmp_path / "bad.plan", BatchProfile(), timing_cache=tmp_path / "cache")
        assert not (tmp_path / "bad.plan").exists()

    def test_a_build_that_fails(
        self, trt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *_: None)
        graph, cache = write_graph(tmp_path / "v.onnx"), tmp_path / "cache"
        with pytest.raises(EngineError, match="couldn't build"):
            build_plan(graph, tmp_path / "v.plan", BatchProfile(1, 2), timing_cache=cache)
        assert not (tmp_path / "v.plan").exists()

    def test_bad_input(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InvalidInput, match="1 <= 5 <= 4"):
            BatchProfile(5, 4)
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        monkeypatch.setattr(build, "_compute_capability", lambda: "9.0")
        with pytest.raises(EngineError, match="TensorRT isn't usable here"):
            machine()


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", described_tensorrt())
    with pytest.raises(EngineError, match="no GPU"):
        machine()


class TestCommand:
    def test_every_option_is_one_of_the_version(self) -> None:
        command = DecoderBuild().command("trtllm-build", Path("in"), Path("out"), Path("cache"))
        parsed = vars(described_parser().parse_args(command[1:]))
        given = {word.removeprefix("--") for word in command[1::2]}
        assert given <= set(OPTIONS["options"])
        assert len(given) == len(command[1::2])
        assert all(parsed[name] is not None for name in given)
        assert parsed["checkpoint_dir"] == "in"
        assert parsed["max_prompt_embedding_table_size"] == 16 * 1280
        assert OPTIONS["version"] == build.TRTLLM_VERSION

    def test_the_description_notices_an_option_that_does_not_exist(self) -> None:
        with pytest.raises((argparse.ArgumentError, SystemExit)):
            described_parser().parse_args(["--use_gpt_attention_plugin", "auto"])
        with pytest.raises(argparse.ArgumentError):
            described_parser().parse_args(["--moe_plugin", "int8"])

    def test_a_prompt_and_its_answer_fit(self) -> None:
        settings = DecoderBuild()
        assert settings.visual_tokens < settings.max_input_len < settings.max_seq_len
        tokens = [10 * r * (10 * c + 1) + 273 for c in range(1, 10) for r in range(1, 10) if 2 <= c * r <= 9]
        assert max(tokens) <= settings.visual_tokens


FAKE = """#!{python}
import json, os, sys, time
from pathlib import Path
from types import ModuleType
from typing import Any
sys.path.insert(0, {root!r})
from tests.export.described_options import described_parser
args = described_parser().parse_args()
behaviour = json.loads(Path({control!r}).read_text())
print("reading", args.checkpoint_dir, flush=True)
print("", flush=True)
if behaviour == "fail":
    print("CUDA out of memory", file=sys.stderr, flush=True)
    sys.exit(3)
if behaviour == "hang":
    Path({control!r} + ".pid").write_text(str(os.getpid()))
    Path(args.output_dir).mkdir(exist_ok=True)
    (Path(args.output_dir) / "half").write_text("")
    print("hanging", flush=True)
    time.sleep(600)
out = Path(args.output_dir)
out.mkdir(parents=True, exist_ok=True)
if behaviour != "nothing":
    (out / "config.json").write_text(json.dumps(vars(args)))
    (out / "rank0.engine").write_bytes(b"engine of " + (Path(args.checkpoint_dir) / "rank0.safetensors").read_bytes())
Path(args.output_timing_cache).write_text("cache")
"""


class TestDecoderEngine:
    @pytest.fixture
    def control(self, trt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A program of that name whose options are the described ones, and the package's metadata."""
        control, bin_ = tmp_path / "control.json", tmp_path / "bin"
        control.write_text('"build"')
        bin_.mkdir()
        program = bin_ / "trtllm-build"
        program.write_text(FAKE.format(python=sys.executable, root=str(ROOT), control=str(control)))
        program.chmod(0o755)
        info = bin_ / "tensorrt_llm-1.2.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.2.1\n")
        monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.syspath_prepend(str(bin_))
        return control

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "rank0.safetensors").write_bytes(b"weights")
        return folder

    def run(self, checkpoint: Path, lines: list[str] | None = None, **options: Any) -> Path:
        folder = checkpoint.parent
        build_engine(
            checkpoint,
            folder / "engine",
            DecoderBuild(),
            timing_cache=folder / "decoder.cache",
            log=folder / "build.log",
            **{"on_line": ([] if lines is None else lines).append} | options,
        )
        return folder / "engine"

    def test_builds(self, control: Path, checkpoint: Path) -> None:
        lines: list[str] = []
        engine = self.run(checkpoint, lines)
        assert (engine / "rank0.engine").read_bytes() == b"engine of weights"
        assert lines[0] == f"reading {checkpoint}"
        assert (engine.parent / "build.log").read_text().splitlines() == lines

    @pytest.mark.parametrize(
        ("behaviour", "reason"),
        [("fail", r"status 3: CUDA out of memory \(log: .*build\.log\)"), ("nothing", "wrote no engine")],
    )
    def test_a_failed_build_is_one_sentence(
        self, control: Path, checkpoint: Path, behaviour: str, reason: str
    ) -> None:
        control.write_text(json.dumps(behaviour))
        with pytest.raises(EngineError, match=reason):
            self.run(checkpoint)

    def test_an_interrupt_ends_the_program(self, control: Path, checkpoint: Path) -> None:
        control.write_text('"hang"')

        def interrupt(line: str) -> None:
            if line == "hanging":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run(checkpoint, on_line=interrupt)
        with pytest.raises(ProcessLookupError):
            os.kill(int((control.parent / "control.json.pid").read_text()), 0)

    def test_bad_input(
        self, control: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        metadata = tmp_path / "bin" / "tensorrt_llm-1.2.1.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("1.2.1", "1.3.0"))
        with pytest.raises(EngineError, match=r"TensorRT-LLM 1\.3\.0; the decoder needs 1\.2\.1"):
            self.run(checkpoint)
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(EngineError, match="isn't installed here"):
            self.run(checkpoint)


def test_nothing_here_goes_through_a_shell() -> None:
    tree = ast.parse((ROOT / "export" / "build.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert not [k for c in calls for k in c.keywords if k.arg == "shell"]


class TestDescription:
    """The described module refuses what the real bindings would refuse."""

    def test_names(self, trt: ModuleType) -> None:
        builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
        with pytest.raises(AttributeError):
            _ = builder.build_cuda_engine
        with pytest.raises(AttributeError):
            _ = trt.NetworkDefinitionCreationFlag.STRICTLY_TYPED

    def test_arguments(self, trt: ModuleType) -> None:
        builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
        calls: tuple[Callable[[], Any], ...] = (
            lambda: trt.Builder(),
            lambda: builder.create_network("STRONGLY_TYPED"),
            lambda: builder.create_network(flag=2),
            lambda: builder.create_builder_config(1),
            lambda: builder.create_builder_config().set_memory_pool_limit(4096),
            lambda: builder.create_builder_config().set_timing_cache(b"", False),
        )
        for call in calls:
            with pytest.raises(TypeError, match=r"doesn't take"):
                call()
