"""The prompt: what is refused, and that what is written is DeepSeek-OCR's sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rtprune.decoder.prompt import PromptWriter, check_prompt, output_room
from rtprune.decoder.special_tokens import ALLOWED_IN_PROMPT, BOS, EOS, GROUNDING
from rtprune.errors import EngineError, InvalidInput
from rtprune.settings import Settings

SETTINGS = Settings(max_prompt_bytes=200)
PROMPTS = (
    "<image>\n<|grounding|>Convert the document to markdown.",
    "<image>\nFree OCR.",
    "<image>\n<|grounding|>OCR this image.",
    "<image>\nParse the figure.",
    "<image>\nDescribe this image in detail.",
    "<image>\nLocate <|ref|>总金额<|/ref|> in the image.",
    "Page 3: <image> What does it say?",
    "<image>",
)


def writer(tokenizer: Tokenizer, context_length: int = 8192) -> PromptWriter:
    return PromptWriter(tokenizer, vocab_size=130_000, context_length=context_length, settings=SETTINGS)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_prompts_in_use_are_accepted_as_they_are(prompt: str) -> None:
    assert check_prompt(prompt, SETTINGS) == prompt
    assert check_prompt(prompt.encode(), SETTINGS) == prompt


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        (b"<image>\nFree \xff", "not UTF-8"),
        ("<image>\ud800", "not UTF-8"),
        ("Free OCR.", "it has it 0 times"),
        ("<image><image>\nFree OCR.", "it has it 2 times"),
        ("<image>" + "x" * 194, "The prompt has 201 bytes; at most 200 are allowed"),
        ("<image>\n<|det|>", "'<|det|>'"),
        ("<image>\n<|User|>hello", "'<|User|>'"),
        ("<image>\n<｜Assistant｜>", "'<｜Assistant｜>'"),
        ("<image>\n" + BOS, BOS),
        ("<image>\n" + EOS, EOS),
        ("<image>\n<td>", "'<td>'"),
        ("<image>\n</tr>", "'</tr>'"),
    ],
)
def test_what_cannot_be_read_gets_one_sentence(prompt: str | bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_prompt(prompt, SETTINGS)
    message = str(refused.value)
    assert sentence in message
    assert message.endswith(".")
    assert "\n" not in message


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
def test_any_input_is_accepted_or_refused(prompt: str | bytes) -> None:
    try:
        text = check_prompt(prompt, SETTINGS)
    except InvalidInput:
        return
    assert text.count("<image>") == 1


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("visual", [0, 1, 273])
def test_the_sequence_is_deepseek_ocrs(tokenizer: Tokenizer, prompt: str, visual: int) -> None:
    ids = writer(tokenizer).ids(prompt, visual)
    before, after = prompt.split("<image>")
    expected = [
        tokenizer.token_to_id(BOS),
        *tokenizer.encode(before, add_special_tokens=False).ids,
        *range(130_000, 130_000 + visual),
        *tokenizer.encode(after, add_special_tokens=False).ids,
    ]
    assert ids.dtype == np.int32
    assert ids.tolist() == expected


def test_the_default_prompt_starts_with_its_newline_and_tag(tokenizer: Tokenizer) -> None:
    ids = writer(tokenizer).ids(PROMPTS[0], 2).tolist()
    assert ids[:3] == [0, 130_000, 130_001]
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    assert ids[3:5] == [*newline, tokenizer.token_to_id(GROUNDING)]


def test_blanks_around_the_prompt_do_not_count(tokenizer: Tokenizer) -> None:
    writes = writer(tokenizer)
    assert writes.ids("  <image>\nFree OCR. \n", 4).tolist() == writes.ids("<image>\nFree OCR.", 4).tolist()


def test_every_added_token_but_the_allowed_is_refused(tokenizer: Tokenizer) -> None:
    writes = writer(tokenizer)
    added = [each.content for each in tokenizer.get_added_tokens_decoder().values()]
    assert len(added) >= 13
    for name in added:
        if name in ALLOWED_IN_PROMPT:
            continue
        with pytest.raises(InvalidInput, match="special token"):
            writes.ids(f"<image>\nRead {name} aloud", 4)


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(tokenizer: Tokenizer) -> None:
    text_tokens = len(writer(tokenizer).ids("<image>\nFree OCR.", 0))
    fits = writer(tokenizer, context_length=100 + text_tokens + 1)
    assert len(fits.ids("<image>\nFree OCR.", 100)) == 100 + text_tokens
    with pytest.raises(
        InvalidInput, match=rf"^101 visual tokens and {text_tokens} text tokens .* {101 + text_tokens};"
    ):
        fits.ids("<image>\nFree OCR.", 101)


@given(data=st.data())
def test_positions_before_pruning(data: st.DataObject, small_tokenizer: Tokenizer) -> None:
    length = data.draw(st.integers(1, 60))
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1))))
    prompt = data.draw(st.sampled_from(PROMPTS))
    writes = writer(small_tokenizer)
    unpruned = writes.ids(prompt, length)
    pruned = writes.ids(prompt, len(kept))
    positions = writes.positions(prompt, kept, length)
    assert positions.shape == pruned.shape
    assert np.all(np.diff(positions) > 0)
    before_pruning = unpruned[positions]
    visual = pruned >= 130_000
    assert before_pruning[~visual].tolist() == pruned[~visual].tolist()
    assert (before_pruning[visual] - 130_000).tolist() == kept.tolist()
    assert positions[-1] == len(unpruned) - 1 or prompt == "<image>"


def test_output_is_clamped_to_the_room_left() -> None:
    assert output_room(8192, 299, 50) == 50
    assert output_room(8192, 299, 8192) == 8192 - 300
    assert output_room(301, 299, 8192) == 1
    with pytest.raises(InvalidInput, match=r"takes 301 positions .* has 301"):
        output_room(301, 300, 1)


def test_a_tokenizer_without_deepseeks_names_is_refused() -> None:
    from tokenizers import models

    with pytest.raises(EngineError, match="isn't one of DeepSeek-OCR"):
        writer(Tokenizer(models.BPE()))
