"""The tokens still in the race for the next place.

In: float32 logits of the whole vocabulary. Out: fewer candidates, likeliest first, equal ones by lower id.
Next: truncation.py, which narrows them, and penalties.py, which edits their logits.

The idea: a truncation needs the candidates' values in order, but no ids. So only values are sorted (0.6 ms for
256k, where an argsort takes 3), every truncation is a slice of them, and the id is looked up once, for the one
token that was chosen.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gemmafile.errors import BadSettings

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

GROUP = 128
"""Tokens in a group whose maximum stands for it while the largest are searched."""


class Workspace(threading.local):
    """Memory kept from choice to choice, one set a thread.

    Without it the C library hands freed megabytes back and gets them anew, page by page: twice the time.
    """

    def floats(self, use: str, n: int) -> Floats:
        """float32[n], the same memory for every call with this `use`."""
        buffer = self.__dict__.get(use)
        if buffer is None or len(buffer) < n:
            buffer = self.__dict__[use] = np.empty(n, np.float32)
        memory: Floats = buffer[:n]
        return memory


_WORKSPACE = Workspace()


class Candidates:
    """Candidates in order of id until `values` asks for their order, and again after an edit.

    `logits`  float32[n_vocab], never written: the first edit copies it

    A logit of -inf is no candidate. Arrays live in the thread's workspace: use one `Candidates` at a time.
    """

    def __init__(self, logits: Floats):
        self._logits = logits
        self._ids: Ids | None = None  # of _logits, ascending; None: the place is the id
        self._order: Floats | None = None  # _logits, descending
        self._start = 0  # values[0] was _order[_start]
        self._values: Floats | None = None  # the slice of _order still in the race, divided by _temperature
        self._temperature = 1.0
        self._weights: Floats | None = None  # of _values, where they have been asked for

    def __len__(self) -> int:
        return len(self.values)

    @property
    def values(self) -> Floats:
        """float32[n], descending: the candidates' logits. Not to be written. One -inf, if there is no candidate."""
        if self._values is None:
            order = np.negative(self._logits, out=_WORKSPACE.floats("order", len(self._logits)))
            order.sort()
            self._order = np.negative(order, out=order)
            self._values = order[: max(count_above(order, -math.inf), 1)]
        return self._values

    def weights(self) -> Floats:
        """float32[n], descending from 1: the candidates' probabilities, not yet divided by their sum.

        Good until the next call. Raises BadSettings if there is no candidate.
        """
        if not math.isfinite(self.values[0]):
            raise BadSettings(
                "no token can be chosen: logit biases, penalties and the grammar rule out every one; relax them"
            )
        if self._weights is None:
            self._weights = exponentials(self.values, float(self.values[0]))
        return self._weights

    def keep(self, stop: int, start: int = 0) -> None:
        """Keeps the candidates of rank `start` up to, not including, `stop`."""
        self._values = self.values[start:stop]
        self._start += start
        self._weights = self._weights[:stop] if self._weights is not None and start == 0 else None

    def keep_largest(self, k: int) -> None:
        """Keeps the `k` likeliest; quickly, without sorting the others, if `k` is small."""
        if self._values is None and k <= len(self._logits) // GROUP:
            self._narrow(largest(self._logits, k))
        else:
            self.keep(k)

    def likeliest(self, n: int) -> list[int]:
        """Ids of the `n` likeliest, or of all if they are fewer."""
        self._settle()
        places = largest(self._logits, n)
        values = self._logits[places]
        places = places[np.argsort(-values, kind="stable")][: np.count_nonzero(values > -np.inf)]
        ids: list[int] = (places if self._ids is None else self._ids[places]).tolist()
        return ids

    def keep_ids(self, token_ids: Sequence[int]) -> None:
        """Keeps those of `token_ids` that are candidates."""
        self._settle()
        kept = np.array(sorted(token_ids), np.int64)
        self._narrow(kept if self._ids is None else np.flatnonzero(np.isin(self._ids, kept)))

    def keep_allowed(self, allowed: NDArray[np.bool_]) -> None:
        """Keeps the ids for which `allowed` bool[n_vocab] is true."""
        self._settle()
        self._rule_out(allowed if self._ids is None else allowed[self._ids])

    def divide(self, temperature: float) -> None:
        """Divides all logits by `temperature` > 0."""
        values = self.values
        with np.errstate(over="ignore"):
            self._values = np.divide(values, np.float32(temperature), out=_WORKSPACE.floats("divided", len(values)))
        self._temperature *= temperature
        self._weights = None

    def edit(self, token_ids: Ids, change: Callable[[Doubles, NDArray[np.bool_]], Doubles]) -> None:
        """Changes the logits of those of `token_ids` that are candidates; the order is found anew afterwards.

        change  gets their logits and which of `token_ids` they are; gives the new logits
        """
        self._settle()
        self._make_writable()
        places, present = token_ids, np.ones(len(token_ids), np.bool_)
        if self._ids is not None:
            places = np.searchsorted(self._ids, token_ids)
            present = self._ids[np.minimum(places, len(self._ids) - 1)] == token_ids
            places = places[present]
        new = change(self._logits[places].astype(np.float64), present)
        with np.errstate(over="ignore"):  # a penalty may be as large as it likes: -inf is a logit
            self._logits[places] = new

    def token(self, rank: int) -> int:
        """Id of the candidate of that rank."""
        assert 0 <= rank < len(self.values)
        assert self._order is not None
        place = self._start + rank
        value = self._order[place]
        index = np.flatnonzero(self._logits == value)[place - count_above(self._order, float(value))]
        return int(index if self._ids is None else self._ids[index])

    def _settle(self) -> None:
        """Back to the order of ids, with -inf for the candidates that were sliced away."""
        if self._order is None or self._values is None:
            return
        stop = self._start + len(self._values)
        first, last = self._order[self._start], self._order[stop - 1]
        kept = (self._logits <= first) & (self._logits >= last)
        # Of equal logits the lower ids rank first: the slice may begin and end amid equals.
        above = self._start - count_above(self._order, float(first))
        kept[np.flatnonzero(self._logits == first)[:above]] = False
        below = stop - count_above(self._order, float(last))
        kept[np.flatnonzero(self._logits == last)[below:]] = False
        self._rule_out(kept)
        if self._temperature != 1.0:
            with np.errstate(over="ignore"):
                self._logits /= np.float32(self._temperature)
        self._order = self._values = self._weights = None
        self._start, self._temperature = 0, 1.0

    def _narrow(self, places: Ids) -> None:
        """Keeps these places of `_logits`, ascending."""
        self._logits = self._logits[places]
        self._ids = places if self._ids is None else self._ids[places]

    def _rule_out(self, kept: NDArray[np.bool_]) -> None:
        """-inf for the places where `kept` is false. By arithmetic: masked writes are five times as slow."""
        bounds = np.subtract(kept, np.float32(0.5), out=_WORKSPACE.floats("bounds", len(kept)), dtype=np.float32)
        bounds *= np.float32(np.inf)
        self._make_writable()
        np.minimum(self._logits, bounds, out=self._logits)

    def _make_writable(self) -> None:
        own = _WORKSPACE.floats("logits", len(self._logits))
        if self._logits.base is not own.base:
            np.copyto(own, self._logits)
            self._logits = own


class Mass:
    """Sums over the first weights of float32[n], for any count, without adding them up one by one.

    Relative errors stay near 1e-7: float32 within a block, float64 across.
    """

    BLOCK = 512

    def __init__(self, weights: Floats):
        self._weights = weights
        blocks = np.add.reduceat(weights, np.arange(0, len(weights), self.BLOCK))
        self._ends = np.cumsum(blocks, dtype=np.float64)
        self.total = float(self._ends[-1])

    def of_first(self, n: int) -> float:
        """Sum of the first `n` weights."""
        block = n // self.BLOCK
        rest = self._weights[block * self.BLOCK : n].sum(dtype=np.float64)
        return float(rest) + self._before(block)

    def count_reaching(self, target: float, *, beyond: bool = False) -> int:
        """How many weights it takes for their sum to be `target` or more (`beyond`: more); all, if it never is."""
        side: Literal["left", "right"] = "right" if beyond else "left"
        block = min(int(np.searchsorted(self._ends, target, side)), len(self._ends) - 1)
        begin = block * self.BLOCK
        sums = np.cumsum(self._weights[begin : begin + self.BLOCK], dtype=np.float64) + self._before(block)
        return min(begin + int(np.searchsorted(sums, target, side)) + 1, len(self._weights))

    def _before(self, block: int) -> float:
        return float(self._ends[block - 1]) if block else 0.0


def exponentials(logits: Floats, best: float) -> Floats:
    """exp(logits - best), float32[n] in the thread's workspace: good until the next call."""
    weights = np.subtract(logits, np.float32(best), out=_WORKSPACE.floats("weights", len(logits)))
    return np.exp(weights, out=weights)


def largest(logits: Floats, k: int) -> Ids:
    """Ids of the `k` largest logits, ascending; of equal ones the lower ids.

    The k-th largest of the maxima of groups is no larger than the k-th largest of all, so whatever lies below it
    is out: for small k that leaves some hundred logits of 256k.
    """
    n, n_groups = len(logits), len(logits) // GROUP
    if k >= n:
        return np.arange(n)
    if k == 1:
        return np.array([logits.argmax()])
    places: Ids | None = None
    near = logits
    if k <= n_groups:
        maxima = logits[: n_groups * GROUP].reshape(GROUP, n_groups).max(axis=0)
        places = np.flatnonzero(logits >= np.partition(maxima, n_groups - k)[n_groups - k])
        near = logits[places]
    least = np.partition(near, len(near) - k)[len(near) - k]
    above = np.flatnonzero(near > least)
    equal = np.flatnonzero(near == least)[: k - len(above)]
    kept = np.sort(np.concatenate((above, equal)))
    return kept if places is None else places[kept]


def count_above(descending: Floats, bound: float) -> int:
    """How many values are larger than `bound`."""
    return bisect_left(descending, -bound, key=lambda value: -float(value))


def count_at_least(descending: Floats, bound: float) -> int:
    """How many values are `bound` or larger."""
    return bisect_right(descending, -bound, key=lambda value: -float(value))
