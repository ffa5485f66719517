"""The samplers' formulas, restated in plain Python and float64, one candidate at a time: slow and obvious.

A distribution is a list of (token id, logit), the likeliest first, equal ones by lower id. Nothing here is shared
with the engine.
"""

from __future__ import annotations

import math
from collections import Counter

Ranked = list[tuple[int, float]]


def rank(logits) -> Ranked:
    """All tokens that can be chosen."""
    return resort([(i, float(x)) for i, x in enumerate(logits)])


def resort(ranked: Ranked) -> Ranked:
    return sorted(((i, x) for i, x in ranked if x > -math.inf), key=lambda pair: (-pair[1], pair[0]))


def probabilities(ranked: Ranked) -> list[float]:
    best = max(x for _, x in ranked)
    weights = [math.exp(x - best) for _, x in ranked]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def top_k(ranked: Ranked, k: int) -> Ranked:
    return ranked[:k] if k > 0 else ranked


def top_p(ranked: Ranked, p: float, min_keep: int = 0) -> Ranked:
    if p >= 1:
        return ranked
    total = 0.0
    for n, probability in enumerate(probabilities(ranked), 1):
        total += probability
        if total >= p and n >= min_keep:
            return ranked[:n]
    return ranked


def min_p(ranked: Ranked, p: float, min_keep: int = 0) -> Ranked:
    if p <= 0:
        return ranked
    chances = probabilities(ranked)
    return [
        pair
        for n, (pair, chance) in enumerate(zip(ranked, chances, strict=True))
        if n < min_keep or chance >= p * chances[0]
    ]


def typical(ranked: Ranked, p: float, min_keep: int = 0) -> Ranked:
    if p >= 1:
        return ranked
    chances = probabilities(ranked)
    entropy = -sum(chance * math.log(chance) for chance in chances if chance > 0)
    live = [n for n, chance in enumerate(chances) if chance > 0]
    order = sorted(live, key=lambda n: abs(-math.log(chances[n]) - entropy))
    kept, total = [], 0.0
    for n in order:
        kept.append(n)
        total += chances[n]
        if total > p and len(kept) >= min_keep:
            break
    return [ranked[n] for n in sorted(kept)]


def top_n_sigma(ranked: Ranked, n: float) -> Ranked:
    if n <= 0 or len(ranked) <= 1:
        return ranked
    mean = math.fsum(x for _, x in ranked) / len(ranked)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for _, x in ranked) / len(ranked))
    return [pair for pair in ranked if pair[1] >= ranked[0][1] - n * deviation]


def xtc(ranked: Ranked, threshold: float, min_keep: int = 0) -> Ranked:
    if threshold > 0.5 or len(ranked) < 2:
        return ranked
    n_likely = sum(chance >= threshold for chance in probabilities(ranked))
    removed = n_likely - 1
    return ranked[removed:] if removed > 0 and len(ranked) - removed >= min_keep else ranked


def temperature(ranked: Ranked, value: float, spread: float = 0.0, exponent: float = 1.0) -> Ranked:
    if spread > 0:
        if len(ranked) <= 1:
            return ranked
        entropy = -sum(chance * math.log(chance) for chance in probabilities(ranked) if chance > 0)
        low, high = max(0.0, value - spread), value + spread
        value = low + (high - low) * (entropy / math.log(len(ranked))) ** exponent
    return [(i, x / value) for i, x in ranked] if value > 0 else ranked[:1]


def penalties(ranked: Ranked, said: list[int], repeat: float, frequency: float, presence: float) -> Ranked:
    counts = Counter(said)

    def lowered(token_id: int, x: float) -> float:
        if not counts[token_id]:
            return x
        return (x * repeat if x <= 0 else x / repeat) - counts[token_id] * frequency - presence

    return resort([(i, lowered(i, x)) for i, x in ranked])


def dry(
    ranked: Ranked,
    said: list[int],
    pieces: list[bytes],
    breakers: list[bytes],
    multiplier: float,
    base: float,
    allowed: int,
) -> Ranked:
    """`said`  the tokens within reach"""

    def limit() -> int:
        """Tokens after the one in which the last breaker ends."""
        for n in range(len(said)):
            head, tail = b"".join(pieces[t] for t in said[: len(said) - n - 1]), pieces[said[len(said) - n - 1]]
            for breaker in breakers:
                if tail and breaker in (head + tail)[-(len(tail) + len(breaker) - 1) :]:
                    return n
        return len(said)

    longest: dict[int, int] = {}
    if len(said) > allowed and limit() >= allowed:
        for i in range(len(said) - 1):
            length = 0
            while length <= i and length < limit() and said[i - length] == said[-1 - length]:
                length += 1
            if length >= allowed:
                longest[said[i + 1]] = max(longest.get(said[i + 1], 0), length)

    def lowered(token_id: int, x: float) -> float:
        if token_id not in longest or any(breaker in pieces[token_id] for breaker in breakers):
            return x
        return x - multiplier * base ** (longest[token_id] - allowed)

    return resort([(i, lowered(i, x)) for i, x in ranked])


def mirostat_1(ranked: Ranked, surprise: float, n_vocab: int) -> Ranked:
    chances = [chance for chance in probabilities(ranked)[:100] if chance > 0]
    if len(chances) < 2:
        return ranked[:1]
    steps = [math.log((i + 2) / (i + 1)) for i in range(len(chances) - 1)]
    falls = [math.log(chances[i] / chances[i + 1]) for i in range(len(chances) - 1)]
    slope = sum(t * b for t, b in zip(steps, falls, strict=True)) / sum(t * t for t in steps)
    excess = slope - 1
    k = ((excess * 2**surprise) / (1 - n_vocab**-excess)) ** (1 / slope)
    return ranked[: max(int(k), 1)]


def mirostat_2(ranked: Ranked, surprise: float) -> Ranked:
    kept = [
        pair
        for pair, chance in zip(ranked, probabilities(ranked), strict=True)
        if chance > 0 and -math.log2(chance) <= surprise
    ]
    return kept or ranked[:1]
