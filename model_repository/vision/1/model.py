"""Encodes the views and tiles of every page that waits, one batch an input size; lays the tokens out."""

import time

import numpy as np

from rtprune.manifest import Manifest
from rtprune.settings import settings
from rtprune.vision import VisionEncoder
from server.triton import backend


class TritonPythonModel:
    """Stage 2 of `encode`."""

    def initialize(self, args):
        self.metrics = backend.Counters()
        self.encoder = VisionEncoder.open(Manifest.load(settings().engines), settings())
        self.encoder.warm_up()

    def execute(self, requests):
        started = time.monotonic()
        answers, pages, waiting = [None] * len(requests), [], []
        for i, request in enumerate(requests):
            try:
                clock = backend.required(request, "CLOCK")[0]
                backend.check_deadline(clock, "vision")
                view, tiles, grid = (
                    backend.required(request, name)[0] for name in ("GLOBAL_VIEW", "TILES", "GRID")
                )
                pages.append((view, tiles, (int(grid[0]), int(grid[1]))))
                waiting.append((i, clock))
            except Exception as error:
                answers[i] = backend.failure(error, "vision", request.request_id())
        encoded = self.encoder.encode_pages(pages)
        seconds = time.monotonic() - started
        for (i, clock), tokens in zip(waiting, encoded, strict=True):
            if isinstance(tokens, Exception):
                answers[i] = backend.failure(tokens, "vision", requests[i].request_id())
                continue
            self.metrics.stage_seconds("vision", seconds)
            answers[i] = backend.response(
                {"TOKENS": tokens[None], "CLOCK_OUT": np.append(clock, seconds)[None].astype(np.float64)}
            )
        return answers

    def finalize(self):
        self.encoder.close()
