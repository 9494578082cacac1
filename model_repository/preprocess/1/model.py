"""Checks the request, decodes the image, makes the views and the text density."""

import time
from typing import Any

from rtprune import TokenLayout, contract, text_density
from rtprune.decoder.prompt import check_prompt
from rtprune.manifest import Manifest
from rtprune.modes import MODES
from rtprune.preprocess import check_options, decode, make_views
from rtprune.settings import settings
from server.triton import heartbeat, tensors
from server.triton.failures import answer
from server.triton.metrics import Counters


class TritonPythonModel:
    """Stage 1 of `encode`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest. Raises EngineError: Triton doesn't load the model then."""
        self.settings = settings()
        self.manifest = Manifest.load(self.settings.engines)
        self.sides = frozenset(entry.side for entry in self.manifest.vision)
        self.metrics = Counters()
        for mode in MODES.values():
            if set(mode.sides) <= self.sides:
                self.metrics.set("ocr_mode_served", "1 for a mode with engines.", 1, mode=mode.name)
        heartbeat.start()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, "preprocess", self.compute) for request in requests]

    def compute(self, request: Any) -> dict[contract.Tensor, Any]:
        """The model's outputs, by the contract.

        Raises InvalidInput for what the image, the prompt, an option or its name may not be, Unavailable without the
        memory.
        """
        started = time.monotonic()
        tensors.check_names(request)
        arrival = tensors.number(request, contract.ARRIVAL) or started
        pair = tensors.optional(request, contract.NO_REPEAT_NGRAM)
        options = check_options(
            self.settings,
            built_sides=self.sides,
            context_length=self.manifest.context_length,
            mode=tensors.string(request, contract.MODE),
            retention=tensors.number(request, contract.RETENTION),
            max_tokens=tensors.number(request, contract.MAX_TOKENS),
            no_repeat_ngram=None if pair is None else (int(pair[0]), int(pair[1])),
            time_limit=tensors.number(request, contract.TIME_LIMIT),
        )
        prompt = tensors.string(request, contract.PROMPT) or contract.DEFAULT_PROMPT
        prompt = check_prompt(prompt, self.settings)
        image = decode(tensors.required(request, contract.IMAGE).reshape(-1)[0], self.settings)
        views = make_views(image, options.mode, self.settings)
        layout = TokenLayout.of(options.mode, tile_grid=views.tile_grid)
        density = text_density(views.global_view, layout.global_grid)
        seconds = time.monotonic() - started
        self.metrics.stage_seconds("preprocess", seconds)
        return {
            contract.GLOBAL_VIEW: views.global_view[None],
            contract.TILES: views.tiles[None],
            contract.TILE_GRID: [views.tile_grid],
            contract.TIMES: [[arrival, arrival + options.time_limit, seconds]],
            contract.LAYOUT_TENSOR: views.geometry,
            contract.TEXT_DENSITY: [density],
            contract.KEPT_SHARE: [options.retention or 0.0],
            contract.PROMPT_TEXT: prompt,
            contract.SAMPLING: [options.max_tokens, options.ngram, options.window],
        }
