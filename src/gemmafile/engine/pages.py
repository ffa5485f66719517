"""Pages: which page of the KV cache belongs to whom.

A `Sequence` is a list of token ids whose keys and values lie in the pages of its table. `Pages` hands pages
out and takes them back; it knows numbers, not memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gemmafile.errors import GemmafileError
from gemmafile.model.batch import PAGE


class OutOfPages(GemmafileError):
    """The KV cache is full."""

    http_status = 503


class Pages:
    """A stack of free pages. `clear` is called for a page that is handed out a second time."""

    def __init__(self, n_pages: int, clear: Callable[[int], None]):
        self.n_pages, self._clear = n_pages, clear
        self._free = list(range(n_pages - 1, -1, -1))
        self._used_before: set[int] = set()

    @property
    def n_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A page of zeros. Raises OutOfPages."""
        if not self._free:
            raise OutOfPages(f"the KV cache is full ({self.n_pages * PAGE} positions): give a larger context (-c)")
        page = self._free.pop()
        if page in self._used_before:
            self._clear(page)
        self._used_before.add(page)
        return page

    def give_back(self, pages: list[int]) -> None:
        self._free.extend(reversed(pages))


class Sequence:
    """Token ids in the cache, with the pages they lie in."""

    def __init__(self, pages: Pages):
        self._pages = pages
        self.token_ids: list[int] = []
        self.table: list[int] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    def extend(self, token_ids: list[int]) -> None:
        """Append tokens about to be computed, taking pages for them. Raises OutOfPages, changing nothing."""
        wanted = -(-(len(self) + len(token_ids)) // PAGE)
        taken: list[int] = []
        try:
            while len(self.table) + len(taken) < wanted:
                taken.append(self._pages.take())
        except OutOfPages:
            self._pages.give_back(taken)
            raise
        self.table += taken
        self.token_ids += token_ids

    def truncate(self, n: int) -> None:
        """Keep the first n tokens; pages behind them go back."""
        del self.token_ids[n:]
        keep = -(-len(self.token_ids) // PAGE)
        self._pages.give_back(self.table[keep:])
        del self.table[keep:]

    def page_table(self) -> np.ndarray:
        """int32[P]"""
        return np.array(self.table, np.int32)
