"""The samplers that narrow the candidates or change their temperature. Each does one thing in place.

Formulas, comparisons and what `min_keep` means are llama.cpp's (release b11549, src/llama-sampler.cpp), with two
differences. A candidate that cannot be chosen any more is removed, where llama.cpp may keep it with a logit of
-inf; one can tell only by the dynamic temperature, which counts candidates. And where its arithmetic leaves the
numbers (typical sampling over a probability of 0, mirostat's count beyond 2**31), the formula's limit is taken.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

import numpy as np

from gemmafile.engine.candidates import Candidates, Mass, count_above, count_at_least
from gemmafile.engine.sampling_options import LEAST_TEMPERATURE


def keep_top_k(candidates: Candidates, k: int) -> None:
    """The `k` likeliest; k <= 0: all."""
    if k > 0:
        candidates.keep_largest(k)


def keep_top_p(candidates: Candidates, p: float, min_keep: int = 0) -> None:
    """The fewest likeliest candidates whose probabilities sum to `p` or more."""
    if p >= 1.0:
        return
    mass = Mass(candidates.weights())
    candidates.keep(max(mass.count_reaching(p * mass.total), min_keep))


def keep_min_p(candidates: Candidates, p: float, min_keep: int = 0) -> None:
    """The candidates at least `p` times as likely as the likeliest."""
    if p <= 0.0:
        return
    bound = float(candidates.values[0]) + math.log(p)
    candidates.keep(max(count_at_least(candidates.values, bound), min_keep, 1))


def keep_typical(candidates: Candidates, p: float, min_keep: int = 0) -> None:
    """The fewest candidates of most typical surprise whose probabilities sum to more than `p`.

    How typical: the distance of -log(probability) from its mean, the entropy. The logarithm of the sum cancels,
    so that is the distance of a logit from the mean logit, and the kept ones are neighbours in order of logit.
    """
    if p >= 1.0:
        return
    weights = candidates.weights()
    candidates.keep(count_above(weights, 0.0))  # a probability of 0 has no logarithm
    values, mass = candidates.values, Mass(weights[: len(candidates)])
    mean = float(values[0]) + _mean_shift(candidates, weights[: len(candidates)], mass.total)
    turn = count_above(values, mean)
    likelier, rarer = values[:turn][::-1] - np.float32(mean), np.float32(mean) - values[turn:]  # nearest first

    def n_likelier(n: int) -> int:
        """How many of the `n` most typical are likelier than the mean; at equal distance these come first."""
        least = max(0, n - len(rarer))
        return least + bisect_left(range(least, min(n, turn)), True, key=lambda i: bool(rarer[n - 1 - i] < likelier[i]))

    def mass_of(n: int) -> float:
        i = n_likelier(n)
        return mass.of_first(turn + n - i) - mass.of_first(turn - i)

    n = 1 + bisect_right(range(1, len(values) + 1), p * mass.total, key=mass_of)
    n = min(max(n, min_keep), len(values))
    i = n_likelier(n)
    candidates.keep(turn + n - i, start=turn - i)


def keep_top_n_sigma(candidates: Candidates, n: float) -> None:
    """The candidates whose logit lies within `n` standard deviations of the largest; n <= 0: all."""
    if n <= 0.0 or len(candidates) <= 1:
        return
    values = candidates.values
    candidates.keep(count_at_least(values, float(values[0]) - n * float(values.std())))


def exclude_top_choices(candidates: Candidates, threshold: float, min_keep: int = 0) -> None:
    """XTC: of the candidates with a probability of `threshold` or more, all but the least likely go."""
    if threshold > 0.5 or len(candidates) < 2:
        return
    weights = candidates.weights()
    n_excluded = count_at_least(weights, threshold * Mass(weights).total) - 1
    if n_excluded > 0 and len(candidates) - n_excluded >= min_keep:
        candidates.keep(len(candidates), start=n_excluded)


def apply_temperature(candidates: Candidates, temperature: float, spread: float = 0.0, exponent: float = 1.0) -> None:
    """Divides the logits; a temperature of 0 or less, or next to 0, keeps the likeliest token alone.

    `spread` > 0 makes it dynamic: between temperature - spread and temperature + spread, the higher the more
    evenly the probabilities lie (their entropy over the largest possible, to the power of `exponent`).
    """
    if spread > 0.0:
        if len(candidates) <= 1:
            return
        weights = candidates.weights()
        others = Mass(weights[1:]).total  # without the likeliest's 1, in which very small ones would drown
        entropy = math.log1p(others) - _mean_shift(candidates, weights, 1.0 + others)
        evenness = entropy / math.log(len(candidates))
        low, high = max(0.0, temperature - spread), temperature + spread
        temperature = low + (high - low) * evenness**exponent
    if temperature <= LEAST_TEMPERATURE:
        candidates.keep_largest(1)
    elif temperature != 1.0:
        candidates.divide(temperature)


def keep_mirostat_1(candidates: Candidates, surprise: float, n_vocab: int) -> None:
    """As many of the likeliest as give the wished `surprise` (bits), by Zipf's law fitted to the first hundred.

    Source: Basu et al. 2020, "Mirostat", algorithm 1.
    """
    values = candidates.values[:100].astype(np.float64)
    ranks = np.arange(1, len(values))
    steps = np.log((ranks + 1) / ranks)
    with np.errstate(all="ignore"):
        slope = np.dot(steps, values[:-1] - values[1:]) / np.dot(steps, steps)
        excess = slope - 1
        k = (excess * np.exp2(surprise) / (1 - np.float64(n_vocab) ** -excess)) ** (1 / slope)
    candidates.keep(1 if np.isnan(k) else int(np.clip(k, 1, len(candidates))))


def keep_mirostat_2(candidates: Candidates, surprise: float) -> None:
    """The candidates whose surprise, -log2(probability), is at most `surprise`; at least one."""
    total = Mass(candidates.weights()).total
    bound = float(candidates.values[0]) + math.log(total) - surprise * math.log(2)
    candidates.keep(max(count_at_least(candidates.values, bound), 1))


def _mean_shift(candidates: Candidates, weights: np.ndarray, total: float) -> float:
    """Mean of logit minus largest logit, by probability: 0 or less."""
    values = candidates.values
    return Mass(weights * (values - values[0])).total / total
