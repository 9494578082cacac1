"""Collects the decoder's answer for the ensemble; a thread a request, so none waits for another."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils

from rtprune.errors import EngineError
from rtprune.settings import settings
from server.triton import backend, bls


class TritonPythonModel:
    """Last step of `deepseek_ocr`."""

    def initialize(self, args):
        # The decoder admits or refuses at once, so no more threads than it admits ever wait.
        self.threads = ThreadPoolExecutor(settings().max_running + settings().max_waiting + 8, "generate")

    def execute(self, requests):
        for request in requests:
            self.threads.submit(self.collect, request, request.get_response_sender())

    def collect(self, request, sender):
        answer = backend.answer(request, "generate", self.compute)
        # Held while it is sent: Triton drops outputs that nobody asked for without Python's lock (see collect).
        tensors = answer.output_tensors()
        sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        del tensors

    def compute(self, request):
        inputs = {name: backend.required(request, name) for name in bls.PROMPT}
        inputs["STREAM"] = np.array([False])
        outputs = {}
        for answer in bls.stream("decoder", inputs, bls.ANSWER, request.request_id()):
            outputs |= {tensor.name(): tensor.as_numpy() for tensor in answer.output_tensors()}
        if not outputs:
            raise EngineError("The decoder ended this page without an answer.")
        return outputs

    def finalize(self):
        self.threads.shutdown(wait=True)
