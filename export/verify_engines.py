"""Compares engines with reference outputs that were written elsewhere: what `verify` does on the GPU machine."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.progress import bar
from export.references import DECODER, FOLDER, VISION
from export.verify import TOLERANCE, Check, passed, relative_error
from rtprune.decoder.engines import open_engine as open_decoder
from rtprune.decoder.engines.base import Engine, Output, PromptTokens, Sampling
from rtprune.decoder.special_tokens import EOS
from rtprune.errors import EngineError
from rtprune.manifest import Manifest
from rtprune.settings import Settings
from rtprune.vision.engines import open_engine

CODE = ("verify_engines.py",)
MARGIN = {"fp32": 1e-2, "fp16": 0.25, "bf16": 0.5, "int8": 1.0}
"""How close, in logits, the reference's first two choices must be for an engine to take the second one."""
MAX_DIFFERENT = 0.5
"""Share of tokens, over all prompts, that may come after such a choice."""
ANSWER_SECONDS = 300.0


def verify_engines(folder: Path, references: Path | None = None) -> list[dict[str, Any]]:
    """Compare the engines in `folder` with the reference outputs in it; returns the checks for the report.

    references: another folder for them. Raises EngineError for a file that has changed, an error above its
    limit, or a token that the reference comes nowhere near.
    """
    from safetensors.numpy import load_file

    manifest = Manifest.load(folder)
    manifest.verify_hashes()
    expected = references or folder / FOLDER
    return passed(
        compare_vision(manifest, load_file(expected / VISION)),
        compare_decoder(manifest, load_file(expected / DECODER)),
    )


def compare_vision(manifest: Manifest, expected: Mapping[str, NDArray[Any]]) -> Generator[Check]:
    """Encode each size's images alone and together."""
    settings = Settings()
    for entry in manifest.vision:
        images, tokens = expected[f"images.{entry.side}"], expected[f"tokens.{entry.side}"]
        engine = open_engine(manifest, entry, settings)
        try:
            alone, together = engine.encode(images[:1]), engine.encode(images)
        finally:
            engine.close()
        error = max(relative_error(alone, tokens[:1]), relative_error(together, tokens))
        yield Check(
            f"vision {entry.side} px, {entry.engine} {entry.precision}", error, TOLERANCE[entry.precision]
        )


def compare_decoder(manifest: Manifest, expected: Mapping[str, NDArray[Any]]) -> Generator[Check]:
    """Decode every prompt, all at once in one running batch, and follow the reference's tokens.

    Rounding may turn a choice between two near-equal tokens, after which the texts go apart: at the first difference
    the engine must have taken the reference's second choice, and that one must have been within MARGIN. The
    check's error is how far behind it was, in parts of MARGIN. expected: as `write_references` writes it.
    Raises EngineError for another token, or no answer within ANSWER_SECONDS.
    """
    engine = open_decoder(manifest, Settings())
    limit, end = MARGIN[manifest.decoder.precision], manifest.special_tokens[EOS]
    numbers = sorted(int(name.split(".")[1]) for name in expected if name.startswith("ids."))
    agreed = total = 0
    try:
        requests = [_Request(engine, expected, number, end) for number in numbers]
        with bar("decoder against the reference", len(requests), "prompt") as shown:
            for request in requests:
                found, wanted = request.wait(), expected[f"tokens.{request.number}"]
                position = first_difference(found, wanted)
                agreed, total = agreed + position, total + len(wanted)
                shown.update()
                worst = 0.0
                if position < len(wanted):
                    took = found[position] if position < len(found) else end
                    worst = float(expected[f"margin.{request.number}"][position]) / limit
                    if took != expected[f"second.{request.number}"][position]:
                        raise EngineError(
                            f"The decoder's answer to prompt {request.number} has token {took} at position {position}, "
                            f"where the reference has {wanted[position]}."
                        )
                agree = f"{position} of {len(wanted)} tokens as the reference"
                yield Check(f"decoder, prompt {request.number}: {agree}", worst, 1.0)
    finally:
        engine.close()
    yield Check("decoder, tokens that aren't the reference's", 1 - agreed / total, MAX_DIFFERENT)


def first_difference(found: NDArray[np.int32], wanted: NDArray[np.int32]) -> int:
    """The first position at which two runs of tokens differ, or the length of the shorter one."""
    common = min(len(found), len(wanted))
    positions = np.flatnonzero(found[:common] != wanted[:common])
    return int(positions[0]) if len(positions) else common


class _Request:
    """One prompt in the engine's running batch."""

    def __init__(self, engine: Engine, expected: Mapping[str, NDArray[Any]], number: int, end: int) -> None:
        self.number = number
        self._end = end
        self._limit = len(expected[f"tokens.{number}"])
        self._tokens: list[int] = []
        self._last = Output()
        self._ended = threading.Event()
        engine.submit(
            PromptTokens(expected[f"ids.{number}"]),
            expected[f"visual.{number}"],
            None,
            Sampling(max_tokens=self._limit, end_id=end),
            self._listen,
        )

    def _listen(self, output: Output) -> None:
        self._tokens.extend(output.tokens)
        if output.finish_reason:
            self._last = output
            self._ended.set()

    def wait(self) -> NDArray[np.int32]:
        """The answer's tokens, with the end token where it came. Raises EngineError."""
        if not self._ended.wait(ANSWER_SECONDS):
            raise EngineError(
                f"The decoder gave no answer to prompt {self.number} in {ANSWER_SECONDS:.0f} s."
            )
        if self._last.finish_reason not in ("stop", "length"):
            raise EngineError(
                f"The decoder ended prompt {self.number} with {self._last.finish_reason}: {self._last.error}"
            )
        ended = [self._end] if self._last.finish_reason == "stop" else []
        return np.array([*self._tokens, *ended][: self._limit], np.int32)
