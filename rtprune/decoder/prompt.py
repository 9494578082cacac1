"""Checks the PROMPT text and writes the decoder's prompt: BOS, the visual tokens, the encoded text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtprune.decoder.special_tokens import ALLOWED_IN_PROMPT, IMAGE, SpecialTokens
from rtprune.errors import InvalidInput
from rtprune.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from rtprune.manifest import Manifest

# What DeepSeek's special tokens look like, with either kind of bar, and the table tags, which are tokens too.
_SPECIAL = re.compile(r"<[|｜][^<>\s]{1,64}?[|｜]>|</?t[dr]>")
_ALLOWED_TEXT = f"{', '.join(ALLOWED_IN_PROMPT[:-1])} and {ALLOWED_IN_PROMPT[-1]}"


def check_prompt(prompt: str | bytes, settings: Settings) -> str:
    """Check a request's prompt as far as that goes without a tokenizer, before any work is done on its image.

    Returns the text without the blanks around it, as DeepSeek-OCR reads it.

    Raises:
        InvalidInput: too long, not UTF-8, empty, not exactly one `<image>`, or a special token that has no
            place in a prompt.
    """
    try:
        encoded = prompt if isinstance(prompt, bytes) else prompt.encode()
        if len(encoded) > settings.max_prompt_bytes:
            raise InvalidInput(
                f"The prompt has {len(encoded)} bytes; at most {settings.max_prompt_bytes} are allowed."
            )
        text = encoded.decode().strip()
    except UnicodeError:
        raise InvalidInput("The prompt is not UTF-8 text.") from None
    if not text:
        raise InvalidInput(f"The prompt is empty; it needs {IMAGE} where the page goes.")
    images = text.count(IMAGE)
    if images != 1:
        raise InvalidInput(
            f"The prompt must have {IMAGE} exactly once, where the page goes; it has it {images} times."
        )
    for special in _SPECIAL.findall(text):
        if special not in ALLOWED_IN_PROMPT:
            raise _refused(special)
    return text


def _refused(special: str) -> InvalidInput:
    return InvalidInput(
        f"The prompt has the special token {special!r}; only {_ALLOWED_TEXT} may be used in a prompt."
    )


class PromptWriter:
    """Writes the decoder's prompt as DeepSeek-OCR does.

    Source: `infer` in DeepSeek-OCR's modeling_deepseekocr.py (the "plain" conversation format): the stripped
    text is split at `<image>`, both parts are encoded on their own without special tokens, and BOS comes
    first. Visual token i has id `vocab_size + i`, the contract of TensorRT-LLM's prompt embedding table.

    context_length: positions of prompt and output together. Raises EngineError for a tokenizer that isn't
    DeepSeek-OCR's.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, context_length: int, settings: Settings
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._settings = settings
        self._bos = SpecialTokens.of(tokenizer).bos
        self._added = {token: added.content for token, added in tokenizer.get_added_tokens_decoder().items()}

    @classmethod
    def open(cls, manifest: Manifest, settings: Settings) -> PromptWriter:
        """Write prompts for the engines that `manifest` describes. Raises EngineError for another model's tokenizer."""
        from tokenizers import Tokenizer

        return cls(
            Tokenizer.from_file(str(manifest.tokenizer)),
            vocab_size=manifest.vocab_size,
            context_length=manifest.context_length,
            settings=settings,
        )

    def ids(self, prompt: str, visual_tokens: int) -> NDArray[np.int32]:
        """Return the prompt's ids, int32 (n,): BOS, text before `<image>`, visual tokens, text after it.

        visual_tokens: how many stand for the image.

        Raises:
            InvalidInput: what `check_prompt` refuses, any other special token of the tokenizer, or a prompt
                that leaves no room for one output token.
        """
        before, after = self._encode(prompt)
        first = self._vocab_size
        ids = [self._bos, *before, *range(first, first + visual_tokens), *after]
        if len(ids) >= self._context_length:
            raise InvalidInput(
                f"{visual_tokens} visual tokens and {len(ids) - visual_tokens} text tokens leave no room for "
                f"output in the decoder's context of {self._context_length}; choose a smaller mode or a "
                f"shorter prompt."
            )
        return np.array(ids, np.int32)

    def positions(self, prompt: str, kept: NDArray[np.integer[Any]], length: int) -> NDArray[np.int32]:
        """Return the positions that the prompt's ids had before pruning, int32 (n,), ascending, with gaps.

        kept: int (kept,), ascending positions that were kept of the `length` visual tokens. For the ablation only:
        what is served numbers the kept tokens without gaps. Raises InvalidInput for a text that `ids` refuses.
        """
        before, after = self._encode(prompt)
        first = 1 + len(before)
        text_after = np.arange(first + length, first + length + len(after))
        positions = [np.arange(first), first + np.asarray(kept), text_after]
        return np.concatenate(positions, dtype=np.int32, casting="unsafe")

    def _encode(self, prompt: str) -> tuple[list[int], list[int]]:
        parts = check_prompt(prompt, self._settings).split(IMAGE)
        before, after = (self._tokenizer.encode(part, add_special_tokens=False).ids for part in parts)
        for token in (*before, *after):
            special = self._added.get(token)
            if special is not None and special not in ALLOWED_IN_PROMPT:
                raise _refused(special)
        return before, after


def output_room(context_length: int, last_position: int, max_tokens: int) -> int:
    """Return how many output tokens a request gets: what it asked for, or what the context still holds.

    Raises:
        InvalidInput: the prompt's last position leaves no room for a single one.
    """
    room = context_length - 1 - last_position
    if room < 1:
        raise InvalidInput(
            f"The prompt takes {last_position + 1} positions and leaves no room for output: the decoder's "
            f"context has {context_length}."
        )
    return min(max_tokens, room)
