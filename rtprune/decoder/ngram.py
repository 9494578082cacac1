"""The windowed n-gram rule: which token ids may not come next, kept up to date one token at a time."""

from __future__ import annotations

from collections import deque


def _hash(tokens: list[int]) -> int:
    """A key for some tokens. That two runs of tokens share one costs a comparison and never a wrong answer."""
    return hash(tuple(tokens))


class NgramRule:
    """No n-gram of `size` tokens twice within the last `window` generated tokens.

    Convention (the one of DeepSeek-OCR's own processor and of transformers' windowed one): the n-gram that
    the next token would complete is compared with the n-grams that lie wholly inside the `window` tokens
    before that token. So `window` counts generated tokens without the one to come, a window shorter than
    `size` bans nothing, and the prompt doesn't count. With `size` 1 every token of the window is banned
    (as in transformers; DeepSeek-OCR's processor bans nothing there, by an accident of slicing).
    Tokens in `whitelist` are never banned, but count as part of the n-grams of others.

    Cost: O(size) a token, whatever `window`; memory: two numbers for each n-gram of the window. n-grams are
    found by the hash of what comes before their last token, and compared token by token, so the answer is exact.
    Raises ValueError for a size or window below 1.
    """

    def __init__(self, size: int, window: int, whitelist: frozenset[int] = frozenset()) -> None:
        if size < 1 or window < 1:
            raise ValueError(f"size and window must be at least 1, got {size} and {window}.")
        self._size = size
        self._whitelist = whitelist
        self._capacity = max(0, window - size + 1)  # n-grams that lie wholly inside the window
        self._tokens: list[int] = []
        # Those n-grams, oldest first: the key of all but the last token; None where that one is whitelisted.
        self._live: deque[int | None] = deque()
        self._ends: dict[int, deque[int]] = {}  # the same by key: indices of their last tokens, ascending
        self._key = _hash([])  # of the last `size - 1` tokens

    def push(self, token: int) -> None:
        """Tell the rule which token was generated."""
        if self._capacity == 0:
            return
        tokens = self._tokens
        tokens.append(token)
        if len(tokens) >= self._size:
            key = None if token in self._whitelist else self._key
            self._live.append(key)
            if key is not None:
                self._ends.setdefault(key, deque()).append(len(tokens) - 1)
        if len(self._live) > self._capacity:
            left = self._live.popleft()
            if left is not None:
                self._ends[left].popleft()
                if not self._ends[left]:
                    del self._ends[left]
        self._key = _hash(tokens[len(tokens) - self._size + 1 :])

    def banned(self) -> list[int]:
        """Ids that would repeat an n-gram of the window if one of them came next, in no order."""
        ends = self._ends.get(self._key)
        if ends is None:
            return []
        tokens, before = self._tokens, self._size - 1
        last = tokens[len(tokens) - before :]
        return list({tokens[end] for end in ends if tokens[end - before : end] == last})
