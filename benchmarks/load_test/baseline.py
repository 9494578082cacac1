"""The baseline of a load test: one process reads the pages with transformers, one after the other, no server.

No pruning, greedy, the same pages and prompt and limit of output tokens, preprocessed by the same functions. It gets
what's best for it on this machine: the number of threads and the way to run the experts that read a page fastest.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.load_test.pages import LoadPage
from benchmarks.measuring import cores
from rtprune.preprocess.image import decode
from rtprune.preprocess.views import make_views
from rtprune.settings import Settings
from training.evaluate import model_inputs
from training.model import load_checkpoint
from training.tokenizer import EOS, token_id

EXPERTS = ("grouped_mm", "batched_mm", "eager")


@dataclass(slots=True)
class BaselineRun:
    """What one pass over the pages gave. `seconds`: of all of them; `page_seconds`: of each."""

    pages: int = 0
    seconds: float = 0.0
    output_tokens: int = 0
    page_seconds: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def pages_per_second(self) -> float:
        """Pages a second."""
        return self.pages / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Output tokens a second, encoding included."""
        return self.output_tokens / self.seconds


class Baseline:
    """A checkpoint in transformers, in FP32. `max_tokens`: output tokens of a page at most."""

    def __init__(self, checkpoint: Path, mode: str, prompt: str, max_tokens: int) -> None:
        self.model: Any
        self.model, self.tokenizer = load_checkpoint(checkpoint)
        self.mode, self.prompt, self.max_tokens = mode, prompt, max_tokens
        self.settings = Settings()
        self.end = token_id(self.tokenizer, EOS)
        self.threads, self.experts = cores(), EXPERTS[0]
        self.tried: dict[str, float] = {}  # seconds a page by choice

    def tune(self, page: LoadPage) -> None:
        """Choose threads and experts by reading `page` with each; the seconds that each took are kept in `tried`."""
        taken: dict[tuple[int, str], float] = {}
        for choice in itertools.product(sorted({1, cores()}), EXPERTS):
            self._use(*choice)
            try:
                self.run([page])  # not counted: the first run of each prepares what the others use
                taken[choice] = self.run([page]).seconds
            except (ValueError, NotImplementedError, RuntimeError):
                continue  # not every way to run the experts exists on every machine
        self.threads, self.experts = min(taken, key=taken.__getitem__)
        self._use(self.threads, self.experts)
        self.tried = {f"{threads} threads, {how}": seconds for (threads, how), seconds in taken.items()}

    def run(self, pages: Sequence[LoadPage]) -> BaselineRun:
        """Read the pages one by one, from the encoded image to the text."""
        found = BaselineRun(pages=len(pages))
        begin = time.perf_counter()
        for page in pages:
            started = time.perf_counter()
            text, tokens = self._read(page.image)
            found.page_seconds.append(time.perf_counter() - started)
            found.texts.append(text)
            found.output_tokens += tokens
        found.seconds = time.perf_counter() - begin
        return found

    @torch.inference_mode()
    def _read(self, image: bytes) -> tuple[str, int]:
        views = make_views(decode(image, self.settings), self.mode, self.settings)
        inputs = model_inputs([views], self.mode, self.tokenizer, self.prompt)
        output = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.max_tokens,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        text = self.tokenizer.decode([token for token in ids if token != self.end], skip_special_tokens=False)
        return text, len(ids)

    def _use(self, threads: int, experts: str) -> None:
        torch.set_num_threads(threads)
        self.model.set_experts_implementation(experts)
