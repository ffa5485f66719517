"""Choosing among a few: what most chains come to, since they begin with a top-k or are greedy.

In: the likeliest tokens with their logits. Out: one of them. A few dozen numbers are quicker in plain Python than in
NumPy; a choice from 256k logits takes some 60 µs. What the steps mean is in truncation.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemmafile.engine.candidates import Floats, largest
from gemmafile.engine.sampling_options import LEAST_TEMPERATURE
from gemmafile.kernels.backend import PEAK_GROUP

if TYPE_CHECKING:
    from gemmafile.engine.grammar import Grammar

Pair = tuple[float, int]
"""A logit and its token."""

FIRST_ASKED = 16
"""A grammar that allows less than a quarter of so many likeliest tokens allows few of all."""

MOST_EQUAL = 512
"""More logits than these not below the k-th peak: very many are equal, and other ways are quicker."""


def likeliest_pairs(logits: Floats, n: int, peaks: Floats | None) -> list[Pair] | None:
    """The n likeliest tokens, likeliest first, equal ones by lower id. None where logits are not all finite.

    peaks  float32[V / PEAK_GROUP], the largest of each group of neighbours. The n-th largest peak is no larger than
           the n-th largest logit: groups whose peak is below it are not looked at.
    """
    if peaks is None or n >= len(peaks):
        if not math.isfinite(float(logits.max())):
            return None
        ids = largest(logits, n)
        values = logits[ids]
    elif n == 1:
        group = int(peaks.argmax())
        if not math.isfinite(peaks[group]):
            return None
        first = group * PEAK_GROUP
        best = first + int(logits[first : first + PEAK_GROUP].argmax())
        return [(float(logits[best]), best)]
    else:
        bound = np.partition(peaks, len(peaks) - n)[len(peaks) - n]
        if not math.isfinite(float(peaks.max())):
            return None
        groups = np.flatnonzero(peaks >= bound)
        near = logits.reshape(-1, PEAK_GROUP)[groups].reshape(-1)
        places = np.flatnonzero(near >= bound)
        if len(places) > MOST_EQUAL:
            return likeliest_pairs(logits, n, None)
        values = near[places]
        ids = groups[places // PEAK_GROUP] * PEAK_GROUP + places % PEAK_GROUP
    return _sorted(values, ids)[:n]


def ask_grammar(grammar: Grammar, pairs: list[Pair], n: int) -> list[Pair] | None:
    """The first n of these tokens that a grammar allows, asked one by one: 2 µs each. None: there are too few, or it
    looks so, and asking for all of the allowed ones, at 0.1 ms where they are few and some ms where they are many, is
    quicker."""
    allowed: list[Pair] = []
    for i, pair in enumerate(pairs):
        if i == FIRST_ASKED and len(allowed) < FIRST_ASKED // 4:
            return None
        if grammar.allows(pair[1]):
            allowed.append(pair)
            if len(allowed) == n:
                return allowed
    return None


def pairs_of(ids: NDArray[np.int64], logits: Floats, n: int) -> list[Pair]:
    """The n likeliest of these tokens, likeliest first."""
    ids = ids[: np.searchsorted(ids, len(logits))]
    values = logits[ids]
    if len(ids) > n:
        kept = largest(values, n)
        ids, values = ids[kept], values[kept]
    return _sorted(values, ids)


def _sorted(values: Floats, ids: NDArray[np.int64]) -> list[Pair]:
    pairs = list(zip((-values).tolist(), ids.tolist(), strict=True))
    pairs.sort()
    return [(-value, token_id) for value, token_id in pairs]


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Steps of a chain that looks at the `n_wanted` likeliest tokens only."""

    n_wanted: int
    steps: tuple[str, ...]
    top_p: float
    min_p: float
    min_keep: int
    temperature: float

    def choose(self, pairs: list[Pair], uniform: float) -> int:
        """A token, by its probability after all steps. `pairs` likeliest first, finite · `uniform` from 0 to 1"""
        values = [value for value, _ in pairs]
        for step in self.steps:
            if len(values) == 1:
                break
            if step == "top_p":
                values = values[: max(self._n_top_p(values), self.min_keep)]
            elif step == "min_p":
                bound = values[0] + math.log(self.min_p)
                n = sum(value >= bound for value in values)
                values = values[: max(n, self.min_keep, 1)]
            elif step == "temperature":
                if self.temperature <= LEAST_TEMPERATURE:
                    return pairs[0][1]
                values = [value / self.temperature for value in values]
        return pairs[_draw(values, uniform)][1]

    def _n_top_p(self, values: list[float]) -> int:
        weights = _weights(values)
        target, reached = self.top_p * sum(weights), 0.0
        for n, weight in enumerate(weights, 1):
            reached += weight
            if reached >= target:
                return n
        return len(weights)


def _weights(values: list[float]) -> list[float]:
    best = values[0]
    return [math.exp(value - best) for value in values]


def _draw(values: list[float], uniform: float) -> int:
    """The rank on which a number from 0 to 1 falls."""
    weights = _weights(values)
    target, reached = uniform * sum(weights), 0.0
    for rank, weight in enumerate(weights):
        reached += weight
        if reached > target:
            return rank
    return max(rank for rank, weight in enumerate(weights) if weight > 0.0)
