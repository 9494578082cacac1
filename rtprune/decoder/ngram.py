"""The windowed n-gram rule: which token ids may not come next, kept up to date one token at a time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# A polynomial hash modulo a Mersenne prime. Both numbers only decide how seldom two prefixes share a key;
# a shared key costs a comparison and never a wrong answer.
_MODULUS = 2**61 - 1
_BASE = 0x5DEECE66D1B54A


@dataclass(slots=True, eq=False)
class _Prefix:
    """`size - 1` tokens seen in the window, and what followed them.

    end: index just past their latest occurrence that was followed by a bannable token.
    followers: token -> index of its latest occurrence right after these tokens.
    """

    end: int
    followers: dict[int, int] = field(default_factory=dict)


class NgramRule:
    """No n-gram of `size` tokens twice within the last `window` generated tokens.

    Convention (the one of DeepSeek-OCR's own processor and of transformers' windowed one): the n-gram that
    the next token would complete is compared with the n-grams that lie wholly inside the `window` tokens
    before that token. So `window` counts generated tokens without the one to come, a window shorter than
    `size` bans nothing, and the prompt doesn't count. With `size` 1 every token of the window is banned
    (as in transformers; DeepSeek-OCR's processor bans nothing there, by an accident of slicing).
    Tokens in `whitelist` are never banned, but count as part of the n-grams of others.

    Cost: one hash step a token, whatever `size` and `window`; `banned` costs the ids it returns. A rolling
    hash of the last `size - 1` tokens finds earlier occurrences; only where it finds one are the tokens
    themselves compared, so the answer is exact.
    """

    def __init__(self, size: int, window: int, whitelist: frozenset[int] = frozenset()) -> None:
        if size < 1 or window < 1:
            raise ValueError(f"size and window must be at least 1, got {size} and {window}.")
        self._size = size
        self._whitelist = whitelist
        self._tokens: list[int] = []
        # n-grams that lie wholly inside the window, oldest first; None where the last token is whitelisted.
        self._live: deque[tuple[_Prefix, int, int] | None] = deque()
        self._capacity = max(0, window - size + 1)
        self._prefixes: dict[int, list[_Prefix]] = {}
        self._hash = 0
        self._out_factor = pow(_BASE, size - 2, _MODULUS) if size > 1 else 0
        self._matched: _Prefix | None = None

    def push(self, token: int) -> None:
        """Tell the rule which token was generated."""
        if self._capacity == 0:
            return
        tokens, length = self._tokens, len(self._tokens)
        if length >= self._size - 1:
            self._remember(token, length)
        tokens.append(token)
        self._roll(token)
        if len(self._live) > self._capacity:
            self._forget()
        self._match()

    def banned(self) -> list[int]:
        """Ids that would repeat an n-gram of the window if one of them came next, in no order."""
        return list(self._matched.followers) if self._matched is not None else []

    def _remember(self, token: int, index: int) -> None:
        """Record that `token`, at `index`, followed the tokens before it."""
        if token in self._whitelist:
            self._live.append(None)
            return
        prefix, key = self._matched, self._hash
        if prefix is None:
            prefix = _Prefix(index)
            self._prefixes.setdefault(key, []).append(prefix)
        prefix.end = index
        prefix.followers[token] = index
        self._live.append((prefix, key, token))

    def _forget(self) -> None:
        """Drop the n-gram that the window has left, unless a later one is the same."""
        left = self._live.popleft()
        if left is None:
            return
        prefix, key, token = left
        if prefix.followers.get(token, -1) != len(self._tokens) - 1 - self._capacity:
            return
        del prefix.followers[token]
        if not prefix.followers:
            same_key = self._prefixes[key]
            same_key.remove(prefix)
            if not same_key:
                del self._prefixes[key]

    def _roll(self, token: int) -> None:
        """Bring the hash to the last `size - 1` tokens; before there are so many it covers all of them."""
        if self._size == 1:
            return
        out = self._tokens[-self._size] + 1 if len(self._tokens) >= self._size else 0
        self._hash = ((self._hash - out * self._out_factor) * _BASE + token + 1) % _MODULUS

    def _match(self) -> None:
        """Find the record of the last `size - 1` tokens, if they have one."""
        end, width = len(self._tokens), self._size - 1
        self._matched = None
        if end < width:
            return
        for prefix in self._prefixes.get(self._hash, ()):
            if self._tokens[prefix.end - width : prefix.end] == self._tokens[end - width :]:
                self._matched = prefix
                return
