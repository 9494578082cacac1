"""Encodes the views and tiles of every page that waits, one batch an input size; lays the tokens out."""

import time
from typing import Any

from rtprune import contract
from rtprune.manifest import Manifest
from rtprune.settings import settings
from rtprune.vision import VisionEncoder
from server.triton import heartbeat, tensors
from server.triton.failures import check_deadline, failure
from server.triton.metrics import Counters


class TritonPythonModel:
    """Stage 2 of `encode`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engines and run each once. Raises EngineError: Triton doesn't load the model then."""
        self.metrics = Counters()
        self.encoder = VisionEncoder.open(Manifest.load(settings().engines), settings())
        self.encoder.warm_up()
        heartbeat.start()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests, in order; a page that can't be encoded gets its error."""
        started = time.monotonic()
        answers: list[Any] = [None] * len(requests)
        pages, waiting = [], []
        for i, request in enumerate(requests):
            try:
                times = tensors.required(request, contract.TIMES)[0]
                check_deadline(times, "vision")
                view, tiles, grid = (
                    tensors.required(request, tensor)[0]
                    for tensor in (contract.GLOBAL_VIEW, contract.TILES, contract.TILE_GRID)
                )
                pages.append((view, tiles, (int(grid[0]), int(grid[1]))))
                waiting.append((i, times))
            except Exception as error:
                answers[i] = failure(error, "vision", request.request_id())
        encoded = self.encoder.encode_pages(pages)
        seconds = time.monotonic() - started
        for (i, times), tokens in zip(waiting, encoded, strict=True):
            if isinstance(tokens, Exception):
                answers[i] = failure(tokens, "vision", requests[i].request_id())
                continue
            self.metrics.stage_seconds("vision", seconds)
            answers[i] = tensors.response(
                {contract.VISUAL_TOKENS: tokens[None], contract.TIMES: [[*times, seconds]]}
            )
        return answers

    def finalize(self) -> None:
        self.encoder.close()
