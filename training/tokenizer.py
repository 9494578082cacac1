"""The reference checkpoint's tokenizer: one token a byte, and DeepSeek-OCR's special tokens."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE = "<image>"
FREE = f"{IMAGE}\nFree OCR."
GROUNDED = f"{IMAGE}\n<|grounding|>Convert the document to markdown."
TAGS = (
    "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<td>", "</td>", "<tr>", "</tr>",
)  # fmt: skip


def byte_alphabet() -> list[str]:
    """Return the 256 printable stand-ins of byte-level BPE in byte order (GPT-2's byte-to-unicode table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table.update({byte: chr(256 + rank) for rank, byte in enumerate(others)})
    return [table[byte] for byte in range(256)]


def build_tokenizer() -> Tokenizer:
    """Build it: ids 0, 1, 2 are BOS, EOS, PAD as published, 3..258 the bytes, then `<image>` and the tags."""
    vocabulary = {BOS: 0, EOS: 1, PAD: 2}
    for symbol in byte_alphabet():
        vocabulary[symbol] = len(vocabulary)
    for symbol in (IMAGE, *TAGS):
        vocabulary[symbol] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (BOS, EOS, PAD, IMAGE, *TAGS)]
    )
    return tokenizer


def token_id(tokenizer: Tokenizer, name: str) -> int:
    """Return the id of a special token.

    Raises:
        KeyError: the tokenizer has no such token.
    """
    found = tokenizer.token_to_id(name)
    if found is None:
        raise KeyError(f"The tokenizer has no token {name!r}.")
    return int(found)


def save_tokenizer(directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` in the layout that DeepSeek-OCR publishes."""
    build_tokenizer().save(str(directory / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": 8192,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
