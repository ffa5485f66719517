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


def merge_symbols(symbols: list[str], rank: Callable[[str, str], int]) -> list[str]:
    """The symbols after all joins, O(n log n). `rank(left, right)` is below NEVER for pairs that may be joined.

    A heap of rank * n + place and a linked list; an entry whose pair has changed since is passed over.
    """
    n = len(symbols)
    texts: list[str | None] = [*symbols]
    following, preceding = list(range(1, n + 1)), list(range(-1, n - 1))
    ranks = [rank(left, right) for left, right in pairwise(symbols)] + [NEVER]
    heap = [r * n + i for i, r in enumerate(ranks) if r < NEVER]
    heapq.heapify(heap)

    def refresh(i: int) -> None:
        """The pair that starts at place `i` has changed."""
        j = following[i]
        left, right = texts[i], texts[j] if j < n else None
        ranks[i] = NEVER if left is None or right is None else rank(left, right)
        if ranks[i] < NEVER:
            heapq.heappush(heap, ranks[i] * n + i)

    while heap:
        pair_rank, i = divmod(heapq.heappop(heap), n)
        j = following[i]
        left, right = texts[i], texts[j] if j < n else None
        if left is None or right is None or ranks[i] != pair_rank:
            continue
        texts[i], texts[j] = left + right, None
        following[i] = following[j]
        if following[j] < n:
            preceding[following[j]] = i
        refresh(i)
        if preceding[i] >= 0:
            refresh(preceding[i])
    return [text for text in texts if text is not None]
