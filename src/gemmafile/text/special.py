"""Finding special tokens in text: which parts are a token by their spelling, which are plain text.

Leftmost first, and there the longest, as HF tokenizers do. A control token counts only where it lies whole
inside one trusted part, so no text of a user's, nor a mixture of his and ours, ever becomes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

_ID: Final = ""
"""Key of a token's id in a trie node; the other keys are single characters."""


class SpecialMatcher:
    """Looks for the texts of special tokens. Time: linear in the text, times the longest token at worst."""

    def __init__(self, texts: Mapping[str, int], control: Iterable[int]):
        """`texts` what to look for -> token id · `control` the ids that need trust. Empty texts are ignored."""
        self._control = frozenset(control)
        self._trie: dict[str, Any] = {}
        for text, token_id in texts.items():
            node = self._trie
            for character in text:
                node = node.setdefault(character, {})
            if text:
                node[_ID] = token_id
        self._candidates = _compile_candidates(self._trie)

    def split(self, text: str, parts: Iterable[tuple[int, bool]]) -> Iterator[str | int]:
        """Plain stretches of `text` and special token ids, in order.

        `parts`  (end, trusted) of the parts that make up `text`, ascending; the last end is len(text)
        """
        if self._candidates is None:
            yield from [text] if text else []
            return
        ends = iter(parts)
        end, trusted = next(ends, (len(text), False))
        plain_start = position = 0
        while candidate := self._candidates.search(text, position):
            start = candidate.start()
            while start >= end:
                end, trusted = next(ends)
            stop, token_id = self._longest(text, start, end if trusted else start)
            if token_id is None:
                position = start + 1
                continue
            if plain_start < start:
                yield text[plain_start:start]
            yield token_id
            plain_start = position = stop
        if plain_start < len(text):
            yield text[plain_start:]

    def _longest(self, text: str, start: int, trusted_end: int) -> tuple[int, int | None]:
        """End and id of the longest token at `start`; control tokens must end by `trusted_end`."""
        node, stop, token_id = self._trie, start, None
        for position in range(start, len(text)):
            following = node.get(text[position])
            if following is None:
                break
            node, here = following, following.get(_ID)
            if here is not None and (position < trusted_end or here not in self._control):
                stop, token_id = position + 1, here
        return stop, token_id


def _compile_candidates(trie: dict[str, Any]) -> re.Pattern[str] | None:
    """A pattern for where a token may start: its first two characters. None when there are no tokens."""
    branches = []
    for first, node in trie.items():
        seconds = "" if _ID in node else f"[{''.join(map(re.escape, node))}]"
        branches.append(re.escape(first) + seconds)
    return re.compile("|".join(branches)) if branches else None
