"""Turns token ids into text as they come: whole characters only, and never a change to what is out."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rtprune.decoder.special_tokens import SpecialTokens
from rtprune.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): printable bytes stand for themselves, the rest follow U+00FF."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHAR = _byte_of_char()


class TokenBytes:
    """The bytes that each id of a byte-level tokenizer stands for; one for all requests.

    An id that the tokenizer doesn't know (the model's head has a few more rows than the vocabulary) and the
    begin, end and padding tokens stand for none. Raises EngineError for a tokenizer that isn't a byte-level one, or
    isn't DeepSeek-OCR's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import decoders

        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise EngineError(
                "The tokenizer isn't a byte-level one, so its tokens can't be put together here."
            )
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = dict.fromkeys(SpecialTokens.of(tokenizer).silent, b"")

    def __getitem__(self, token: int) -> bytes:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._look_up(token)
        return known

    def _look_up(self, token: int) -> bytes:
        name = self._tokenizer.id_to_token(token) if token >= 0 else None
        if name is None:
            return b""
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in name)
        except KeyError:  # an added token whose name isn't written in the byte alphabet stands for itself
            return name.encode()


class Detokenizer:
    """One request's text. The pieces put together equal the tokenizer's own decoding of all ids.

    Bytes that are not UTF-8 become U+FFFD once no further token can complete them (one per maximal invalid
    part, as in the Unicode standard and in `tokenizers`). At most three bytes are held back.
    """

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int]) -> str:
        """Return the text that these ids complete; empty if they end inside a character."""
        token_bytes = self._token_bytes
        return self._decoder.decode(b"".join([token_bytes[token] for token in tokens]))

    def finish(self) -> str:
        """Return what is left at the end: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)
