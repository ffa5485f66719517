"""Penalties on tokens for having been said: repeat, presence, frequency, and DRY.

In: candidates and the tokens so far. Out: candidates with lowered logits. Formulas are llama.cpp's (release b11549).

A DRY breaker counts here wherever its bytes occur in the text, however they are cut into tokens; llama.cpp looks
for the one way its tokenizer would cut them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gemmafile.engine.candidates import Candidates, Doubles
from gemmafile.settings import SamplingSettings

Tokens = NDArray[np.int32]


def apply_penalties(candidates: Candidates, said: Tokens, repeat: float, frequency: float, presence: float) -> None:
    """Lowers the logits of the tokens in `said` int32[n].

    Divides a positive logit by `repeat` and multiplies a negative one, then subtracts `frequency` for every time
    a token was said and `presence` once.
    """
    if len(said) == 0 or (repeat == 1.0 and frequency == 0.0 and presence == 0.0):
        return
    token_ids, counts = np.unique(said, return_counts=True)

    def lower(logits: Doubles, present: NDArray[np.bool_]) -> Doubles:
        with np.errstate(over="ignore"):
            repeated: Doubles = np.where(logits <= 0.0, logits * repeat, logits / repeat)
            lowered: Doubles = repeated - (counts[present] * frequency + presence)
        return lowered

    candidates.edit(token_ids.astype(np.int64), lower)


class Dry:
    """Don't Repeat Yourself: a token that would continue a repetition is the less likely, the longer that is.

    If the last n tokens occurred before, and were followed by token t then, t loses
    multiplier * base ** (n - allowed_length), for the largest such n of at least allowed_length.
    A breaker (a line's end, say) ends what counts as a repetition.
    """

    FLOAT_MAX_LOG = 88.7228391

    def __init__(self, settings: SamplingSettings, token_bytes: Sequence[bytes] | None):
        self._multiplier, self._base = settings.dry_multiplier, settings.dry_base
        self._allowed = settings.dry_allowed_length
        texts = settings.dry_sequence_breakers
        self._breakers = [] if texts == ["none"] else [text.encode() for text in texts]
        self.is_on = self._multiplier > 0.0 and self._base >= 1.0 and settings.dry_penalty_last_n != 0
        if self.is_on and self._breakers and token_bytes is None:
            raise ValueError("DRY with sequence breakers needs token_bytes, to find the breakers in the text")
        self._token_bytes = token_bytes or []
        self._tail = b""
        self._since_breaker = 0

    def accept(self, token_id: int) -> None:
        """Notes how many tokens ago the last breaker ended."""
        if not self.is_on or not self._breakers:
            self._since_breaker += 1
            return
        piece = self._piece(token_id)
        text = self._tail + piece
        ends_here = any(breaker in text[-(len(piece) + len(breaker) - 1) :] for breaker in self._breakers)
        self._since_breaker = 0 if ends_here and piece else self._since_breaker + 1
        self._tail = text[-max(map(len, self._breakers)) :]

    def reset(self) -> None:
        self._tail, self._since_breaker = b"", 0

    def apply(self, candidates: Candidates, said: Tokens) -> None:
        """Lowers the logits of tokens that would continue a repetition within `said` int32[n]."""
        limit = min(self._since_breaker, len(said))
        if not self.is_on or len(said) <= self._allowed or limit < self._allowed:
            return
        lengths = self._repeat_lengths(said, limit)
        repeated = lengths >= self._allowed
        token_ids, group = np.unique(said[1:][repeated], return_inverse=True)
        longest = np.zeros(len(token_ids), np.int64)
        np.maximum.at(longest, group, lengths[repeated])
        free = [any(breaker in self._piece(token_id) for breaker in self._breakers) for token_id in token_ids.tolist()]
        chosen = ~np.array(free, np.bool_)
        with np.errstate(over="ignore"):
            penalties = self._multiplier * np.power(self._base, self._exponents(longest[chosen]))
        candidates.edit(token_ids[chosen].astype(np.int64), lambda logits, present: logits - penalties[present])

    def _repeat_lengths(self, said: Tokens, limit: int) -> NDArray[np.int64]:
        """int64[n-1]: how many tokens up to and with each but the last equal the last ones, at most `limit`.

        A length beyond the largest exponent changes nothing and is not counted on, which bounds the work.
        """
        n = len(said)
        lengths = np.zeros(n - 1, np.int64)
        ends = np.arange(n - 1)
        for length in range(1, min(limit, self._allowed + self._largest_exponent) + 1):
            ends = ends[ends >= length - 1]
            ends = ends[said[ends - (length - 1)] == said[n - length]]
            if len(ends) == 0:
                break
            lengths[ends] = length
        return lengths

    def _exponents(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.minimum(lengths - self._allowed, self._largest_exponent).astype(np.float64)

    @property
    def _largest_exponent(self) -> int:
        """Where base ** exponent still is a float32; without bound for a base of 1."""
        return int(self.FLOAT_MAX_LOG / math.log(self._base)) if self._base > 1.000001 else 1 << 31

    def _piece(self, token_id: int) -> bytes:
        return self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""
