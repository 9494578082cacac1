"""Prunes and merges the visual tokens, and writes the decoder's prompt."""

import time
from typing import Any

from rtprune import PruneConfig, TokenLayout, contract, prune
from rtprune.decoder.prompt import PromptWriter
from rtprune.manifest import Manifest
from rtprune.settings import settings
from server.triton import heartbeat
from server.triton.failures import answer, check_deadline
from server.triton.metrics import Counters
from server.triton.tensors import required


class TritonPythonModel:
    """Stage 3 of `encode`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest and the tokenizer. Raises EngineError: Triton doesn't load the model then."""
        self.prompts = PromptWriter.open(Manifest.load(settings().engines), settings())
        self.metrics = Counters()
        heartbeat.start()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, "rtprune", self.compute) for request in requests]

    def compute(self, request: Any) -> dict[contract.Tensor, Any]:
        """The model's outputs, by the contract.

        Raises Unavailable once the deadline has passed, InvalidInput for tokens that aren't finite or a prompt that
        leaves no room for output.
        """
        started = time.monotonic()
        times = required(request, contract.TIMES)[0]
        check_deadline(times, "rtprune")
        layout = TokenLayout.from_geometry(required(request, contract.LAYOUT_TENSOR))
        share = float(required(request, contract.KEPT_SHARE)[0])
        result = prune(
            required(request, contract.VISUAL_TOKENS)[0],
            layout,
            text_density=float(required(request, contract.TEXT_DENSITY)[0]),
            config=PruneConfig(retention=round(share, 6) or None),
        )
        prompt = required(request, contract.PROMPT_TEXT)[0].decode()
        ids = self.prompts.ids(prompt, result.length)
        seconds = time.monotonic() - started
        self.metrics.stage_seconds("rtprune", seconds)
        self.metrics.add("ocr_visual_tokens_total", "Visual tokens before pruning.", layout.length)
        self.metrics.add("ocr_visual_tokens_kept_total", "Visual tokens kept.", result.length)
        return {
            contract.INPUT_IDS: ids,
            contract.KEPT_TOKENS: result.tokens,
            contract.KEPT: result.positions,
            contract.COUNTS: [layout.length, result.length],
            contract.TIMES: [*times, seconds],
        }
