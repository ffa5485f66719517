"""Pages of the KV cache: nobody shares one by accident, none is lost, a page used again is cleared."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gemmafile.engine.pages import OutOfPages, Pages, Sequence
from gemmafile.model.batch import PAGE, Batch


class Cleared(list[int]):
    """Remembers which pages were cleared."""

    def __call__(self, page: int) -> None:
        self.append(page)


def test_pages_are_taken_at_their_boundary() -> None:
    pages = Pages(3, Cleared())
    sequence = Sequence(pages)
    sizes = {0: 0, 1: 1, PAGE - 1: 1, PAGE: 1, PAGE + 1: 2, 2 * PAGE: 2, 2 * PAGE + 1: 3}
    for n_tokens, n_pages in sizes.items():
        sequence.extend(list(range(len(sequence), n_tokens)))
        assert (len(sequence), len(sequence.table)) == (n_tokens, n_pages)
        assert pages.n_free == 3 - n_pages
    for n_tokens, n_pages in reversed(sizes.items()):
        sequence.truncate(n_tokens)
        assert (len(sequence), len(sequence.table)) == (n_tokens, n_pages)
        assert pages.n_free == 3 - n_pages
    assert sequence.token_ids == []


def test_a_full_cache_changes_nothing() -> None:
    cleared = Cleared()
    pages = Pages(2, cleared)
    first, second = Sequence(pages), Sequence(pages)
    first.extend([1] * 100)
    with pytest.raises(OutOfPages, match="256 positions.*-c"):
        second.extend([2] * (PAGE + 1))
    assert (len(second), second.table, pages.n_free) == (0, [], 1)
    second.extend([2] * PAGE)
    assert first.table != second.table
    with pytest.raises(OutOfPages):
        first.extend([1] * PAGE)
    assert first.token_ids == [1] * 100


def test_a_page_is_cleared_before_it_is_used_again() -> None:
    cleared = Cleared()
    pages = Pages(4, cleared)
    sequence = Sequence(pages)
    sequence.extend([0] * 2 * PAGE)
    assert cleared == [], "fresh pages are zeros"
    first, second = sequence.table
    sequence.truncate(PAGE)
    sequence.extend([0])
    assert cleared == [second]
    assert sequence.table == [first, second]
    sequence.truncate(1)
    assert cleared == [second], "a page that stays is not"


def test_free_pages_give_their_memory_up_but_for_what_is_set_aside() -> None:
    cleared, dropped = Cleared(), list[tuple[int, int]]()
    pages = Pages(10, cleared, drop=lambda first, n: dropped.append((first, n)))
    pages.touch(3)
    assert (cleared, pages.n_touched) == ([0, 1, 2], 3)
    long, short = Sequence(pages), Sequence(pages)
    long.extend([0] * 5 * PAGE)
    short.extend([0] * PAGE)
    long.truncate(0)
    assert pages.give_up(keep=3) == 3
    assert dropped == [(2, 3)], "page 5 is held, pages 0 and 1 make three with it"
    assert (pages.n_touched, pages.n_free) == (3, 9)
    assert pages.give_up(keep=3) == 0
    cleared.clear()
    long.extend([0] * 3 * PAGE)
    assert long.table == [0, 1, 2]
    assert cleared == [0, 1], "what was given up is zeros"
    long.truncate(0)
    assert pages.give_up(keep=0) == 3
    assert pages.n_touched == 1


def test_truncating_further_than_the_end_keeps_all() -> None:
    sequence = Sequence(Pages(1, Cleared()))
    sequence.extend([1, 2, 3])
    sequence.truncate(10)
    assert sequence.token_ids == [1, 2, 3]


def test_page_table_is_int32() -> None:
    sequence = Sequence(Pages(2, Cleared()))
    assert sequence.page_table().shape == (0,)
    sequence.extend([0] * (PAGE + 1))
    assert sequence.page_table().dtype == np.int32
    assert sequence.page_table().tolist() == sequence.table


def test_no_page_has_two_owners_and_none_is_lost() -> None:
    rng = random.Random(1)
    cleared = Cleared()
    pages = Pages(12, cleared)
    sequences = [Sequence(pages) for _ in range(4)]
    n_full = 0
    for _ in range(2_000):
        sequence = rng.choice(sequences)
        before = list(sequence.token_ids)
        if rng.random() < 0.6:
            try:
                sequence.extend([rng.randrange(9)] * rng.randrange(3 * PAGE))
            except OutOfPages:
                n_full += 1
                assert sequence.token_ids == before
        else:
            sequence.truncate(rng.randrange(len(sequence) + 1))
        owned = [page for s in sequences for page in s.table]
        assert len(set(owned)) == len(owned) == pages.n_pages - pages.n_free
        assert all(len(s.table) == -(-len(s) // PAGE) for s in sequences)
    assert n_full > 20, "the cache was never full"
    assert set(cleared) <= set(range(12))


def test_runs_of_a_batch_are_its_sequences() -> None:
    def batch(*sequences: int) -> Batch:
        n = len(sequences)
        ids = np.zeros(n, np.int32)
        return Batch(ids, ids, np.array(sequences, np.int32), np.zeros((3, 1), np.int32), ids[:0])

    assert batch(0).runs() == [(0, 1)]
    assert batch(0, 0, 0).runs() == [(0, 3)]
    assert batch(0, 0, 1, 2, 2, 2).runs() == [(0, 2), (2, 1), (3, 3)]
    assert batch(0, 2).runs() == [(0, 1), (1, 1)]
