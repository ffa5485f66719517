"""Pages: which page of the KV cache belongs to whom.

A `Sequence` is a list of token ids whose keys and values lie in the pages of its table. `Pages` hands pages
out, counts who holds them and takes them back; it knows numbers, not memory. Next: prefixes.py, which keeps
pages that nobody holds for whoever comes with the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf

import numpy as np

from gemmafile.errors import GemmafileError
from gemmafile.model.batch import PAGE


class OutOfPages(GemmafileError):
    """The KV cache is full."""

    http_status = 503


class Pages:
    """A stack of free pages, and for the others how many hold each.

    clear    called for a page that is handed out a second time
    copy     called with (from, to, n): `to` becomes the first n positions of `from`, the rest zeros
    drop     called with (first, n): these pages become zeros that take no memory
    reclaim  called with a number of pages when none is free: gives back as many as it can spare, if any
    """

    def __init__(
        self, n_pages: int, clear: Callable[[int], None], copy: Callable[[int, int, int], None] | None = None,
        drop: Callable[[int, int], None] | None = None,
    ):  # fmt: skip
        self.n_pages, self._clear, self._copy, self._drop = n_pages, clear, copy, drop
        self._free = list(range(n_pages - 1, -1, -1))
        self._used_before: set[int] = set()
        self._holders = [0] * n_pages
        self.reclaim: Callable[[int], None] | None = None

    @property
    def n_free(self) -> int:
        return len(self._free)

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def take(self) -> int:
        """A page of zeros. Raises OutOfPages."""
        page = self._pop()
        if page in self._used_before:
            self._clear(page)
        self._used_before.add(page)
        return page

    def take_copy(self, source: int, n: int) -> int:
        """A page that begins with the first n positions of another. Raises OutOfPages."""
        assert self._copy is not None
        page = self._pop()
        self._used_before.add(page)
        self._copy(source, page, n)
        return page

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each of these pages, which are no longer to be written."""
        for page in pages:
            assert self._holders[page] > 0
            self._holders[page] += 1

    def give_back(self, pages: SequenceOf[int]) -> None:
        """One holder less; a page that nobody holds is free."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0
            if self._holders[page] == 0:
                self._free.append(page)

    # --- memory -------------------------------------------------------------------------------------------------

    @property
    def n_touched(self) -> int:
        """Pages that take memory, whoever holds them."""
        return len(self._used_before)

    def touch(self, n: int) -> None:
        """Have n pages take their memory now; those that are handed out next."""
        for page in self._free[::-1][:n]:
            self._clear(page)
            self._used_before.add(page)

    def give_up(self, keep: int) -> int:
        """Free pages take no memory any more, but for as many as make `keep` along with those that are held. How many
        pages that was."""
        if self._drop is None:
            return 0
        free = sorted(page for page in self._free if page in self._used_before)
        dropped = free[max(0, keep - (self.n_touched - len(free))) :]
        for first, n in _stretches(dropped):
            self._drop(first, n)
        self._used_before.difference_update(dropped)
        self._free.sort(key=lambda page: (page in self._used_before, -page))  # those that have memory go first
        return len(dropped)

    def _pop(self) -> int:
        if not self._free and self.reclaim is not None:
            self.reclaim(1)
        if not self._free:
            raise OutOfPages(f"the KV cache is full ({self.n_pages * PAGE} positions): give a larger context (-c)")
        page = self._free.pop()
        self._holders[page] = 1
        return page


def _stretches(numbers: list[int]) -> list[tuple[int, int]]:
    """Rising numbers as (first, how many) of those that follow each other."""
    starts = [i for i in range(len(numbers)) if i == 0 or numbers[i] != numbers[i - 1] + 1]
    return [(numbers[i], end - i) for i, end in zip(starts, [*starts[1:], len(numbers)], strict=False)]


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
        if token_ids and len(self) % PAGE and self._pages.holders(self.table[-1]) > 1:
            self._own_last_page()
        try:
            while len(self.table) + len(taken) < wanted:
                taken.append(self._pages.take())
        except OutOfPages:
            self._pages.give_back(taken)
            raise
        self.table += taken
        self.token_ids += token_ids

    def _own_last_page(self) -> None:
        """Others hold the page that is about to be written: go on in a copy of it."""
        shared = self.table[-1]
        self.table[-1] = self._pages.take_copy(shared, len(self) % PAGE)
        self._pages.give_back([shared])

    def truncate(self, n: int) -> None:
        """Keep the first n tokens; pages behind them go back."""
        del self.token_ids[n:]
        keep = -(-len(self.token_ids) // PAGE)
        self._pages.give_back(self.table[keep:])
        del self.table[keep:]

    def page_table(self) -> np.ndarray:
        """int32[P]"""
        return np.array(self.table, np.int32)
