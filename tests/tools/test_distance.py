"""Distances between answers, on cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tools.distance import logit_distance, negative_log_likelihood, same_choice, tensor_distance

LOGITS = np.random.default_rng(3).normal(size=(40, 50)).astype(np.float32)


def test_a_thing_is_not_far_from_itself() -> None:
    distance = logit_distance(LOGITS, LOGITS)
    assert (distance.max_abs, distance.kl, distance.top1, distance.top10) == (0, 0, 1, 1)
    assert tensor_distance(LOGITS, LOGITS).max_abs == 0
    assert tensor_distance(LOGITS, LOGITS).cosine == pytest.approx(1)


def test_kl_by_hand() -> None:
    ours, judge = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert logit_distance(ours, judge).kl == pytest.approx(expected)
    assert logit_distance(ours + 7, judge).kl == pytest.approx(expected), "a constant does not matter"


def test_perplexity_of_a_coin() -> None:
    nll = negative_log_likelihood(np.zeros((9, 2)), np.array([0, 1, 1, 0, 1, 0, 0, 0, 1]))
    assert nll.shape == (8,)
    assert math.exp(nll.mean()) == pytest.approx(2)


def test_each_position_is_judged_by_the_token_after_it() -> None:
    logits = np.full((3, 3), -100.0)
    logits[0, 2] = logits[1, 1] = 0
    np.testing.assert_allclose(negative_log_likelihood(logits, np.array([0, 2, 1])), 0, atol=1e-9)


def test_a_near_tie_is_the_same_choice_and_a_far_one_is_not() -> None:
    judge = np.array([[1.0, 1.001, 0.0], [1.0, 1.5, 0.0]])
    ours = np.array([[1.002, 1.0, 0.0], [1.002, 1.0, 0.0]])
    assert same_choice(ours, judge, 0.01).tolist() == [True, False]


def test_nan_is_within_no_tolerance() -> None:
    broken = LOGITS.copy()
    broken[3, 4] = np.nan
    assert not tensor_distance(broken, LOGITS).max_abs <= 1e9
    assert not logit_distance(broken, LOGITS).max_abs <= 1e9
