"""Every sampler keeps the candidates its formula says, with the probabilities it says, as restated in naive_sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import pytest

from gemmafile.engine import truncation
from gemmafile.engine.candidates import GROUP, Candidates, Mass, count_above, count_at_least, largest
from gemmafile.errors import GemmafileError
from tests.engine import naive_sampler as naive

SIZES = (1, 2, 3, 40, 513, 1500)


def distributions(n: int) -> dict[str, np.ndarray]:
    """float32[n] of every kind that a chain meets."""
    rng = np.random.default_rng(n)
    noise = rng.standard_normal(n).astype(np.float32)
    peaked = noise * np.float32(2)
    peaked[n // 2] = 30
    holes = noise * np.float32(3)
    holes[rng.random(n) < 0.5] = -np.inf
    holes[n - 1] = 1
    return {
        "likely": noise * np.float32(3),
        "peaked": peaked,
        "flat": noise * np.float32(0.01),
        "all equal": np.zeros(n, np.float32),
        "some equal": np.round(noise * 2).astype(np.float32),
        "holes": holes,
        "one left": np.where(np.arange(n) == n - 1, np.float32(-5), np.float32(-np.inf)).astype(np.float32),
    }


def compare(
    act: Callable[[Candidates], None],
    restated: Callable[[naive.Ranked], naive.Ranked],
    kinds: Collection[str] = tuple(distributions(1)),
) -> None:
    """For every kind of distribution and size, `act` leaves what `restated` says."""
    for n in SIZES:
        for kind in kinds:
            logits = distributions(n)[kind]
            candidates = Candidates(logits)
            act(candidates)
            check(candidates, restated(naive.rank(logits)), f"{n} tokens, {kind}")


def check(candidates: Candidates, expected: naive.Ranked, where: str) -> None:
    """Same ids in the same order, same probabilities; an edge may fall a hair's breadth away."""
    kept = [candidates.token(rank) for rank in range(len(candidates))]
    wanted = [token_id for token_id, _ in expected]
    weights = candidates.weights().astype(np.float64)
    chances = dict(zip(kept, weights / weights.sum(), strict=True))
    wanted_chances = dict(zip(wanted, naive.probabilities(expected), strict=True))
    for token_id in chances.keys() | wanted_chances.keys():
        close = pytest.approx(wanted_chances.get(token_id, 0.0), abs=2e-6)
        assert chances.get(token_id, 0.0) == close, f"{where}: token {token_id}"
    assert (np.diff(candidates.values) <= 0).all(), where
    shared = [token_id for token_id in wanted if token_id in chances and wanted_chances[token_id] > 1e-5]
    assert [token_id for token_id in kept if token_id in set(shared)] == shared, where


@pytest.mark.parametrize("k", [-1, 0, 1, 2, 11, 200, 10_000])
def test_top_k(k: int) -> None:
    compare(lambda candidates: truncation.keep_top_k(candidates, k), lambda ranked: naive.top_k(ranked, k))


@pytest.mark.parametrize("n", [GROUP * 5, GROUP * 5 + 17])
def test_the_largest_are_found_without_sorting(n: int) -> None:
    for logits in distributions(n).values():
        for k in (1, 2, 5):
            order = sorted(range(n), key=lambda i: (-logits[i], i))
            assert largest(logits, k).tolist() == sorted(order[:k])


@pytest.mark.parametrize("p", [(0.0,), (0.001,), (0.618,), (0.953,), (0.999,), (1.0,), (0.01, 5)])
def test_top_p(p: tuple[float, int]) -> None:
    compare(lambda candidates: truncation.keep_top_p(candidates, *p), lambda ranked: naive.top_p(ranked, *p))


@pytest.mark.parametrize("p", [(0.0,), (0.051,), (0.5,), (1.0,), (0.9, 7), (1e-9,)])
def test_min_p(p: tuple[float, int]) -> None:
    compare(lambda candidates: truncation.keep_min_p(candidates, *p), lambda ranked: naive.min_p(ranked, *p))


@pytest.mark.parametrize("p", [(0.0,), (0.2,), (0.618,), (0.953,), (0.99999,), (1.0,), (0.01, 6)])
def test_typical(p: tuple[float, int]) -> None:
    unequal = [kind for kind in distributions(1) if "equal" not in kind]  # of equals the formula names none
    compare(
        lambda candidates: truncation.keep_typical(candidates, *p), lambda ranked: naive.typical(ranked, *p), unequal
    )


def test_typical_keeps_the_nearest_to_the_mean_and_of_equals_the_lower_ids() -> None:
    unequal = Candidates(np.log(np.array([4, 2, 1]) / 7).astype(np.float32))  # distances 0.397, 0.296, 0.990
    truncation.keep_typical(unequal, 0.28)
    assert [unequal.token(rank) for rank in range(len(unequal))] == [1]
    equal = Candidates(np.zeros(10, np.float32))
    truncation.keep_typical(equal, 0.35)
    assert [equal.token(rank) for rank in range(len(equal))] == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_top_n_sigma(n: float) -> None:
    compare(lambda candidates: truncation.keep_top_n_sigma(candidates, n), lambda ranked: naive.top_n_sigma(ranked, n))


@pytest.mark.parametrize("threshold", [(0.0,), (0.0007,), (0.1,), (0.5,), (0.51,), (0.01, 38)])
def test_xtc_removes_the_top_choices_but_one(threshold: tuple[float, int]) -> None:
    compare(
        lambda candidates: truncation.exclude_top_choices(candidates, *threshold),
        lambda ranked: naive.xtc(ranked, *threshold),
    )


@pytest.mark.parametrize(
    "value", [(-1.0,), (0.0,), (0.37,), (1.0,), (2.5,), (0.8, 0.5), (0.8, 2.0, 3.0), (0.0, 1.0, 0.5)]
)
def test_temperature(value: tuple[float, float, float]) -> None:
    compare(
        lambda candidates: truncation.apply_temperature(candidates, *value),
        lambda ranked: naive.temperature(ranked, *value),
    )


@pytest.mark.parametrize("surprise", [0.5, 4.9, 10.0])
def test_mirostat(surprise: float) -> None:
    unequal = ("likely", "peaked", "some equal", "holes")
    compare(
        lambda candidates: truncation.keep_mirostat_1(candidates, surprise, 1000),
        lambda ranked: naive.mirostat_1(ranked, surprise, 1000),
        unequal,
    )
    compare(
        lambda candidates: truncation.keep_mirostat_2(candidates, surprise),
        lambda ranked: naive.mirostat_2(ranked, surprise),
        unequal,
    )


def test_mirostat_1_keeps_a_count_even_where_its_formula_gives_none() -> None:
    for logits in (np.zeros(1, np.float32), np.zeros(300, np.float32), np.float32([0, -200, -400])):
        for surprise in (-50.0, 0.0, 10.0, 2000.0):
            candidates = Candidates(logits)
            truncation.keep_mirostat_1(candidates, surprise, 256_000)
            assert 1 <= len(candidates) <= len(logits)


def test_a_chain_of_all() -> None:
    def act(candidates: Candidates) -> None:
        truncation.keep_top_n_sigma(candidates, 3.0)
        truncation.keep_top_p(candidates, 0.987)
        truncation.apply_temperature(candidates, 0.7)
        truncation.exclude_top_choices(candidates, 0.09)
        truncation.keep_min_p(candidates, 0.033)
        truncation.apply_temperature(candidates, 1.3, 0.4, 2.0)
        truncation.keep_top_k(candidates, 30)

    def restated(ranked: naive.Ranked) -> naive.Ranked:
        ranked = naive.top_p(naive.top_n_sigma(ranked, 3.0), 0.987)
        ranked = naive.min_p(naive.xtc(naive.temperature(ranked, 0.7), 0.09), 0.033)
        return naive.top_k(naive.temperature(ranked, 1.3, 0.4, 2.0), 30)

    compare(act, restated)


@pytest.mark.parametrize("kind", list(distributions(1)))
@pytest.mark.parametrize("start", [0, 3])
def test_edits_meet_the_candidates_that_are_left(kind: str, start: int) -> None:
    """Also where a truncation ended, or began, amid equal logits, and after a temperature."""
    logits = distributions(40)[kind]
    edited = np.arange(0, 40, 2)
    for first_k in (None, 20):
        candidates, expected = Candidates(logits), naive.rank(logits)
        if first_k:
            candidates.keep_largest(first_k)
            expected = expected[:first_k]
        stop = min(11, len(candidates))
        begin = min(start, stop - 1)
        candidates.keep(stop, start=begin)
        candidates.divide(2.0)
        candidates.edit(edited, lambda old, present: old - edited[present])
        expected = [(i, x / 2 - (i if i % 2 == 0 else 0)) for i, x in expected[begin:stop]]
        check(candidates, naive.resort(expected), kind)


def test_logits_are_never_written() -> None:
    logits = distributions(1500)["likely"]
    before = logits.copy()
    logits.flags.writeable = False
    candidates = Candidates(logits)
    candidates.edit(np.array([3, 5]), lambda old, present: old - 1)
    candidates.keep(700)
    candidates.edit(np.array([3, 5]), lambda old, present: old - 1)
    candidates.keep_allowed(np.arange(1500) % 2 == 1)
    assert np.array_equal(logits, before)


def test_only_allowed_candidates_stay() -> None:
    for kind, logits in distributions(513).items():
        allowed = np.random.default_rng(5).random(513) < 0.3
        candidates = Candidates(logits)
        candidates.keep(400)
        candidates.keep_allowed(allowed)
        expected = [(i, x) for i, x in naive.rank(logits)[:400] if allowed[i]]
        if expected:
            check(candidates, expected, kind)
        else:
            with pytest.raises(GemmafileError, match="no token can be chosen"):
                candidates.weights()


def test_sums_of_first_weights_equal_sums() -> None:
    weights = np.sort(np.random.default_rng(3).random(2000).astype(np.float32))[::-1].copy()
    mass, sums = Mass(weights), np.cumsum(weights.astype(np.float64))
    assert mass.total == pytest.approx(sums[-1], rel=1e-6)
    for n in (0, 1, 511, 512, 513, 1024, 1999, 2000):
        assert mass.of_first(n) == pytest.approx(sums[n - 1] if n else 0.0, rel=1e-6)
    for target in (0.0, 1e-9, 0.3, 200.0, 511.7, float(sums[-1]) * 0.999):
        expected = next(n for n, total in enumerate(sums, 1) if total >= target)
        assert abs(mass.count_reaching(target) - expected) <= (abs(sums[expected - 1] - target) < 1e-3)
    assert mass.count_reaching(math.inf) == 2000


def test_reaching_and_going_beyond_differ_at_equality() -> None:
    mass = Mass(np.ones(1300, np.float32))
    assert (mass.count_reaching(512.0), mass.count_reaching(512.0, beyond=True)) == (512, 513)
    assert (mass.count_reaching(0.0), mass.count_reaching(0.0, beyond=True)) == (1, 1)


def test_counting_above_a_bound() -> None:
    values = np.array([3, 2, 2, 1, -np.inf], np.float32)
    assert [count_above(values, bound) for bound in (4, 3, 2, 0, -math.inf)] == [0, 0, 1, 4, 4]
    assert [count_at_least(values, bound) for bound in (4, 3, 2, 0, -math.inf)] == [0, 1, 3, 4, 5]


def test_flat_distribution_over_a_whole_vocabulary(full: bool) -> None:
    """top-p and typical keep p of the mass and not one token more, over 256k nearly equal tokens."""
    logits = np.random.default_rng(9).standard_normal(256_000).astype(np.float32) * np.float32(0.05)
    weights = np.exp(logits.astype(np.float64))
    for p in (0.31, 0.95) if full else (0.95,):
        nucleus = Candidates(logits)
        truncation.keep_top_p(nucleus, p)
        kept = np.sort(weights)[::-1][: len(nucleus)].sum() / weights.sum()
        assert p - 1e-6 <= kept <= p + 1e-5
        typical = Candidates(logits)
        truncation.keep_typical(typical, p)
        surprise = -np.log(weights / weights.sum())
        distance = np.sort(np.abs(surprise - (weights * surprise).sum() / weights.sum()))
        least, most = typical.values[-1], typical.values[0]
        inside = (logits >= least) & (logits <= most)
        assert weights[inside].sum() / weights.sum() == pytest.approx(p, abs=1e-5)
        assert distance[len(typical) - 1] == pytest.approx(distance[inside.sum() - 1], abs=1e-6)
