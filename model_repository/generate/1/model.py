"""Gathers the decoder's answers for the ensemble; a thread a request, so none waits for another."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils

from rtprune import contract
from rtprune.errors import EngineError
from rtprune.settings import settings
from server.triton import bls, heartbeat
from server.triton.failures import answer
from server.triton.tensors import required


class TritonPythonModel:
    """Last step of `deepseek_ocr`."""

    def initialize(self, args: dict[str, str]) -> None:
        # The decoder admits or refuses at once, so no more threads than it admits ever wait.
        self.threads = ThreadPoolExecutor(settings().max_running + settings().max_waiting + 8, "generate")
        heartbeat.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self.threads.submit(self.respond, request, request.get_response_sender())

    def respond(self, request: Any, sender: Any) -> None:
        """Answer one request, on a thread of its own."""
        answered = answer(request, "generate", self.compute)
        # Held while it is sent: Triton drops outputs that nobody asked for without Python's lock (see bls).
        held = answered.output_tensors()
        sender.send(answered, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        del held

    def compute(self, request: Any) -> dict[contract.Tensor, Any]:
        """The page's outputs, by the contract.

        Raises InvalidInput for an input that is missing, EngineError for a page without an answer, OcrError as `bls`.
        """
        inputs: dict[contract.Tensor, Any] = {
            tensor: required(request, tensor) for tensor in contract.DECODER_PROMPT
        }
        inputs[contract.STREAM] = [False]
        outputs: dict[str, Any] = {}
        for part in bls.stream("decoder", inputs, request.request_id()):
            outputs |= {tensor.name(): tensor.as_numpy() for tensor in part.output_tensors()}
        if not outputs:
            raise EngineError("The decoder ended this page without an answer.")
        return {tensor: outputs[tensor.name] for tensor in contract.OUTPUTS if tensor.name in outputs}

    def finalize(self) -> None:
        self.threads.shutdown(wait=True)
