"""Streams a page's text as it is written, and tells the decoder when the client has gone."""

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils

from rtprune import contract
from rtprune.errors import OcrError, Unavailable
from rtprune.settings import settings
from server.triton import bls, heartbeat, tensors
from server.triton.cancel import CancelWatch
from server.triton.failures import failure, log
from server.triton.stream_writer import finish


def cancel(stream_id: str) -> None:
    """Tell the decoder to end a stream; may be called again."""
    try:
        list(bls.stream("decoder", {contract.CANCEL: stream_id}, stream_id, (contract.FINISH_REASON,)))
    except OcrError as error:
        log("cancel failed", "stream", stream_id, level="warning", error=str(error))


class TritonPythonModel:
    """The streaming endpoint: `encode`, then `decoder`."""

    def initialize(self, args: dict[str, str]) -> None:
        self.limit = settings().max_running + settings().max_waiting + settings().max_encoding
        self.threads = ThreadPoolExecutor(self.limit, "stream")
        # A call to another model holds one of Triton's few threads for this model, and those also send every
        # answer: without a bound here, refusals and pieces of text wait until pages are encoded.
        self.encoding = threading.BoundedSemaphore(settings().max_encoding)
        self.watch = CancelWatch(cancel, settings().cancel_poll_seconds)
        heartbeat.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if self.watch.under_way >= self.limit:
                error = Unavailable(f"The server is busy: {self.limit} pages are under way. Try again later.")
                finish(sender, failure(error, "stream", request.request_id()))
                continue
            stream_id = uuid.uuid4().hex
            self.watch.add(stream_id, sender.is_cancelled)
            self.threads.submit(self.serve, request, sender, stream_id, time.monotonic())

    def serve(self, request: Any, sender: Any, stream_id: str, arrival: float) -> None:
        """Answer one request, on a thread of its own; `arrival` in `time.monotonic()` seconds."""
        last = {}
        try:
            self.read(request, sender, stream_id, arrival)
        except Exception as error:
            last = {"response": failure(error, "stream", request.request_id())}
        self.watch.remove(stream_id)
        sender.send(**last, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def read(self, request: Any, sender: Any, stream_id: str, arrival: float) -> None:
        """Encode the page and pass the decoder's answers on until the client goes.

        Raises InvalidInput for an unknown name or without an image, OcrError as `bls`.
        """
        tensors.check_names(request)
        tensors.required(request, contract.IMAGE)
        given = {tensor: tensors.optional(request, tensor) for tensor in contract.INPUTS}
        inputs: dict[contract.Tensor, Any] = {key: value for key, value in given.items() if value is not None}
        inputs[contract.ARRIVAL] = [arrival]
        with self.encoding:
            if self.watch.cancelled(stream_id):
                return
            encoded = bls.call("encode", inputs, request.request_id())
        if self.watch.cancelled(stream_id):
            return
        arrays = {tensor.name(): tensor.as_numpy() for tensor in encoded.output_tensors()}
        prompt: dict[contract.Tensor, Any] = {
            tensor: arrays[tensor.name] for tensor in contract.DECODER_PROMPT
        }
        prompt[contract.STREAM_ID] = stream_id
        for answer in bls.stream("decoder", prompt, request.request_id()):
            if not self.watch.cancelled(stream_id):
                sender.send(pb_utils.InferenceResponse(answer.output_tensors()))

    def finalize(self) -> None:
        self.threads.shutdown(wait=True)
        self.watch.close()
