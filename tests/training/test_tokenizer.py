"""The tokenizer: bytes and DeepSeek-OCR's special tokens, whatever the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.tokenizer import BOS, EOS, IMAGE, PAD, TAGS, build_tokenizer, save_tokenizer

TOKENIZER = build_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200).filter(lambda s: "<" not in s))
def test_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    assert len(ids) == len(text.encode())
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_a_character_beyond_ascii_is_split_across_tokens() -> None:
    ids = TOKENIZER.encode("€").ids
    assert ids == [3 + byte for byte in "€".encode()]
    assert TOKENIZER.decode(ids[:2]) != "€"
    assert TOKENIZER.decode(ids) == "€"


def test_special_tokens_have_one_id_each() -> None:
    assert [TOKENIZER.token_to_id(name) for name in (BOS, EOS, PAD)] == [0, 1, 2]
    for name in (IMAGE, *TAGS):
        assert TOKENIZER.encode(name).ids == [TOKENIZER.token_to_id(name)]
    assert TOKENIZER.get_vocab_size() == 3 + 256 + 1 + len(TAGS)


@pytest.mark.parametrize("prompt", ["<image>\nFree OCR.", "<image>\n<|grounding|>OCR this image."])
def test_the_files_read_back_the_same(tmp_path: Path, prompt: str) -> None:
    save_tokenizer(tmp_path)
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode(prompt).ids == TOKENIZER.encode(prompt).ids
    assert again.get_vocab() == TOKENIZER.get_vocab()
