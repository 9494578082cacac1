"""The special tokens of a DeepSeek-OCR tokenizer, found by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtprune.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Names as they stand in DeepSeek-OCR's tokenizer.json; the bars and blanks of the first three aren't ASCII.
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
IMAGE = "<image>"
GROUNDING = "<|grounding|>"
REF, REF_END = "<|ref|>", "<|/ref|>"
CELL, CELL_END = "<td>", "</td>"

ALLOWED_IN_PROMPT = (IMAGE, GROUNDING, REF, REF_END)


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids that the decoder stage needs.

    Attributes:
        bos, eos, pad: begin, end and padding; never part of the text.
        cells: ids of `<td>` and `</td>`, the n-gram rule's whitelist; empty where a tokenizer has none.
    """

    bos: int
    eos: int
    pad: int
    cells: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialTokens:
        """Look the names up.

        Raises:
            EngineError: the tokenizer has no begin, end or padding token of DeepSeek-OCR's names.
        """
        cells = (tokenizer.token_to_id(name) for name in (CELL, CELL_END))
        return cls(
            bos=_required(tokenizer, BOS),
            eos=_required(tokenizer, EOS),
            pad=_required(tokenizer, PAD),
            cells=frozenset(token for token in cells if token is not None),
        )

    @property
    def silent(self) -> frozenset[int]:
        """Ids that never become text; every other special token is kept, because tags carry the boxes."""
        return frozenset((self.bos, self.eos, self.pad))


def _required(tokenizer: Tokenizer, name: str) -> int:
    token = tokenizer.token_to_id(name)
    if token is None:
        raise EngineError(f"The tokenizer isn't one of DeepSeek-OCR: it has no {name}.")
    return token
