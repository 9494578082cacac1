"""Incremental detokenising equals the tokenizer's own decoding, however the ids arrive."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from rtprune.decoder.detokenizer import Detokenizer, TokenBytes
from rtprune.decoder.special_tokens import CELL, EOS, GROUNDING, PAD, REF, SpecialTokens
from rtprune.errors import EngineError


def pieces(token_bytes: TokenBytes, chunks: Sequence[Sequence[int]]) -> list[str]:
    detokenizer = Detokenizer(token_bytes)
    return [*(detokenizer.push(chunk) for chunk in chunks), detokenizer.finish()]


def full_decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    silent = SpecialTokens.of(tokenizer).silent
    return str(tokenizer.decode([each for each in ids if each not in silent], skip_special_tokens=False))


@pytest.fixture(scope="session")
def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    return TokenBytes(tokenizer)


@given(data=st.data())
def test_random_ids_decode_as_the_tokenizer_decodes_them(
    data: st.DataObject, tokenizer: Tokenizer, token_bytes: TokenBytes
) -> None:
    ids = st.integers(0, tokenizer.get_vocab_size() - 1)
    chunks = data.draw(st.lists(st.lists(ids, max_size=5), max_size=20))
    parts = pieces(token_bytes, chunks)
    assert "".join(parts) == full_decode(tokenizer, [each for chunk in chunks for each in chunk])


@given(data=st.data())
def test_single_bytes_decode_as_the_tokenizer_decodes_them(
    data: st.DataObject, tokenizer: Tokenizer, token_bytes: TokenBytes
) -> None:
    byte_ids = [
        index for index in range(tokenizer.get_vocab_size()) if len(token_bytes[index]) == 1 and index > 2
    ]
    lead = [index for index in byte_ids if token_bytes[index][0] >= 0xC0]
    tail = [index for index in byte_ids if 0x80 <= token_bytes[index][0] < 0xC0]
    ids = data.draw(
        st.lists(st.one_of(st.sampled_from(lead), st.sampled_from(tail), st.sampled_from(byte_ids)))
    )
    assert "".join(pieces(token_bytes, [[each] for each in ids])) == full_decode(tokenizer, ids)


@given(text=st.text(max_size=80))
def test_text_comes_back_and_only_whole_characters_come_out(
    text: str, tokenizer: Tokenizer, token_bytes: TokenBytes
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = pieces(token_bytes, [[each] for each in ids])
    expected = full_decode(tokenizer, ids)
    assert "".join(parts) == expected
    done = ""
    for part in parts:
        done += part
        assert expected.startswith(done)
    if "\ufffd" not in text and not SpecialTokens.of(tokenizer).silent & set(ids):
        assert expected == text
        assert not any("\ufffd" in part for part in parts)


def test_every_id_alone_decodes_as_the_tokenizer_decodes_it(
    tokenizer: Tokenizer, token_bytes: TokenBytes
) -> None:
    silent = SpecialTokens.of(tokenizer).silent
    size = tokenizer.get_vocab_size()
    assert size in (410, 129_290)
    wrong = [
        index
        for index in range(size)
        if index not in silent
        and token_bytes[index].decode(errors="replace")
        != tokenizer.decode([index], skip_special_tokens=False)
    ]
    assert wrong == []


def test_the_whole_byte_alphabet_is_there(tokenizer: Tokenizer, token_bytes: TokenBytes) -> None:
    # 0xC0, 0xC1 and 0xF5..0xFF never stand in UTF-8, yet a byte-level vocabulary has them.
    singles = {token_bytes[index] for index in range(tokenizer.get_vocab_size())}
    assert {bytes([value]) for value in range(256)} <= singles


def test_a_character_waits_for_its_last_byte(small_tokenizer: Tokenizer) -> None:
    token_bytes = TokenBytes(small_tokenizer)
    byte_id = {token_bytes[index]: index for index in range(small_tokenizer.get_vocab_size())}
    smile = [byte_id[bytes([value])] for value in "🙂".encode()]
    assert pieces(token_bytes, [[each] for each in smile]) == ["", "", "", "🙂", ""]
    assert pieces(token_bytes, [smile[:3]]) == ["", "\ufffd"]
    letter = byte_id[b"a"]
    assert pieces(token_bytes, [smile[:2], [letter]]) == ["", "\ufffda", ""]


def test_tags_are_kept_and_end_and_padding_are_not(tokenizer: Tokenizer, token_bytes: TokenBytes) -> None:
    names = [GROUNDING, REF, EOS, CELL, PAD]
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[name] for name in names]
    assert "".join(pieces(token_bytes, [ids])) == GROUNDING + REF + CELL


def test_ids_without_a_token_are_no_text(tokenizer: Tokenizer, token_bytes: TokenBytes) -> None:
    assert "".join(pieces(token_bytes, [[tokenizer.get_vocab_size() + 5, 2**31 - 1, -1]])) == ""


def test_a_tokenizer_of_another_kind_is_refused(small_tokenizer: Tokenizer) -> None:
    other = Tokenizer(models.BPE())
    other.decoder = decoders.Metaspace()
    with pytest.raises(EngineError, match="byte-level"):
        TokenBytes(other)
    other.decoder = decoders.ByteLevel()
    with pytest.raises(EngineError, match="begin"):
        TokenBytes(other)
