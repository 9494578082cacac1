"""Streams a page's text as it is written, and tells the decoder when the client has gone."""

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils

from rtprune.errors import OcrError, Unavailable
from rtprune.settings import settings
from server.triton import backend, bls
from server.triton.cancel import CancelWatch

INPUTS = ("IMAGE", "PROMPT", "MODE", "RETENTION", "MAX_TOKENS", "NO_REPEAT_NGRAM", "TIME_LIMIT")


def cancel(ticket):
    try:
        list(bls.stream("decoder", {"CANCEL": backend.text(ticket)}, ("FINISH_REASON",), ticket))
    except OcrError as error:
        backend.log("cancel failed", "stream", ticket, level="warning", error=str(error))


class TritonPythonModel:
    """The streaming front door: `encode`, then `decoder`."""

    def initialize(self, args):
        self.limit = settings().max_running + settings().max_waiting + settings().max_encoding
        self.threads = ThreadPoolExecutor(self.limit, "stream")
        # A call to another model holds one of Triton's few threads for this model, and those also send every
        # answer: without a bound here, refusals and pieces of text wait until pages are encoded.
        self.encoding = threading.BoundedSemaphore(settings().max_encoding)
        self.watch = CancelWatch(cancel, settings().cancel_poll_seconds)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            if self.watch.under_way >= self.limit:
                error = Unavailable(f"The server is busy: {self.limit} pages are under way. Try again later.")
                backend.finish(sender, backend.failure(error, "stream", request.request_id(), spelled=True))
                continue
            ticket = uuid.uuid4().hex
            self.watch.add(ticket, sender.is_cancelled)
            self.threads.submit(self.serve, request, sender, ticket, time.monotonic())

    def serve(self, request, sender, ticket, arrival):
        try:
            self.read(request, sender, ticket, arrival)
        except Exception as error:
            last = {"response": backend.failure(error, "stream", request.request_id(), spelled=True)}
        else:
            last = {}
        self.watch.remove(ticket)
        sender.send(**last, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def read(self, request, sender, ticket, arrival):
        inputs = {name: backend.array(request, name) for name in INPUTS}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        inputs["ARRIVAL"] = np.array([arrival], np.float64)
        with self.encoding:
            if self.watch.cancelled(ticket):
                return
            encoded = bls.call("encode", inputs, bls.PROMPT, request.request_id())
        if self.watch.cancelled(ticket):
            return
        prompt = {tensor.name(): tensor.as_numpy() for tensor in encoded.output_tensors()}
        prompt["TICKET"] = backend.text(ticket)
        for answer in bls.stream("decoder", prompt, bls.ANSWER, request.request_id()):
            if not self.watch.cancelled(ticket):
                sender.send(pb_utils.InferenceResponse(answer.output_tensors()))

    def finalize(self):
        self.threads.shutdown(wait=True)
        self.watch.close()
