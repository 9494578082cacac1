"""The n-gram rule against a brute-force one, transformers' windowed processor, and its own bounds."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.unlimited_ocr.generation_unlimited_ocr import (
    UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor,
)

from rtprune.decoder import ngram
from rtprune.decoder.ngram import NgramRule


def brute_force(tokens: list[int], size: int, window: int, whitelist: frozenset[int]) -> set[int]:
    """Every id whose arrival would complete an n-gram that lies in the last `window` tokens."""
    recent = tokens[-window:]
    if len(recent) < size or len(tokens) < size - 1:
        return set()
    prefix = tokens[len(tokens) - (size - 1) :]
    found = {
        recent[start + size - 1]
        for start in range(len(recent) - size + 1)
        if recent[start : start + size - 1] == prefix
    }
    return found - whitelist


def replay(tokens: list[int], size: int, window: int, whitelist: frozenset[int] = frozenset()) -> NgramRule:
    """Push all tokens and compare with brute force after each."""
    rule = NgramRule(size, window, whitelist)
    for count, token in enumerate(tokens, start=1):
        rule.push(token)
        banned = rule.banned()
        assert len(banned) == len(set(banned))
        assert set(banned) == brute_force(tokens[:count], size, window, whitelist)
    return rule


small_alphabet = st.lists(st.integers(0, 3), max_size=120)
sizes = st.integers(1, 8)
windows = st.integers(1, 40)
whitelists = st.frozensets(st.integers(0, 3), max_size=2)


@given(small_alphabet, sizes, windows, whitelists)
def test_equals_brute_force(tokens: list[int], size: int, window: int, whitelist: frozenset[int]) -> None:
    replay(tokens, size, window, whitelist)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(1, 30), sizes, windows)
def test_equals_brute_force_on_loops(period: list[int], times: int, size: int, window: int) -> None:
    replay(period * times, size, window)


@given(small_alphabet, sizes, windows, whitelists)
def test_hash_collisions_change_nothing(
    tokens: list[int], size: int, window: int, whitelist: frozenset[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "_hash", lambda tokens: hash(tuple(tokens)) % 3)
        replay(tokens, size, window, whitelist)


@given(st.randoms(use_true_random=False), st.integers(2, 6), st.integers(6, 30), st.integers(2, 5))
def test_obeying_the_rule_leaves_no_repeat_in_the_window(
    source: random.Random, size: int, window: int, alphabet: int
) -> None:
    rule, tokens = NgramRule(size, window), []
    for _ in range(150):
        allowed = sorted(set(range(alphabet)) - set(rule.banned()))
        if not allowed:
            break
        tokens.append(source.choice(allowed))
        rule.push(tokens[-1])
    for end in range(size, len(tokens) + 1):
        # The newest n-gram against those of the window before its last token.
        recent = tokens[max(0, end - 1 - window) : end - 1]
        earlier = [tuple(recent[i : i + size]) for i in range(len(recent) - size + 1)]
        assert tuple(tokens[end - size : end]) not in earlier


@given(small_alphabet, sizes, windows)
def test_equals_transformers_windowed_processor(tokens: list[int], size: int, window: int) -> None:
    processor = UnlimitedOcrSlidingWindowNoRepeatNgramLogitsProcessor(size, window)
    rule = NgramRule(size, window)
    for count, token in enumerate(tokens, start=1):
        rule.push(token)
        if count % 7 and count != len(tokens):
            continue
        scores = processor(torch.tensor([tokens[:count]]), torch.zeros(1, 4))
        expected = set(torch.nonzero(torch.isneginf(scores[0])).flatten().tolist())
        assert set(rule.banned()) == expected


def test_the_published_setting() -> None:
    tag, end_tag = 128821, 128822
    rule = NgramRule(30, 90, frozenset({tag, end_tag}))
    line = list(range(100, 130))
    for token in line:
        rule.push(token)
    for token in line[:29]:
        assert rule.banned() == []
        rule.push(token)
    assert rule.banned() == [line[29]]


def test_a_repeat_further_back_than_the_window_is_allowed() -> None:
    rule = NgramRule(3, 10)
    for token in [1, 2, 3, *range(10, 17), 1, 2]:
        rule.push(token)
    assert rule.banned() == []
    rule = NgramRule(3, 10)
    for token in [1, 2, 3, *range(10, 15), 1, 2]:
        rule.push(token)
    assert rule.banned() == [3]


def test_whitelisted_tokens_may_loop_and_still_count_in_other_ngrams() -> None:
    rule = NgramRule(3, 20, frozenset({7}))
    for token in [7] * 15:
        rule.push(token)
        assert rule.banned() == []
    rule = NgramRule(3, 20, frozenset({7}))
    for token in [7, 7, 5, 7, 7]:
        rule.push(token)
    assert rule.banned() == [5]


def test_memory_of_the_records_is_bounded_by_the_window() -> None:
    source = random.Random(3)
    rule = NgramRule(30, 90, frozenset({1}))
    for _ in range(20_000):
        rule.push(source.randrange(3))
    assert len(rule._live) <= 61
    assert sum(len(ends) for ends in rule._ends.values()) <= 61
    assert all(rule._ends.values())


@pytest.mark.parametrize(("size", "window"), [(0, 5), (5, 0), (-1, 5)])
def test_impossible_rules_are_refused(size: int, window: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        NgramRule(size, window)
