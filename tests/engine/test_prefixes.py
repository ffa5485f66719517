"""Prefixes: who begins alike shares pages; nothing is written twice, lost, or kept past its room."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gemmafile.engine.pages import OutOfPages, Pages
from gemmafile.engine.prefixes import LEAST_COPIED, Lease, Prefixes, common_length
from gemmafile.model.batch import PAGE


class Memory:
    """Pages that hold token ids: what a position holds must be what the sequence says is there."""

    def __init__(self, n_pages: int):
        self.numbers = np.zeros((n_pages, PAGE), np.int64)
        self.n_copied = 0

    def clear(self, page: int) -> None:
        self.numbers[page] = 0

    def copy(self, source: int, target: int, n: int) -> None:
        self.numbers[target] = 0
        self.numbers[target, :n] = self.numbers[source, :n]
        self.n_copied += n

    def write(self, lease: Lease, token_ids: list[int]) -> None:
        """As a pass does: tokens at the end of a sequence, each marked with all that went before it."""
        first = len(lease)
        lease.sequence.extend(token_ids)
        for position in range(first, len(lease)):
            page = lease.sequence.table[position // PAGE]
            self.numbers[page, position % PAGE] = mark(lease.sequence.token_ids, position)

    def check(self, lease: Lease) -> None:
        for position in range(len(lease)):
            page = lease.sequence.table[position // PAGE]
            assert self.numbers[page, position % PAGE] == mark(lease.sequence.token_ids, position)
        if len(lease) % PAGE:
            assert not self.numbers[lease.sequence.table[-1], len(lease) % PAGE :].any()


def mark(token_ids: list[int], position: int) -> int:
    """A number that only this token behind these others has."""
    return hash(tuple(token_ids[: position + 1])) | 1


def make(n_pages: int, most_idle: int | None = None) -> tuple[Prefixes, Memory]:
    memory = Memory(n_pages)
    return Prefixes(Pages(n_pages, memory.clear, memory.copy), most_idle), memory


def say(prefixes: Prefixes, memory: Memory, token_ids: list[int]) -> int:
    """One whole sequence; how many tokens it found in the tree."""
    lease = prefixes.lease(token_ids, len(token_ids) - 1)
    n_cached = lease.n_cached
    memory.write(lease, token_ids[n_cached:])
    prefixes.commit(lease)
    memory.check(lease)
    prefixes.release(lease)
    return n_cached


def test_a_further_turn_finds_all_of_the_last() -> None:
    prefixes, memory = make(20)
    chat: list[int] = []
    for turn in range(10):
        before = len(chat)
        chat += [turn * 1000 + i for i in range(37 * (turn + 1))]
        assert say(prefixes, memory, chat) == before
    assert memory.n_copied == 0, "the page where a chat ended is taken over, not copied"
    assert prefixes.n_nodes == -(-len(chat) // PAGE)


def test_two_that_begin_alike_share_pages() -> None:
    prefixes, memory = make(40)
    system = list(range(2000))
    first = prefixes.lease([*system, 1], 2000)
    memory.write(first, [*system, 1])
    prefixes.commit(first)
    second = prefixes.lease([*system, 2], 2000)
    assert second.n_cached == 2000
    memory.write(second, [2])
    prefixes.commit(second)
    assert first.sequence.table[:15] == second.sequence.table[:15]
    assert first.sequence.table[15] != second.sequence.table[15]
    assert (prefixes.n_used, prefixes.n_spared, prefixes.pages.n_free) == (15, 15, 40 - 17)
    memory.check(first)
    memory.check(second)


def test_two_that_computed_the_same_at_once_keep_it_once() -> None:
    prefixes, memory = make(10)
    ids = list(range(3 * PAGE))
    first, second = prefixes.lease(ids), prefixes.lease(ids)
    for lease in (first, second):
        memory.write(lease, ids)
    assert prefixes.pages.n_free == 4
    prefixes.commit(first)
    prefixes.commit(second)
    assert first.sequence.table == second.sequence.table
    assert prefixes.pages.n_free == 7
    memory.check(second)


def test_a_page_in_writing_is_copied_as_far_as_it_is_common() -> None:
    prefixes, memory = make(10)
    first = prefixes.lease([5] * 50)
    memory.write(first, [5] * 50)
    prefixes.commit(first)
    second = prefixes.lease([5] * 30 + [6] * 9)
    assert second.n_cached == 30
    memory.write(second, [6] * 9)
    memory.write(first, [7])
    memory.check(first)
    memory.check(second)
    third = prefixes.lease([5] * (LEAST_COPIED - 1) + [9])
    assert third.n_cached == 0, "so few are not worth a copy"


def test_what_was_used_least_lately_goes_first() -> None:
    prefixes, memory = make(6)
    for start in (100, 200, 300):
        say(prefixes, memory, [start + i for i in range(2 * PAGE)])
    assert prefixes.n_available == 6
    say(prefixes, memory, [100 + i for i in range(2 * PAGE)] + [1])
    assert prefixes.match([100 + i for i in range(2 * PAGE)]).n_tokens == 2 * PAGE
    assert prefixes.match([200 + i for i in range(2 * PAGE)]).n_tokens == PAGE, "its end went first"
    assert prefixes.match([300 + i for i in range(2 * PAGE)]).n_tokens == 2 * PAGE


def test_idle_pages_are_kept_within_their_room() -> None:
    prefixes, memory = make(20, most_idle=3)
    for start in range(10):
        say(prefixes, memory, [start * 1000 + i for i in range(300)])
        assert prefixes.n_idle <= 3
    assert prefixes.pages.n_free >= 17


def test_the_last_conversation_is_kept_even_where_it_is_long() -> None:
    prefixes, memory = make(20, most_idle=3)
    say(prefixes, memory, [9] * 300)
    chat = list(range(1000))
    say(prefixes, memory, chat)
    assert prefixes.n_idle == 8
    assert say(prefixes, memory, [*chat, *range(100)]) == 1000
    say(prefixes, memory, [7] * 50)
    assert prefixes.n_idle == 3, "another came, and the first has to fit again"
    nothing, memory = make(20, most_idle=0)
    say(nothing, memory, chat)
    assert nothing.n_idle == 0


def test_a_private_sequence_leaves_nothing() -> None:
    prefixes, memory = make(4)
    say(prefixes, memory, list(range(200)))
    lease = prefixes.lease_private()
    memory.write(lease, list(range(200)))
    prefixes.commit(lease)
    assert prefixes.pages.n_free == 0
    prefixes.release(lease)
    assert (prefixes.pages.n_free, prefixes.n_nodes) == (2, 2)


def test_the_same_again_and_again_holds_no_more() -> None:
    prefixes, memory = make(30)
    for _ in range(50):
        say(prefixes, memory, list(range(1000)))
    assert prefixes.n_nodes == 8


def test_forgetting_gives_back_what_nothing_hangs_on() -> None:
    prefixes, memory = make(10)
    system = list(range(PAGE))
    say(prefixes, memory, system + [1] * 200)
    say(prefixes, memory, system + [2] * 100)
    assert prefixes.forget(system + [1] * 200) == 200
    assert prefixes.forget(system + [1] * 200) == 0
    assert prefixes.forget(system + [2] * 100) == PAGE + 100
    assert prefixes.pages.n_free == 10


@pytest.mark.parametrize("seed", range(3))
def test_random_lives_lose_nothing_and_mix_nothing(seed: int, full: bool) -> None:
    rng = random.Random(seed)
    prefixes, memory = make(12, most_idle=rng.choice([None, 4]))
    beginnings = [[rng.randrange(3) for _ in range(rng.randrange(1, 400))] for _ in range(6)]
    leases: list[Lease] = []
    n_hits = n_full = 0
    for _ in range(2000 if full else 500):
        if leases and rng.random() < 0.4:
            prefixes.release(leases.pop(rng.randrange(len(leases))))
        elif rng.random() < 0.5 and len(leases) < 6:
            base = rng.choice(beginnings)
            ids = base[: rng.randrange(1, len(base) + 1)] + [rng.randrange(3) for _ in range(rng.randrange(150))]
            lease = prefixes.lease(ids, len(ids) - 1) if rng.random() < 0.9 else prefixes.lease_private()
            n_hits += lease.n_cached > 0
            leases.append(lease)
            try:
                memory.write(lease, ids[len(lease) :])
            except OutOfPages:
                n_full += 1
        elif leases:
            try:
                memory.write(rng.choice(leases), [rng.randrange(3) for _ in range(rng.randrange(150))])
            except OutOfPages:
                n_full += 1
        for lease in leases:
            prefixes.commit(lease)
            memory.check(lease)
        held = {page for lease in leases for page in lease.sequence.table}
        assert prefixes.pages.n_pages - prefixes.pages.n_free == len(held) + prefixes.n_idle
        assert prefixes.n_used == len({id(node) for lease in leases for node in lease.path})
        assert prefixes.n_leased == sum(len(lease.path) for lease in leases)
    assert n_hits > 20
    assert n_full > 5
    for lease in leases:
        prefixes.release(lease)
    prefixes.evict(100)
    assert (prefixes.pages.n_free, prefixes.n_nodes) == (12, 0)


def test_common_length() -> None:
    def n(a: list[int], b: list[int]) -> int:
        return common_length(np.array(a, np.int32), np.array(b, np.int32))

    assert [n([], [1]), n([1], [2]), n([1, 2], [1]), n([1, 2, 3], [1, 2, 4]), n([1, 2], [1, 2])] == [0, 0, 1, 2, 2]
