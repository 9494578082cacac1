"""The reference checkpoint in our engine writes what it writes in transformers, on drawn pages, under any load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

from rtprune.decoder.special_tokens import SpecialTokens
from rtprune.vision.sequence import token_sequence
from tests.engines.calls import Ask
from tests.engines.conftest import start_torch
from tests.rtprune.decoder.engines.transformers_decoder import TransformersDecoder

pytestmark = pytest.mark.slow("runs transformers' generate beside the engine")

PROMPTS = ("\n<|grounding|>Convert the document to markdown.", "\nFree OCR.")
SIDES = (512, 640)  # tiny, small


def test_every_page_of_a_mixed_batch_equals_generate(checkpoint: Path) -> None:
    from export.torch_reference import content_tokens
    from training.model import load_checkpoint
    from training.synthetic_page import Recipe, random_page

    model, tokenizer = load_checkpoint(checkpoint)
    reference = TransformersDecoder(model)
    weights = load_file(next(checkpoint.glob("*.safetensors")))
    newline, separator = (
        weights[f"model.{name}"].float().numpy() for name in ("image_newline", "view_seperator")
    )
    drawn = np.random.default_rng(0)
    asks = []
    for number in range(16):
        side = SIDES[number % 2]
        page = random_page(drawn, (side, side), Recipe(margin=2, held_out=True))
        image = np.repeat(page.draw()[None, :, :, None], 3, axis=3)
        tokens = token_sequence(
            content_tokens(model.model, image)[0],
            np.zeros((0, 100, newline.size), np.float32),
            (0, 0),
            newline=newline,
            separator=separator,
        )
        if number % 3 == 0:  # as pruning would: fewer tokens, in their order
            tokens = tokens[np.sort(drawn.choice(len(tokens), 3 * len(tokens) // 5, replace=False))]
        asks.append(_ask(tokenizer, tokens, PROMPTS[number // 2 % 2], 8 + 4 * number))

    engine = start_torch(checkpoint, max_running=16, kv_mib=64, prefill_chunk=64)
    expected = [reference.generate(each) for each in asks]
    expected = [
        tokens[:-1] if tokens[-1] == each.end_id else tokens
        for tokens, each in zip(expected, asks, strict=True)
    ]
    assert [each.submit(engine).tokens() for each in asks] == expected
    order = drawn.permutation(16).tolist()
    for joining in (asks, [asks[number] for number in order]):
        calls = [each.submit(engine) for each in joining]
        found = {id(each): call.tokens() for each, call in zip(joining, calls, strict=True)}
        assert [found[id(each)] for each in asks] == expected
    engine.close()


def _ask(tokenizer: Tokenizer, visual: NDArray[np.float32], prompt: str, max_tokens: int) -> Ask:
    vocabulary, special = tokenizer.get_vocab_size(), SpecialTokens.of(tokenizer)
    text = tokenizer.encode(prompt, add_special_tokens=False).ids
    ids = [special.bos, *range(vocabulary, vocabulary + len(visual)), *text]
    return Ask(np.array(ids, np.int32), visual, max_tokens, end_id=special.eos)
