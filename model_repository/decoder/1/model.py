"""Generates the text of every page that is admitted, streams it, and takes the control call CANCEL."""

from typing import Any

from rtprune import contract
from rtprune.decoder.engines.base import PromptTokens
from rtprune.decoder.service import ActiveRequest, GenerationRequest, open_service
from rtprune.manifest import Manifest
from rtprune.settings import settings
from server.triton import heartbeat
from server.triton.decoder_metrics import DecoderMetrics
from server.triton.failures import failure
from server.triton.stream_writer import OpenRequest, StreamWriter, finish
from server.triton.tensors import optional, required, response, string


class TritonPythonModel:
    """The decoder stage: owns admission, KV memory and the running batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine and let it generate once. Raises EngineError: Triton doesn't load the model then."""
        self.metrics = DecoderMetrics()
        manifest = Manifest.load(settings().engines)
        self.name = manifest.model
        self.service = open_service(manifest, settings(), self.metrics)
        self.service.warm_up()
        self.metrics.sample(self.service.stats, settings().gauge_seconds)
        self.writer = StreamWriter(settings().stream_seconds, self.metrics)
        self.streams: dict[str, ActiveRequest] = {}
        heartbeat.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                stream_id = string(request, contract.CANCEL)
                if stream_id is not None:
                    self.cancel(stream_id, sender)
                else:
                    self.submit(request, sender)
            except Exception as error:
                finish(sender, failure(error, "decoder", request.request_id()))

    def submit(self, request: Any, sender: Any) -> None:
        """Have a page decoded; its pieces go to `sender` from the writer's thread.

        Raises InvalidInput for an input that is missing, and as `DecoderService.submit`.
        """
        times = required(request, contract.TIMES)
        max_tokens, ngram, window = (int(n) for n in required(request, contract.SAMPLING))
        stream, stream_id = optional(request, contract.STREAM), string(request, contract.STREAM_ID)
        opened = OpenRequest(
            request_id=request.request_id(),
            sender=sender,
            times=times,
            counts=required(request, contract.COUNTS),
            kept=required(request, contract.KEPT),
            layout=required(request, contract.LAYOUT_TENSOR),
            model=self.name,
            stream=stream is None or bool(stream[0]),
            on_end=lambda: self.forget(stream_id),
        )
        generation = GenerationRequest(
            id=opened.request_id,
            input_ids=PromptTokens(required(request, contract.INPUT_IDS)),
            visual=required(request, contract.KEPT_TOKENS),
            positions=None,
            max_tokens=max_tokens,
            ngram=ngram,
            window=window,
            deadline=float(times[1]),
        )
        accepted = self.service.submit(generation, lambda piece: self.writer.put(opened, piece))
        if stream_id is not None and not opened.ended:
            self.streams[stream_id] = accepted

    def forget(self, stream_id: str | None) -> None:
        """Drop the name of a page that ended."""
        if stream_id is not None:
            self.streams.pop(stream_id, None)

    def cancel(self, stream_id: str, sender: Any) -> None:
        """Cancel the page of this name and answer "cancelled", or an empty reason where there is none."""
        accepted = self.streams.get(stream_id)
        if accepted is not None:
            accepted.cancel()
        finish(sender, response({contract.FINISH_REASON: "cancelled" if accepted else ""}))

    def finalize(self) -> None:
        self.metrics.close()
        self.service.close()
        self.writer.close()
