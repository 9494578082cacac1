"""The whole export for a GPU: graphs, a build on a described TensorRT, verification, and what is put in use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from export import build, pipeline, verify_engines
from export.__main__ import main
from export.references import DECODER, PROMPTS, VISION
from export.verify_engines import compare_decoder, compare_vision, first_difference
from rtprune.decoder.engines.torch.engine import TorchEngine, open_torch_engine
from rtprune.errors import EngineError, InvalidInput
from rtprune.manifest import Manifest
from rtprune.vision.engines import tensorrt
from tests.export.described_tensorrt import described_tensorrt
from tests.export.test_build import FAKE
from tests.rtprune.vision.test_tensorrt_engine import Host

pytestmark = pytest.mark.slow("runs the steps of a GPU export against descriptions, with transformers")

ROOT = Path(__file__).resolve().parents[2]
Tensors = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def graphs(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the graph environment leaves for the GPU machine, of the modes tiny and small; the parent folder."""
    folder = tmp_path_factory.mktemp("gpu")
    options = ["--checkpoint", str(random_checkpoint), "--target", "gpu", "--modes", "tiny,small"]
    assert main([*options, "--output", str(folder / "engines"), "all"]) == 0
    return folder


@pytest.fixture
def output(graphs: Path, tmp_path: Path) -> Path:
    """The same on the GPU machine, where the checkpoint isn't."""
    shutil.copytree(graphs / "engines.staging", tmp_path / "engines.staging")
    facts = tmp_path / "engines.staging" / "job.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"checkpoint": "/not/on/this/machine"}))
    return tmp_path / "engines"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with the described TensorRT and trtllm-build, whose decoder engine runs the CPU's weights."""
    monkeypatch.setitem(sys.modules, "tensorrt", described_tensorrt())
    monkeypatch.setattr(build, "_compute_capability", lambda: "9.0")
    monkeypatch.setattr(pipeline, "has_tensorrt", lambda: True)
    monkeypatch.setattr(tensorrt, "Cuda", Host)
    control, programs = tmp_path / "control.json", tmp_path / "bin"
    control.write_text('"build"')
    programs.mkdir()
    program = programs / "trtllm-build"
    program.write_text(FAKE.format(python=sys.executable, root=str(ROOT), control=str(control)))
    program.chmod(0o755)
    info = programs / "tensorrt_llm-1.2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.2.1\n")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(str(programs))


@pytest.fixture
def torch_decoder(random_engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-LLM's place in the verification, taken by the PyTorch engine on the same weights."""
    monkeypatch.setattr(
        verify_engines, "open_decoder", lambda manifest, settings: torch_engine(random_engines)
    )


def torch_engine(folder: Path) -> TorchEngine:
    return open_torch_engine(
        folder / "decoder",
        precision="fp32",
        device="cpu",
        max_running=8,
        kv_mib=64,
        prefill_chunk=256,
        threads=1,
    )


def test_the_graph_environment_leaves_everything_for_the_gpu(graphs: Path) -> None:
    staging = graphs / "engines.staging"
    assert not (graphs / "engines").exists(), "nothing is in use before it is built and verified"
    assert {p.name for p in staging.iterdir()} == {
        "checkpoint",
        "graphs",
        "job.json",
        "references",
        "sources.json",
        "tokens",
    }
    assert json.loads((staging / "checkpoint" / "config.json").read_text())["dtype"] == "bfloat16"
    references = load_file(staging / "references" / DECODER)
    assert sum(name.startswith("tokens.") for name in references) == len(PROMPTS) == 8
    assert (staging / "graphs" / "vision-512.onnx").is_file()


def test_build_verify_and_use(
    output: Path, gpu: None, torch_decoder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "gpu", "--output", str(output)]
    assert main([*options, "build"]) == 0
    assert not output.exists()
    assert main([*options, "verify"]) == 0
    manifest = Manifest.load(output)
    manifest.verify_hashes()
    assert manifest.target == "gpu"
    assert manifest.modes == ("tiny", "small")
    assert [(v.side, v.engine, v.precision, v.max_batch) for v in manifest.vision] == [
        (512, "tensorrt", "fp16", 8),
        (640, "tensorrt", "fp16", 8),
    ]
    assert manifest.vision[0].built_for["compute_capability"] == "9.0"
    assert manifest.decoder.engine == "tensorrt_llm"
    assert (output / manifest.decoder.folder / "rank0.engine").is_file()
    said = capsys.readouterr().err
    assert "verified vision 640 px, tensorrt fp16" in said
    assert "verified decoder, prompt 7" in said

    assert manifest.decoder.built_for["tensorrt_llm"] == "1.2.1"

    before = {p: p.stat().st_mtime_ns for p in output.rglob("*.plan")}
    assert main([*options, "build"]) == 0
    said = capsys.readouterr().err
    assert said.count("up to date") == 3, "two plans and the engine"
    assert main([*options, "verify"]) == 0
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*.plan")} == before
    assert not list(output.parent.rglob("*.partial"))


@pytest.mark.parametrize("change", ["gpu", "tensorrt", "batch", "plan", "note", "graph", "weights"])
def test_a_plan_is_built_again_when_something_changed(
    output: Path,
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    options = ["--target", "gpu", "--output", str(output)]
    assert main([*options, "build"]) == 0
    staging = output.with_name("engines.staging")
    plan = staging / "plan-512" / "vision.plan"
    if change == "gpu":
        monkeypatch.setattr(build, "_compute_capability", lambda: "8.9")
    elif change == "tensorrt":
        vars(sys.modules["tensorrt"])["__version__"] = "10.15.0.1"
    elif change == "batch":
        options += ["--vision-max-batch", "4"]
    elif change == "plan":
        plan.write_bytes(plan.read_bytes()[:-1])
    elif change == "note":
        plan.with_name("step.json").write_text("{")
    else:
        note = staging / "graphs" / "step.json"
        content = json.loads(note.read_text())
        name = "vision-512.onnx" if change == "graph" else "vision.weights"
        next(file for file in content["files"] if file["path"].endswith(name))["sha256"] = "0" * 64
        note.write_text(json.dumps(content))
    capsys.readouterr()
    assert main([*options, "build"]) == 0
    said = capsys.readouterr().err
    assert "TensorRT plan (512 px, fp16): up to date" not in said
    assert ("TensorRT plan (640 px, fp16): up to date" in said) == (change in ("plan", "note", "graph"))
    assert ("TensorRT-LLM engine (bf16): up to date" in said) == (change not in ("gpu", "tensorrt"))


@pytest.mark.parametrize("change", ["checkpoint", "settings", "engine", "tensorrt_llm"])
def test_the_engine_is_built_again_when_something_changed(
    output: Path,
    gpu: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    options = ["--target", "gpu", "--output", str(output)]
    assert main([*options, "build"]) == 0
    staging = output.with_name("engines.staging")
    if change == "checkpoint":
        note = staging / "checkpoint" / "step.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | {"key": "another"}))
    elif change == "settings":
        monkeypatch.setattr(build.DecoderBuild, "options", {"max_batch_size": 8})
    elif change == "engine":
        (staging / "trtllm" / "rank0.engine").write_bytes(b"broken")
    else:
        metadata = tmp_path / "bin" / "tensorrt_llm-1.2.1.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("1.2.1", "1.3.0"))
    capsys.readouterr()
    assert main([*options, "build"]) == (1 if change == "tensorrt_llm" else 0)
    said = capsys.readouterr().err
    assert "TensorRT-LLM engine (bf16): up to date" not in said
    assert ("TensorRT-LLM 1.3.0; the decoder needs 1.2.1" in said) == (change == "tensorrt_llm")
    assert "TensorRT plan (512 px, fp16): up to date" in said


@pytest.mark.parametrize("step", ["build", "verify"])
def test_a_mode_whose_graphs_were_not_exported_is_one_sentence(
    output: Path, gpu: None, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--target", "gpu", "--output", str(output), "--modes", "tiny,base", step]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "holds no vision-1024.onnx; run the step that writes it" in said


def test_staging_of_other_modes_does_not_hide_what_is_in_use(
    random_checkpoint: Path, output: Path, gpu: None, torch_decoder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(random_checkpoint), "--target", "gpu", "--output", str(output)]
    both = [*options, "--modes", "tiny,small", "all"]
    assert main(both) == 0
    assert main([*options, "--modes", "tiny", "vision"]) == 0
    capsys.readouterr()
    assert main(both) == 0
    assert f"{output}: up to date" in capsys.readouterr().err


def test_the_manifest_says_what_was_built_whatever_verify_is_told(
    output: Path, gpu: None, torch_decoder: None
) -> None:
    options = ["--target", "gpu", "--output", str(output)]
    assert main([*options, "build"]) == 0
    assert main([*options, "--vision-precision", "bf16", "--decoder-precision", "int8", "verify"]) == 0
    manifest = Manifest.load(output)
    assert {entry.precision for entry in manifest.vision} == {"fp16"}
    assert manifest.decoder.precision == "bf16"


def test_a_build_that_fails_leaves_the_engines_in_use(
    output: Path, gpu: None, torch_decoder: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "gpu", "--output", str(output)]
    assert main([*options, "build"]) == main([*options, "verify"]) == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    (tmp_path / "control.json").write_text('"fail"')
    vars(sys.modules["tensorrt"])["__version__"] = "10.15.0.1"
    assert main([*options, "build"]) == 1
    assert "CUDA out of memory" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    staging = output.with_name("engines.staging")
    assert (staging / "plan-640" / "vision.plan").is_file(), "what is built is kept"
    assert not list(staging.rglob("*partial*"))


def test_another_tensorrt_builds_again_and_keeps_one_step_back(
    output: Path, gpu: None, torch_decoder: None
) -> None:
    options = ["--target", "gpu", "--output", str(output)]
    assert main([*options, "build"]) == main([*options, "verify"]) == 0
    vars(sys.modules["tensorrt"])["__version__"] = "10.15.0.1"
    assert main([*options, "build"]) == main([*options, "verify"]) == 0
    assert Manifest.load(output).vision[0].built_for["tensorrt"] == "10.15.0.1"
    previous = Manifest.load(output.with_name("engines.previous"))
    assert previous.vision[0].built_for["tensorrt"] != "10.15.0.1"


def test_plans_that_compute_something_else_are_not_put_in_use(
    output: Path, gpu: None, torch_decoder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "gpu", "--output", str(output)]
    path = output.with_name("engines.staging") / "references" / VISION
    tensors = load_file(path)
    tensors["tokens.640"] = tensors["tokens.640"] * 1.01
    save_file(tensors, path)
    assert main([*options, "build"]) == 0
    assert main([*options, "verify"]) == 1
    assert "vision 640 px, tensorrt fp16: the relative error is" in capsys.readouterr().err
    assert not output.exists()


def test_without_tensorrt_or_earlier_steps_there_is_one_sentence(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "gpu", "--output"]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(build, "_compute_capability", lambda: "9.0")
    assert main([*options, str(output), "build"]) == 1
    assert "TensorRT isn't usable here" in capsys.readouterr().err
    assert main([*options, str(output), "verify"]) == 1
    assert "TensorRT isn't usable here" in capsys.readouterr().err
    assert main([*options, str(tmp_path / "nothing"), "build"]) == 1
    assert "There is no export at" in capsys.readouterr().err
    assert main([*options, str(tmp_path / "nothing"), "vision"]) == 1
    assert "The step vision needs a --checkpoint" in capsys.readouterr().err


def test_a_step_that_was_not_run_is_named(
    output: Path, gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(output.with_name("engines.staging") / "references")
    assert main(["--target", "gpu", "--output", str(output), "build"]) == 1
    assert "holds references; run the steps vision, decoder and references first" in capsys.readouterr().err


def test_the_cpu_engines_give_the_references(random_engines: Path, graphs: Path) -> None:
    """Both comparisons on real engines: ONNX Runtime's graphs and the PyTorch decoder."""
    references = graphs / "engines.staging" / "references"
    manifest = Manifest.load(random_engines)
    known = manifest.model_copy(update={"vision": manifest.vision[:2]})
    known._folder = manifest.folder
    assert all(check.error < check.limit for check in compare_vision(known, load_file(references / VISION)))
    checks = list(compare_decoder(manifest, load_file(references / DECODER)))
    assert len(checks) == 9
    assert all(check.error < check.limit for check in checks), [str(c) for c in checks]


class TestDecoderComparison:
    @pytest.fixture
    def expected(self, graphs: Path) -> Tensors:
        return load_file(graphs / "engines.staging" / "references" / DECODER)

    def test_a_token_that_the_reference_comes_nowhere_near(
        self, random_engines: Path, expected: Tensors
    ) -> None:
        wrong = dict(expected)
        wrong["tokens.3"] = expected["tokens.3"].copy()
        wrong["tokens.3"][2] += 1
        with pytest.raises(EngineError, match="answer to prompt 3 has token .* at position 2"):
            list(compare_decoder(Manifest.load(random_engines), wrong))

    def test_a_close_second_choice_is_accepted_and_a_far_one_is_not(
        self, random_engines: Path, expected: Tensors
    ) -> None:
        close = dict(expected)
        close["tokens.3"], close["second.3"] = expected["tokens.3"].copy(), expected["second.3"].copy()
        close["second.3"][2], close["tokens.3"][2] = expected["tokens.3"][2], expected["second.3"][2]
        for margin in (0.001, 0.5):
            close["margin.3"] = np.full(len(expected["margin.3"]), margin, np.float32)
            check = list(compare_decoder(Manifest.load(random_engines), close))[3]
            assert (check.error < check.limit) == (margin == 0.001)
            assert "2 of" in check.name

    def test_an_engine_that_agrees_with_nothing(self, random_engines: Path, expected: Tensors) -> None:
        other = {
            name: (np.ones_like(value) if name.startswith("margin") else value)
            for name, value in expected.items()
        }
        for number in range(8):
            first, second = f"tokens.{number}", f"second.{number}"
            other[first], other[second] = other[second], other[first]
        *_, last = compare_decoder(Manifest.load(random_engines), other)
        assert last.error == 1.0 > last.limit

    def test_a_prompt_that_the_engine_refuses(self, random_engines: Path, expected: Tensors) -> None:
        wrong = dict(expected) | {"ids.0": np.full(3, 10**6, np.int32)}
        with pytest.raises(InvalidInput, match="Token ids must lie in"):
            list(compare_decoder(Manifest.load(random_engines), wrong))


def test_first_difference() -> None:
    def place(a: list[int], b: list[int]) -> int:
        return first_difference(np.array(a, np.int32), np.array(b, np.int32))

    assert place([1, 2, 3], [1, 2, 3]) == 3
    assert place([1, 9, 3], [1, 2, 3]) == 1
    assert place([1], [1, 2]) == 1
    assert place([], [1]) == 0


def test_the_build_environment_needs_no_transformers(output: Path) -> None:
    """What runs in the container imports without transformers, onnx and ONNX Runtime."""
    code = (
        "import sys\n"
        "for name in ('transformers', 'onnx', 'onnxruntime', 'onnxscript'): sys.modules[name] = None\n"
        "from export.__main__ import main\n"
        f"sys.exit(main(['--target', 'gpu', '--output', {str(output)!r}, 'build']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "TensorRT isn't usable here" in done.stderr or "no GPU" in done.stderr, done.stderr
