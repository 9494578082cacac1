"""Generates the text of every page that is admitted, streams it, and takes the control call CANCEL."""

from rtprune.decoder.engines.base import PromptTokens
from rtprune.decoder.service import GenerationRequest, open_service
from rtprune.manifest import Manifest
from rtprune.settings import settings
from server.triton import backend
from server.triton.decoder_metrics import DecoderMetrics
from server.triton.stream_writer import Outbox, Page


class TritonPythonModel:
    """The decoder stage: owns admission, KV memory and the running batch."""

    def initialize(self, args):
        self.metrics = DecoderMetrics()
        self.service = open_service(Manifest.load(settings().engines), settings(), self.metrics)
        self.service.warm_up()
        self.metrics.sample(self.service.stats, settings().gauge_seconds)
        self.outbox = Outbox(settings().stream_seconds, self.metrics)
        self.tickets = {}

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                cancel = backend.array(request, "CANCEL")
                if cancel is not None:
                    self.cancel(cancel[0].decode(), sender)
                else:
                    self.submit(request, sender)
            except Exception as error:
                backend.finish(sender, backend.failure(error, "decoder", request.request_id()))

    def submit(self, request, sender):
        clock = backend.required(request, "CLOCK")
        max_tokens, ngram, window = (int(n) for n in backend.required(request, "SAMPLING"))
        stream, ticket = backend.array(request, "STREAM"), backend.array(request, "TICKET")
        ticket = None if ticket is None else ticket[0].decode()
        page = Page(
            request_id=request.request_id(),
            sender=sender,
            clock=clock,
            counts=backend.required(request, "COUNTS"),
            kept=backend.required(request, "KEPT"),
            layout=backend.required(request, "LAYOUT"),
            stream=stream is None or bool(stream[0]),
            on_end=lambda: self.tickets.pop(ticket, None),
        )
        generation = GenerationRequest(
            id=page.request_id,
            input_ids=PromptTokens(backend.required(request, "INPUT_IDS")),
            visual=backend.required(request, "VISUAL"),
            positions=None,
            max_tokens=max_tokens,
            ngram=ngram,
            window=window,
            deadline=float(clock[1]),
        )
        accepted = self.service.submit(generation, lambda piece: self.outbox.put(page, piece))
        if ticket is not None and not page.ended:
            self.tickets[ticket] = accepted

    def cancel(self, ticket, sender):
        accepted = self.tickets.get(ticket)
        if accepted is not None:
            accepted.cancel()
        backend.finish(
            sender, backend.response({"FINISH_REASON": backend.text("cancelled" if accepted else "")})
        )

    def finalize(self):
        self.metrics.close()
        self.service.close()
        self.outbox.close()
