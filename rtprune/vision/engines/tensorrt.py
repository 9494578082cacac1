"""Runs the vision encoder's TensorRT plan: fixed buffers, a stream of its own, CUDA graphs for fixed batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtprune.errors import EngineError
from rtprune.vision.engines.base import INPUT, OUTPUT, check_images

if TYPE_CHECKING:
    from rtprune.manifest import Manifest, VisionEntry
    from rtprune.settings import Settings

log = logging.getLogger(__name__)


class Cuda:
    """What the engine needs of CUDA, through torch: its allocator, pinned memory, a stream and graph capture."""

    def __init__(self) -> None:
        import torch

        self.torch: Any = torch
        self.stream = self.torch.cuda.Stream()

    @property
    def handle(self) -> int:
        """The stream's address, as TensorRT takes it."""
        return int(self.stream.cuda_stream)

    def compute_capability(self) -> str:
        """The GPU's, such as '9.0'."""
        return "{}.{}".format(*self.torch.cuda.get_device_capability())

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """GPU memory of a shape and torch dtype, not cleared."""
        return self.torch.empty(shape, dtype=dtype, device="cuda")

    def host_buffer(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Pinned host memory of a shape and torch dtype, from and to which copies run beside the work; not cleared."""
        return self.torch.empty(shape, dtype=dtype, pin_memory=True)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Let torch's work run on the stream."""
        context: AbstractContextManager[Any] = self.torch.cuda.stream(self.stream)
        return context

    def wait(self) -> None:
        """Block until the stream's work is done."""
        self.stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work`, which has run before, as a CUDA graph; returns what replays it."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass(frozen=True, slots=True)
class _Buffers:
    """The engine's tensors, for its largest batch; `output32` is `output` where the plan computes float32."""

    host_input: Any
    input: Any
    output: Any
    output32: Any
    host_output: Any
    scratch: Any


class TensorRTEngine:
    """One plan for one input side.

    Every batch size that is captured as a CUDA graph has an execution context of its own, because a graph is void
    once its context changes; the others share one. All contexts run one after the other on one stream, so they
    share one scratch memory.

    plan: the serialized engine. side: px of an input. Raises EngineError for a plan that TensorRT can't load.
    """

    def __init__(self, plan: bytes, side: int, cuda: Cuda) -> None:
        import tensorrt

        self._trt = tensorrt
        self._cuda = cuda
        self._side = side
        self._logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"TensorRT can't load the {side} px plan; build it on this machine.")
        _, best, largest = self._engine.get_tensor_profile_shape(INPUT, 0)
        self._max_batch = int(largest[0])
        self._captured = {1, int(best[0])}
        self._runs: dict[int, Callable[[], None]] = {}
        self._shared: Any = None
        self._buffers: _Buffers | None = None
        _, tokens, hidden = self._engine.get_tensor_shape(OUTPUT)
        self._allocate(int(tokens), int(hidden))

    @classmethod
    def open(cls, manifest: Manifest, entry: VisionEntry, settings: Settings) -> TensorRTEngine:
        """Open the entry's plan. Raises EngineError when it can't be read or was built for another GPU or TensorRT."""
        del settings  # batch sizes are the plan's
        return cls.load(manifest.path(entry.file), entry.side, entry.built_for)

    @classmethod
    def load(
        cls, path: Path, side: int, built_for: dict[str, str], cuda: Cuda | None = None
    ) -> TensorRTEngine:
        """Open a plan; `built_for`: what the manifest says it was built for. Raises EngineError."""
        try:
            import tensorrt

            cuda = cuda or Cuda()
            here = {"compute_capability": cuda.compute_capability(), "tensorrt": tensorrt.__version__}
        except (ImportError, AssertionError, RuntimeError) as error:
            raise EngineError(f"TensorRT isn't usable here: {error}.") from error
        for key, value in here.items():
            if built_for.get(key) != value:
                raise EngineError(
                    f"{path} was built for {key} {built_for.get(key)} and this machine has {value}; "
                    "build it again with `python -m export build`."
                )
        try:
            return cls(path.read_bytes(), side, cuda)
        except (OSError, RuntimeError) as error:
            raise EngineError(f"{path} can't be opened: {error}") from error

    @property
    def side(self) -> int:
        """Pixels per side of an input."""
        return self._side

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode uint8 (B, side, side, 3) to float32 (B, (side / 64)^2, hidden). Raises EngineError.

        More images than the plan takes at once go in several runs.
        """
        check_images(images, self._side)
        result = np.empty((len(images), *self._memory.host_output.shape[1:]), np.float32)
        try:
            for start in range(0, len(images), self._max_batch):
                part = slice(start, start + self._max_batch)
                self._encode(images[part], result[part])
        except RuntimeError as error:  # torch's, from CUDA
            raise EngineError(f"The {self._side} px encoder failed: {error}") from error
        return result

    def close(self) -> None:
        """Free the plan and its memory."""
        self._runs.clear()
        self._shared = self._engine = None
        self._buffers = None

    def _allocate(self, tokens: int, hidden: int) -> None:
        torch, trt, cuda = self._cuda.torch, self._trt, self._cuda
        kinds = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.BF16: torch.bfloat16,
        }
        image, row = (self._max_batch, self._side, self._side, 3), (self._max_batch, tokens, hidden)
        kind = kinds[self._engine.get_tensor_dtype(OUTPUT)]
        output = cuda.buffer(row, kind)
        self._buffers = _Buffers(
            host_input=cuda.host_buffer(image, torch.uint8),
            input=cuda.buffer(image, torch.uint8),
            output=output,
            output32=output if kind == torch.float32 else cuda.buffer(row, torch.float32),
            host_output=cuda.host_buffer(row, torch.float32),
            scratch=cuda.buffer((max(int(self._engine.device_memory_size_v2), 1),), torch.uint8),
        )

    @property
    def _memory(self) -> _Buffers:
        if self._buffers is None:
            raise EngineError(f"The {self._side} px encoder is closed.")
        return self._buffers

    def _encode(self, images: NDArray[np.uint8], result: NDArray[np.float32]) -> None:
        batch, b = len(images), self._memory
        b.host_input.numpy()[:batch] = images
        with self._cuda.on_stream():
            b.input[:batch].copy_(b.host_input[:batch], non_blocking=True)
            self._run(batch)
            if b.output32 is not b.output:
                b.output32[:batch].copy_(b.output[:batch])
            b.host_output[:batch].copy_(b.output32[:batch], non_blocking=True)
        self._cuda.wait()
        result[:] = b.host_output.numpy()[:batch]

    def _run(self, batch: int) -> None:
        if batch in self._runs:
            self._runs[batch]()
        elif batch in self._captured:
            context = self._new_context()
            self._set_batch(context, batch)
            self._execute(context)  # before a capture, TensorRT wants one ordinary run of the same shape
            self._runs[batch] = self._captured_run(context, batch)
        else:
            self._shared = self._shared or self._new_context()
            self._set_batch(self._shared, batch)
            self._execute(self._shared)

    def _captured_run(self, context: Any, batch: int) -> Callable[[], None]:
        def work() -> None:
            self._execute(context)

        self._cuda.wait()
        try:
            return self._cuda.capture(work)
        except RuntimeError as error:
            log.warning(
                "No CUDA graph for %d images of %d px, launching kernels: %s", batch, self._side, error
            )
            return work

    def _new_context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"TensorRT can't make a context for the {self._side} px plan.")
        b = self._memory
        context.set_device_memory(b.scratch.data_ptr(), b.scratch.numel())
        self._check(context.set_optimization_profile_async(0, self._cuda.handle), "its profile")
        self._check(context.set_tensor_address(INPUT, b.input.data_ptr()), "its input")
        self._check(context.set_tensor_address(OUTPUT, b.output.data_ptr()), "its output")
        return context

    def _set_batch(self, context: Any, batch: int) -> None:
        shape = (batch, self._side, self._side, 3)
        self._check(context.set_input_shape(INPUT, shape), f"a batch of {batch}")

    def _execute(self, context: Any) -> None:
        self._check(context.execute_async_v3(self._cuda.handle), "to run")

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise EngineError(f"TensorRT refused {what} for the {self._side} px plan.")
