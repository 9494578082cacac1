"""Checks the request, decodes the image, makes the views and the text density."""

import time

import numpy as np

from rtprune import TokenLayout, text_density
from rtprune.decoder.prompt import check_prompt
from rtprune.errors import InvalidInput
from rtprune.manifest import Manifest
from rtprune.modes import MODES
from rtprune.preprocess.image import decode
from rtprune.preprocess.options import DEFAULT_PROMPT, check_options
from rtprune.preprocess.views import make_views
from rtprune.settings import settings
from server.triton import backend


def _string(request, name):
    value = backend.array(request, name)
    if value is None:
        return None
    try:
        return value.reshape(-1)[0].decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"The input {name} is not UTF-8 text.") from None


def _number(request, name):
    value = backend.array(request, name)
    return None if value is None else value.reshape(-1)[0].item()


class TritonPythonModel:
    """Stage 1 of `encode`."""

    def initialize(self, args):
        self.settings = settings()
        self.manifest = Manifest.load(self.settings.engines)
        self.sides = frozenset(entry.side for entry in self.manifest.vision)
        self.metrics = backend.Counters()
        for mode in MODES.values():
            if set(mode.sides) <= self.sides:
                self.metrics.set("ocr_mode_served", "1 for a mode with engines.", 1, mode=mode.name)

    def execute(self, requests):
        return [backend.answer(request, "preprocess", self.compute) for request in requests]

    def compute(self, request):
        started = time.monotonic()
        arrival = _number(request, "ARRIVAL") or started
        pair = backend.array(request, "NO_REPEAT_NGRAM")
        options = check_options(
            self.settings,
            built_sides=self.sides,
            context_length=self.manifest.context_length,
            mode=_string(request, "MODE"),
            retention=_number(request, "RETENTION"),
            max_tokens=_number(request, "MAX_TOKENS"),
            no_repeat_ngram=None if pair is None else (int(pair[0]), int(pair[1])),
            time_limit=_number(request, "TIME_LIMIT"),
        )
        prompt = check_prompt(_string(request, "PROMPT") or DEFAULT_PROMPT, self.settings)
        image = decode(backend.required(request, "IMAGE").reshape(-1)[0], self.settings)
        views = make_views(image, options.mode, self.settings)
        layout = TokenLayout.of(options.mode, tile_grid=views.tile_grid)
        density = text_density(views.global_view, layout.global_grid)
        seconds = time.monotonic() - started
        self.metrics.stage_seconds("preprocess", seconds)
        return {
            "GLOBAL_VIEW": views.global_view[None],
            "TILES": views.tiles[None],
            "GRID": np.array([views.tile_grid], np.int32),
            "LAYOUT": views.geometry.astype(np.int32),
            "DENSITY": np.array([density], np.float32),
            "KEEP": np.array([options.retention or 0.0], np.float32),
            "PROMPT_TEXT": backend.text(prompt),
            "SAMPLING": np.array([options.max_tokens, options.ngram, options.window], np.int32),
            "CLOCK": np.array([[arrival, arrival + options.time_limit, seconds]], np.float64),
        }
