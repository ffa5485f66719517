"""The one algorithm under both tokenizers: join the best neighbouring pair until no pair is left to join.

Best is the lowest rank; among equals the leftmost. `spm.py` ranks pairs by the score of the piece they make,
`bpe.py` by their place in the list of merges.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import pairwise
from typing import Final

NEVER: Final = 1 << 40
"""The rank of a pair that must not be joined."""

_SHORT: Final = 96
"""Symbols up to which scanning a list beats a heap (0.1 s against 0.3 s for the words of a novel)."""


def merge_symbols(symbols: list[str], rank: Callable[[str, str], int]) -> list[str]:
    """The symbols after all joins, O(n log n). `rank(left, right)` is below NEVER for pairs that may be joined."""
    return _merge_short(symbols, rank) if len(symbols) <= _SHORT else _merge_long(symbols, rank)


def _merge_short(symbols: list[str], rank: Callable[[str, str], int]) -> list[str]:
    """By scanning; overwrites `symbols`."""
    ranks = [rank(left, right) for left, right in pairwise(symbols)]
    while ranks and (best := min(ranks)) < NEVER:
        i = ranks.index(best)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        del ranks[i]
        if i:
            ranks[i - 1] = rank(symbols[i - 1], symbols[i])
        if i < len(ranks):
            ranks[i] = rank(symbols[i], symbols[i + 1])
    return symbols


def _merge_long(symbols: list[str], rank: Callable[[str, str], int]) -> list[str]:
    """By a heap of rank * n + place and a linked list; an entry whose pair has changed since is passed over."""
    n = len(symbols)
    texts: list[str | None] = [*symbols]
    following, preceding = list(range(1, n + 1)), list(range(-1, n - 1))
    current = [rank(left, right) for left, right in pairwise(symbols)] + [NEVER]
    heap = [r * n + i for i, r in enumerate(current) if r < NEVER]
    heapq.heapify(heap)

    def refresh(i: int) -> None:
        """The pair that starts at `i` has changed."""
        j = following[i]
        left, right = texts[i], texts[j] if j < n else None
        current[i] = NEVER if left is None or right is None else rank(left, right)
        if current[i] < NEVER:
            heapq.heappush(heap, current[i] * n + i)

    while heap:
        pair_rank, i = divmod(heapq.heappop(heap), n)
        left, right = texts[i], texts[following[i]] if following[i] < n else None
        if left is None or right is None or current[i] != pair_rank:
            continue
        j = following[i]
        texts[i], texts[j] = left + right, None
        following[i] = following[j]
        if following[j] < n:
            preceding[following[j]] = i
        current[j] = NEVER
        refresh(i)
        if preceding[i] >= 0:
            refresh(preceding[i])
    return [text for text in texts if text is not None]
