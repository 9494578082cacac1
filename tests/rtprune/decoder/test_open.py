"""A decoder opened by its manifest answers, and one that doesn't belong to it is refused."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rtprune.decoder import open_service
from rtprune.decoder.engines import open_engine
from rtprune.decoder.engines.base import PromptTokens
from rtprune.decoder.service import GenerationRequest, Piece
from rtprune.errors import EngineError
from rtprune.manifest import Manifest
from rtprune.settings import Settings
from tests.engines.calls import PATIENCE
from tests.rtprune.decoder.random_weights import TINY, write_checkpoint

SETTINGS = Settings(kv_mib=4, max_running=2, decoder_device="cpu", decoder_threads=1)


def manifest(folder: Path, tokenizer: Tokenizer, **changes: Any) -> Manifest:
    write_checkpoint(folder / "decoder", seed=0)
    tokenizer.save(str(folder / "tokenizer.json"))

    def entry(name: str) -> dict[str, object]:
        return {"path": name, "sha256": "0" * 64, "bytes": (folder / name).stat().st_size}

    files = [entry("decoder/config.json"), entry("decoder/decoder.safetensors")]
    content = {
        "family": "deepseek_ocr",
        "model": "some model",
        "target": "cpu",
        "hidden_size": TINY["hidden_size"],
        "vocab_size": TINY["vocab_size"],
        "context_length": TINY["max_position_embeddings"],
        "special_tokens": {},
        "modes": ["tiny"],
        "vision": [
            {"side": 512, "engine": "onnxruntime", "precision": "fp32", "file": entry("tokenizer.json")}
        ],
        "visual_tokens": entry("tokenizer.json"),
        "tokenizer_file": entry("tokenizer.json"),
        "decoder": {"engine": "pytorch", "precision": "fp32", "folder": "decoder", "files": files},
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return Manifest.load(folder)


def test_a_service_opened_by_a_manifest_answers(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    service = open_service(manifest(tmp_path, small_tokenizer), SETTINGS)
    service.warm_up()
    pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    ids = PromptTokens(np.array([0, 416, 417, 9, 8], np.int32))
    visual = np.ones((2, 32), np.float32)
    service.submit(GenerationRequest("a", ids, visual, None, 6, 30, 90, None), pieces.put)
    while not (piece := pieces.get(timeout=PATIENCE)).finish_reason:
        pass
    assert piece.finish_reason in ("length", "stop")
    assert service.stats().kv_total <= 4 * 2**20 // (2 * 2 * 32 * 4)
    service.close()


def test_weights_of_another_model_are_refused(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    other = manifest(tmp_path, small_tokenizer, vocab_size=999)
    with pytest.raises(EngineError, match="don't belong to this manifest"):
        open_engine(other, SETTINGS)
