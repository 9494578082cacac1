"""The TensorRT vision engine, run on a described TensorRT: batches, buffers, contexts, and what it refuses."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from export import build
from export.build import BatchProfile, build_plan, machine
from rtprune.errors import EngineError
from rtprune.vision.engines.onnxruntime import OnnxRuntimeEngine, new_session
from rtprune.vision.engines.tensorrt import Cuda, TensorRTEngine
from tests.export.described_tensorrt import described_tensorrt
from tests.export.graphs import write_graph

Plan = tuple[Path, dict[str, str]]


class Host(Cuda):
    """The same calls on host memory, and a record of them; TensorRT's part runs in ONNX Runtime there."""

    def __init__(self, capture_fails: bool = False) -> None:
        self.torch = torch
        self.captures = self.replays = self.waits = 0
        self.capture_fails = capture_fails

    handle = 77

    def compute_capability(self) -> str:
        return "9.0"

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        return torch.full(shape, 99, dtype=dtype)

    host_buffer = buffer

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def wait(self) -> None:
        self.waits += 1

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.capture_fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            work()

        return replay


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = described_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(build, "_compute_capability", lambda: "9.0")
    return module


@pytest.fixture
def plan(trt: types.ModuleType, tmp_path: Path) -> Plan:
    """Batches of 1 to 5, tuned for 3, and what the plan was built for."""
    graph, path = write_graph(tmp_path / "vision.onnx"), tmp_path / "vision.plan"
    build_plan(graph, path, BatchProfile(3, 5), timing_cache=tmp_path / "cache")
    return path, machine()


def images(count: int, side: int = 128) -> NDArray[Any]:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)


def contexts(engine: TensorRTEngine) -> int:
    return int(engine._engine.state["contexts"])


@pytest.mark.parametrize("capture_fails", [False, True])
def test_every_batch_gives_what_onnx_runtime_gives(plan: Plan, tmp_path: Path, capture_fails: bool) -> None:
    path, built_for = plan
    engine = TensorRTEngine.load(path, 128, built_for, Host(capture_fails))
    reference = OnnxRuntimeEngine(new_session(tmp_path / "vision.onnx", 1), 128)
    for count in (1, 3, 2, 5, 1, 3, 4, 12, 1, 7, 2):
        found = engine.encode(images(count))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference.encode(images(count)), rtol=0, atol=1e-5)


def test_the_result_is_the_callers(plan: Plan) -> None:
    path, built_for = plan
    engine = TensorRTEngine.load(path, 128, built_for, Host())
    first = engine.encode(images(2))
    kept = first.copy()
    engine.encode(images(3))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(("kind", "tolerance"), [(TensorProto.FLOAT16, 2e-3), (TensorProto.BFLOAT16, 2e-2)])
def test_a_plan_of_half_precision(trt: types.ModuleType, tmp_path: Path, kind: int, tolerance: float) -> None:
    write_graph(tmp_path / "half.onnx", kind=kind)
    cache = tmp_path / "cache"
    build_plan(tmp_path / "half.onnx", tmp_path / "half.plan", BatchProfile(1, 4), timing_cache=cache)
    engine = TensorRTEngine.load(tmp_path / "half.plan", 128, machine(), Host())
    reference = OnnxRuntimeEngine(new_session(write_graph(tmp_path / "full.onnx"), 1), 128)
    expected = reference.encode(images(4))
    found = engine.encode(images(4))
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_fixed_batches_are_captured_once_and_replayed(plan: Plan) -> None:
    path, built_for = plan
    host = Host()
    engine = TensorRTEngine.load(path, 128, built_for, host)
    for _ in range(3):
        engine.encode(images(1))
        engine.encode(images(3))
    assert (host.captures, host.replays, contexts(engine)) == (2, 4, 2)
    for count in (2, 4, 5, 2):
        engine.encode(images(count))
    assert (host.captures, contexts(engine)) == (2, 3), "all other batches share one context"


def test_a_captured_context_never_changes_its_shape(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph is void once its context is given another shape."""
    path, built_for = plan
    engine = TensorRTEngine.load(path, 128, built_for, Host())
    made: list[Any] = []
    new_context = engine._new_context

    def recorded() -> Any:
        made.append(new_context())
        return made[-1]

    monkeypatch.setattr(engine, "_new_context", recorded)
    for count in (1, 2, 3, 4, 1, 5, 3):
        engine.encode(images(count))
        captured = [c.state["shape"][0] for c in made if c is not engine._shared]
        assert captured == [1, 3][: len(captured)]
    assert len(made) == 3


def test_a_plan_for_another_machine_is_refused(plan: Plan) -> None:
    path, built_for = plan
    with pytest.raises(EngineError, match=r"built for compute_capability 8\.6 and this machine has 9\.0"):
        TensorRTEngine.load(path, 128, {**built_for, "compute_capability": "8.6"}, Host())
    with pytest.raises(EngineError, match=r"built for tensorrt 10\.9\.0\.34 and this machine has 10\.14"):
        TensorRTEngine.load(path, 128, {**built_for, "tensorrt": "10.9.0.34"}, Host())
    with pytest.raises(EngineError, match="None"):
        TensorRTEngine.load(path, 128, {}, Host())


def test_a_broken_or_missing_plan(plan: Plan) -> None:
    path, built_for = plan
    path.write_bytes(b"rubbish")
    with pytest.raises(EngineError, match="can't load the 128 px plan"):
        TensorRTEngine.load(path, 128, built_for, Host())
    path.unlink()
    with pytest.raises(EngineError, match="can't be opened"):
        TensorRTEngine.load(path, 128, built_for, Host())


def test_without_tensorrt_or_a_gpu(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    path, built_for = plan
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="TensorRT isn't usable here"):
            TensorRTEngine.load(path, 128, built_for)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="TensorRT isn't usable here"):
        TensorRTEngine.load(path, 128, built_for)


def test_bad_images_and_a_closed_engine(plan: Plan) -> None:
    path, built_for = plan
    engine = TensorRTEngine.load(path, 128, built_for, Host())
    bads: tuple[NDArray[Any], ...] = (images(1, 64), images(1).astype(np.float32), images(0))
    for bad in bads:
        with pytest.raises(EngineError, match="takes uint8 images"):
            engine.encode(bad)
    engine.encode(images(1))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.encode(images(1))


def test_an_error_of_the_gpu_is_one_sentence(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    path, built_for = plan
    engine = TensorRTEngine.load(path, 128, built_for, Host())

    def fail(context: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine, "_execute", fail)
    with pytest.raises(EngineError, match="128 px encoder failed: CUDA error"):
        engine.encode(images(1))
