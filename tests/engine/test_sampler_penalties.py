"""Repeat, presence, frequency penalties and DRY, against their restatement in naive_sampler."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from gemmafile.engine.candidates import Candidates
from gemmafile.engine.penalties import Dry, apply_penalties
from gemmafile.settings import SamplingSettings
from tests.engine import naive_sampler as naive
from tests.engine.test_sampler_truncation import check, distributions


@pytest.mark.parametrize(
    "values", [(1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (0.5, 0.2, 0.0), (1.1, 0.3, 0.7), (1.0, -0.5, -1.0)]
)
def test_penalties(values: tuple[float, float, float]) -> None:
    said = np.random.default_rng(2).integers(0, 40, 64).astype(np.int32)
    for kind, logits in distributions(40).items():
        for tokens in (said, said[:0], said[:1]):
            candidates = Candidates(logits)
            apply_penalties(candidates, tokens, *values)
            check(candidates, naive.penalties(naive.rank(logits), tokens.tolist(), *values), kind)


def test_penalties_after_a_truncation_meet_what_is_left() -> None:
    said = [0, 0, 3, 5, 38, 39]
    for kind, logits in distributions(40).items():
        candidates = Candidates(logits)
        candidates.keep(9)
        apply_penalties(candidates, np.array(said, np.int32), 1.5, 0.1, 0.2)
        check(candidates, naive.penalties(naive.rank(logits)[:9], said, 1.5, 0.1, 0.2), kind)


def test_a_penalty_beyond_float32_rules_a_token_out() -> None:
    candidates = Candidates(np.array([-3e38, 1, 2], np.float32))
    apply_penalties(candidates, np.array([0, 2], np.int32), 1.0, 3e38, 3e38)
    assert [candidates.token(rank) for rank in range(len(candidates))] == [1]


PIECES = [b"a", b"b", b"c", b"\n", b"d\ne", b"<s", b"top>", b"", b"x", b"\xe3\x81\x82"]


def dry_settings(**changes: object) -> SamplingSettings:
    return SamplingSettings(**{"dry_multiplier": 0.8, "dry_sequence_breakers": ["\n", "<stop>", "あ"]} | changes)  # type: ignore[arg-type]


def penalised(settings: SamplingSettings, said: list[int], logits: np.ndarray, last_n: int = 1 << 30) -> Candidates:
    dry = Dry(settings, PIECES)
    for token_id in said:
        dry.accept(token_id)
    candidates = Candidates(logits)
    dry.apply(candidates, np.array(said[-last_n:], np.int32))
    return candidates


@pytest.mark.parametrize("allowed", [0, 1, 2, 4])
@pytest.mark.parametrize("base", [1.0, 1.75])
def test_dry(allowed: int, base: float) -> None:
    choose = random.Random(allowed)
    logits = np.random.default_rng(1).standard_normal(len(PIECES)).astype(np.float32)
    settings = dry_settings(dry_allowed_length=allowed, dry_base=base)
    for trial in range(80):
        said = choose.choices(range(len(PIECES)), [9, 9, 9, 1, 1, 3, 3, 1, 3, trial % 2], k=choose.randrange(1, 40))
        said += choose.choice([[], said, said[-6:], [0, 1] * 5])
        expected = naive.dry(
            naive.rank(logits), said, PIECES, [b"\n", b"<stop>", "あ".encode()], 0.8, base, allowed
        )  # fmt: skip
        check(penalised(settings, said, logits), expected, str(said))


def test_dry_example() -> None:
    """After a b c c b c x a b c: c would make a b c c of a b c (3 long), b continues c, x continues b c."""
    a, b, c, x = 0, 1, 2, 8
    said = [a, b, c, c, b, c, x, a, b, c]
    candidates = penalised(dry_settings(dry_allowed_length=1, dry_base=2.0), said, np.zeros(len(PIECES), np.float32))
    order = [candidates.token(rank) for rank in range(len(candidates))]
    assert dict(zip(order, candidates.values.tolist(), strict=True)) == pytest.approx(
        {c: -0.8 * 4, x: -0.8 * 2, b: -0.8, **dict.fromkeys((0, 3, 4, 5, 6, 7, 9), 0.0)}
    )


@pytest.mark.parametrize("breaker", [[3], [4], [5, 6], [9]])
def test_a_breaker_ends_a_repetition_however_it_is_cut_into_tokens(breaker: list[int]) -> None:
    zeros = np.zeros(len(PIECES), np.float32)
    whole = penalised(dry_settings(), [0, 1, 2, 8, 0, 1, 2], zeros)
    broken = penalised(dry_settings(), [0, 1, *breaker, 2, 8, 0, 1, *breaker, 2], zeros)
    assert whole.values.min() < 0
    assert broken.values.min() == 0


def test_a_token_without_text_breaks_nothing() -> None:
    zeros = np.zeros(len(PIECES), np.float32)
    assert penalised(dry_settings(), [0, 7, 1, 8, 3, 0, 7, 1], zeros).values.min() < 0


def test_dry_none_means_no_breakers() -> None:
    settings = dry_settings(dry_sequence_breakers=["none"])
    zeros = np.zeros(len(PIECES), np.float32)
    assert penalised(settings, [0, 1, 3, 2, 8, 0, 1, 3, 2], zeros).values.min() < 0
    assert Dry(settings, None).is_on


@pytest.mark.parametrize("off", [{"dry_multiplier": 0.0}, {"dry_base": 0.5}, {"dry_penalty_last_n": 0}])
def test_dry_is_off(off: dict[str, float]) -> None:
    said = [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert (penalised(dry_settings(**off), said, np.zeros(len(PIECES), np.float32)).values == 0).all()


def test_dry_sees_only_as_far_back_as_asked() -> None:
    said = [0, 1, 2, 8] + [5] * 10 + [0, 1, 2]
    zeros = np.zeros(len(PIECES), np.float32)
    assert penalised(dry_settings(), said, zeros).values.min() < 0
    assert penalised(dry_settings(), said, zeros, last_n=13).values.min() == 0


def test_dry_stays_quick_in_a_long_repetition() -> None:
    said = list(range(3)) * 3000
    dry = Dry(dry_settings(dry_sequence_breakers=["none"]), None)
    for token_id in said:
        dry.accept(token_id)
    history, start = np.array(said, np.int32), time.thread_time()
    dry.apply(Candidates(np.zeros(10, np.float32)), history)
    assert time.thread_time() - start < 0.25  # some ms; a square of the length would be seconds
