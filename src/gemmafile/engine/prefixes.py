"""Prefixes: keys and values that are kept for whoever comes with the same tokens.

A tree whose nodes are pages: a node stands for the tokens from the beginning up to the end of its page. A `Lease` is a
sequence under way and its path through the tree. Full pages of a path are shared, by as many sequences as begin alike,
and are never written again. The page a sequence is writing is its own; others that begin like it copy the positions
they have in common. What a sequence leaves behind stays in the tree until its pages are wanted: the page that was used
least lately goes first, leaves before what they hang on.

By the law of rows a cached position holds the very bits that computing it again would give.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gemmafile.engine.pages import OutOfPages, Pages, Sequence
from gemmafile.model.batch import PAGE

Ids = NDArray[np.int32]

LEAST_COPIED = 4
"""Fewer positions are computed again rather than copied with their page."""


@dataclass(slots=True, eq=False)
class Node:
    """A page in the tree.

    tokens   int32[1 to PAGE]: those of this page; PAGE of them unless it is the end of something
    n_users  leases whose path goes through here · `used` when it last was: a count that only rises
    """

    tokens: Ids
    page: int
    parent: Node | None
    n_users: int = 0
    used: int = 0
    children: dict[bytes, Node] = field(default_factory=dict)
    ends: list[Node] = field(default_factory=list)
    writers: list[Lease] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        return not self.children and not self.ends


@dataclass(frozen=True, slots=True)
class Match:
    """Where a sequence can begin: whole pages `path`, then `n_tail` positions of the page `tail`."""

    path: list[Node]
    tail: Node | Lease | None
    n_tail: int

    @property
    def n_tokens(self) -> int:
        return len(self.path) * PAGE + self.n_tail


class Lease:
    """A sequence under way. Extend and truncate `sequence` between `Prefixes.lease` and `release`; `commit` after a
    pass. `n_cached`  positions that were there to begin with."""

    def __init__(self, sequence: Sequence, path: list[Node], keep: bool):
        self.sequence, self.keep = sequence, keep
        self.path = path
        self.n_cached = len(sequence)

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def tail(self) -> Ids:
        """The tokens of the page that is being written."""
        return np.array(self.sequence.token_ids[len(self.path) * PAGE :], np.int32)


class Prefixes:
    """The tree over `pages`. `most_idle`  pages kept that no sequence uses; None: as many as there is room for. What
    the last of all sequences left is kept even where it is longer, unless nothing is to be kept."""

    def __init__(self, pages: Pages, most_idle: int | None = None):
        self.pages, self.most_idle = pages, pages.n_pages if most_idle is None else most_idle
        self._root = Node(np.empty(0, np.int32), -1, None)
        self._clock = 0
        self._leaves: list[tuple[int, int, Node]] = []  # a heap of what may go; entries outdated by use are skipped
        self._n_pushed = 0
        self.n_nodes = self.n_used = self.n_leased = 0
        pages.reclaim = self.evict

    # --- gauges -------------------------------------------------------------------------------------------------

    @property
    def n_idle(self) -> int:
        """Pages in the tree that no lease uses."""
        return self.n_nodes - self.n_used

    @property
    def n_spared(self) -> int:
        """Pages that sharing spares: how many more there would be if every sequence had its own."""
        return self.n_leased - self.n_used

    @property
    def n_available(self) -> int:
        """Pages that can be had without ending a sequence."""
        return self.pages.n_free + self.n_idle

    # --- looking up ---------------------------------------------------------------------------------------------

    def match(self, token_ids: SequenceOf[int], most: int | None = None) -> Match:
        """The longest beginning of `token_ids`, of at most `most` tokens, that is in the tree."""
        most = len(token_ids) if most is None else min(most, len(token_ids))
        ids = np.array(token_ids[:most], np.int32)
        node, path, at = self._root, [], 0
        while at + PAGE <= most and (child := node.children.get(ids[at : at + PAGE].tobytes())) is not None:
            path.append(child)
            node, at = child, at + PAGE
        tail, n_tail = self._best_tail(node, ids[at:])
        return Match(path, tail, n_tail)

    def _best_tail(self, node: Node, ids: Ids) -> tuple[Node | Lease | None, int]:
        best: Node | Lease | None = None
        longest = 0
        if not len(ids):
            return None, 0
        for end in node.ends:  # before full pages: of equals, one that can be taken over
            if (n := common_length(end.tokens, ids)) > longest:
                best, longest = end, n
        for child in node.children.values():
            if (n := common_length(child.tokens, ids)) > longest:
                best, longest = child, n
        for lease in node.writers:
            if (n := common_length(lease.tail, ids)) > longest:
                best, longest = lease, n
        return best, longest

    # --- sequences ----------------------------------------------------------------------------------------------

    def lease(self, token_ids: SequenceOf[int], most: int | None = None) -> Lease:
        """A sequence that begins with as much of `token_ids` (at most `most`) as is in the tree."""
        found = self.match(token_ids, most)
        sequence = Sequence(self.pages)
        for node in found.path:
            self._use(node)
        pages = [node.page for node in found.path]
        self.pages.share(pages)
        sequence.table = pages
        sequence.token_ids = list(token_ids[: len(pages) * PAGE])
        if (page := self._begin_tail(found)) is not None:
            sequence.table.append(page)
            sequence.token_ids = list(token_ids[: found.n_tokens])
        lease = Lease(sequence, found.path, keep=True)
        self._writing_at(lease).writers.append(lease)
        return lease

    def lease_private(self) -> Lease:
        """A sequence that neither takes from the tree nor leaves anything in it."""
        return Lease(Sequence(self.pages), [], keep=False)

    def publish(self, lease: Lease) -> None:
        """A private sequence, all of it computed, is for everyone from now on."""
        assert not lease.keep
        lease.keep = True
        self._root.writers.append(lease)
        self.commit(lease)

    def commit(self, lease: Lease) -> None:
        """What a sequence holds has been computed: its full pages are for everyone."""
        table, n_full = lease.sequence.table, len(lease) // PAGE
        if not lease.keep or n_full == len(lease.path):
            return
        node = self._writing_at(lease)
        node.writers.remove(lease)
        for i in range(len(lease.path), n_full):
            tokens = np.array(lease.sequence.token_ids[i * PAGE : (i + 1) * PAGE], np.int32)
            child = node.children.get(tokens.tobytes())
            if child is None:
                child = node.children[tokens.tobytes()] = self._add(tokens, table[i], node)
                self.pages.share([table[i]])
            else:  # another computed the same in the meantime: two of a page become one
                self.pages.share([child.page])
                self.pages.give_back([table[i]])
                table[i] = child.page
            self._use(child)
            lease.path.append(child)
            node = child
        node.writers.append(lease)

    def release(self, lease: Lease) -> None:
        """A sequence is over: what it computed stays for others while there is room."""
        sequence, path, before = lease.sequence, lease.path, self._clock
        if not lease.keep:
            sequence.truncate(0)
            return
        self.commit(lease)
        node = self._writing_at(lease)
        node.writers.remove(lease)
        tail = lease.tail
        if len(tail) and self._is_news(node, tail):
            end = self._add(tail, sequence.table[len(path)], node)
            self.pages.share([end.page])
            node.ends.append(end)
            self._stamp(end)
            self._offer(end)
        for used in path:
            used.n_users -= 1
            self.n_leased -= 1
            self.n_used -= used.n_users == 0
            self._stamp(used)
        if path:
            self._offer(path[-1])
        sequence.truncate(0)
        lease.path = []
        self.evict(self.n_idle - self.most_idle, before if self.most_idle else None)

    # --- forgetting ---------------------------------------------------------------------------------------------

    def evict(self, n: int, before: int | None = None) -> None:
        """Give back up to n pages that no lease uses, those used least lately first; none used after `before`."""
        while n > 0 and self._leaves and (before is None or self._leaves[0][0] <= before):
            used, _, node = heapq.heappop(self._leaves)
            if node.used == used and self._may_go(node):
                self._remove(node)
                n -= 1

    def forget(self, token_ids: SequenceOf[int]) -> int:
        """Give back the pages at the end of these tokens that nothing else hangs on; how many tokens they held."""
        found = self.match(token_ids)
        n = 0
        last = found.tail
        if isinstance(last, Node) and found.n_tail == len(last.tokens) and self._may_go(last):
            n += len(last.tokens)
            self._remove(last)
        for node in reversed(found.path):
            if not self._may_go(node):
                break
            n += PAGE
            self._remove(node)
        return n

    # --- the tree -----------------------------------------------------------------------------------------------

    def _begin_tail(self, found: Match) -> int | None:
        """The page for the tail of a match: the very page where it ends there, else a copy. None: nothing worth it."""
        tail, n = found.tail, found.n_tail
        if isinstance(tail, Node) and n == len(tail.tokens) < PAGE and tail.n_users == 0:
            self.pages.share([tail.page])
            self._remove(tail)
            return tail.page
        if tail is None or n < LEAST_COPIED:
            return None
        if isinstance(tail, Lease):
            return self._copy(tail.sequence.table[len(tail.path)], n)
        tail.n_users += 1  # its page must not be the one that is given back for the copy
        self.n_used += tail.n_users == 1
        page = self._copy(tail.page, n)
        tail.n_users -= 1
        self.n_used -= tail.n_users == 0
        self._stamp(tail)
        self._offer(tail)
        return page

    def _copy(self, page: int, n: int) -> int | None:
        try:
            return self.pages.take_copy(page, n)
        except OutOfPages:
            return None

    def _writing_at(self, lease: Lease) -> Node:
        return lease.path[-1] if lease.path else self._root

    def _is_news(self, node: Node, tail: Ids) -> bool:
        """Is there nothing yet that begins with `tail`? Ends that `tail` goes on from make way for it."""
        others = (*node.ends, *node.children.values())
        if any(common_length(other.tokens, tail) == len(tail) for other in others):
            return False
        for end in [end for end in node.ends if common_length(end.tokens, tail) == len(end.tokens)]:
            if self._may_go(end):
                self._remove(end)
        return True

    def _add(self, tokens: Ids, page: int, parent: Node) -> Node:
        self.n_nodes += 1
        return Node(tokens, page, parent)

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        if len(node.tokens) == PAGE:
            del parent.children[node.tokens.tobytes()]
        else:
            parent.ends.remove(node)
        self.n_nodes -= 1
        node.used = -1
        self.pages.give_back([node.page])
        self._offer(parent)

    def _use(self, node: Node) -> None:
        node.n_users += 1
        self.n_leased += 1
        self.n_used += node.n_users == 1
        self._stamp(node)

    def _stamp(self, node: Node) -> None:
        self._clock += 1
        node.used = self._clock

    def _may_go(self, node: Node) -> bool:
        return node.n_users == 0 and node.is_leaf and not node.writers and node.parent is not None

    def _offer(self, node: Node) -> None:
        """Note a page that may go, under the time it was last used."""
        if self._may_go(node):
            self._n_pushed += 1
            heapq.heappush(self._leaves, (node.used, self._n_pushed, node))
            if len(self._leaves) > 64 + 4 * self.n_nodes:
                self._leaves = [entry for entry in self._leaves if entry[2].used == entry[0] and entry[2].is_leaf]
                heapq.heapify(self._leaves)


def common_length(a: Ids, b: Ids) -> int:
    """How many tokens two lists have in common at their beginnings."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    differs = a[:n] != b[:n]
    first = int(differs.argmax())
    return first if differs[first] else n
