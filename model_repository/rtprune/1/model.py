"""Prunes and merges the visual tokens, and writes the decoder's prompt."""

import time

import numpy as np

from rtprune import PruneConfig, TokenLayout, prune
from rtprune.decoder.prompt import PromptWriter
from rtprune.manifest import Manifest
from rtprune.settings import settings
from server.triton import backend


class TritonPythonModel:
    """Stage 3 of `encode`."""

    def initialize(self, args):
        self.prompts = PromptWriter.open(Manifest.load(settings().engines), settings())
        self.metrics = backend.Counters()

    def execute(self, requests):
        return [backend.answer(request, "rtprune", self.compute) for request in requests]

    def compute(self, request):
        started = time.monotonic()
        clock = backend.required(request, "CLOCK")[0]
        backend.check_deadline(clock, "rtprune")
        layout = TokenLayout.from_geometry(backend.required(request, "LAYOUT"))
        keep = float(backend.required(request, "KEEP")[0])
        result = prune(
            backend.required(request, "TOKENS")[0],
            layout,
            text_density=float(backend.required(request, "DENSITY")[0]),
            config=PruneConfig(retention=round(keep, 6) or None),
        )
        ids = self.prompts.ids(backend.required(request, "PROMPT_TEXT")[0].decode(), len(result.positions))
        seconds = time.monotonic() - started
        self.metrics.stage_seconds("rtprune", seconds)
        self.metrics.add("ocr_visual_tokens_total", "Visual tokens before pruning.", layout.length)
        self.metrics.add("ocr_visual_tokens_kept_total", "Visual tokens kept.", len(result.positions))
        return {
            "INPUT_IDS": ids.astype(np.int32),
            "VISUAL": np.ascontiguousarray(result.tokens, np.float32),
            "KEPT": result.positions.astype(np.int32),
            "COUNTS": np.array([layout.length, len(result.positions)], np.int32),
            "CLOCK_OUT": np.append(clock, seconds)[None][0].astype(np.float64),
        }
