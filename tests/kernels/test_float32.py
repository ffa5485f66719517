"""fma, tree, exp and tanh as docs/numerics.md states them."""

from __future__ import annotations

import numpy as np
import pytest

from gemmafile.kernels.float32 import exp, fma, tanh, tree
from tests.kernels.exact_floats import exact_fma, exact_tree

F = np.float32


def hard_sums(n: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(a, b, c) where rounding twice goes wrong: products near half a unit of c, subnormals, cancellation."""
    rng = np.random.default_rng(7)
    normal = [rng.standard_normal(n).astype(F) for _ in range(3)]
    units = rng.integers(1 << 23, 1 << 24, n).astype(F)
    near_half = F(0.5) * (1 + rng.integers(-2, 3, n).astype(F) * F(2**-23))
    near_one = (1 - rng.integers(0, 3, n) * 2.0**-24).astype(F)
    tiny = [F(2.0**-70) * x for x in normal]
    step = rng.integers(1, 9, n).astype(F) * F(2.0**-22)
    return [
        (normal[0], normal[1], normal[2]),
        (normal[0], normal[1], -(normal[0] * normal[1])),
        (near_half.astype(F), near_one, units),
        (near_half.astype(F), -near_one, units),
        (tiny[0], tiny[1], F(2.0**-140) * normal[2]),
        (F(2.0**-75) * (1 + step), F(2.0**-75) * (1 - step), (units * F(2.0**-76)) * F(2.0**-74)),
    ]


@pytest.mark.parametrize("case", range(6))
def test_fma_is_rounded_once(case: int, full: bool) -> None:
    a, b, c = hard_sums(20_000 if full else 1_000)[case]
    expected = np.array([exact_fma(*numbers) for numbers in zip(a, b, c, strict=True)])
    np.testing.assert_array_equal(fma(a, b, c), expected)


def test_rounding_twice_is_wrong() -> None:
    """If it were not, fma would need no more than float64."""
    a, b, c = hard_sums(1_000)[2]
    twice = (a.astype(np.float64) * b + c).astype(F)
    assert (twice != fma(a, b, c)).sum() > 10


def test_fma_of_infinities_and_nan() -> None:
    inf, nan = F(np.inf), F(np.nan)
    got = fma(np.array([inf, inf, 1, nan, 3e38], F), np.array([2, 0, 1, 1, 3e38], F), np.array([1, 1, -inf, 1, 0], F))
    np.testing.assert_array_equal(got, [inf, nan, -inf, nan, inf])


def test_fma_broadcasts_and_keeps_shapes() -> None:
    assert fma(np.ones((3, 1), F), np.ones((1, 4), F), F(1)).shape == (3, 4)
    assert fma(F(2), F(3), F(4)).shape == ()
    assert fma(np.ones((0, 4), F), np.ones(4, F), np.ones(4, F)).shape == (0, 4)


def test_tree_adds_lanes_by_halves() -> None:
    lanes = np.random.default_rng(3).standard_normal((200, 16)).astype(F)
    np.testing.assert_array_equal(tree(lanes), [exact_tree(list(row)) for row in lanes])
    assert any(tree(row) != np.add.accumulate(row)[-1] for row in lanes), "the order does not show"


def test_exp_is_within_1_01_units(full: bool) -> None:
    x = np.random.default_rng(5).uniform(-87.33, 88.72, 5_000_000 if full else 200_000).astype(F)
    exact = np.exp(x.astype(np.float64))
    units = np.abs(exp(x) - exact) / np.spacing(exact.astype(F))
    assert 0.6 < units.max() < 1.01


def test_exp_at_its_ends() -> None:
    x = np.array([-np.inf, -87.34, -1e30, 0, -0.0, np.nan], F)
    np.testing.assert_array_equal(exp(x), np.array([0, 0, 0, 1, 1, np.nan], F))
    assert exp(F(-87.33)) > np.finfo(F).smallest_normal
    largest = exp(np.array([88.72, 89, 1e30, np.inf], F))
    assert np.isfinite(largest).all()
    assert len(set(largest.tolist())) == 1


def test_tanh_is_within_3_units() -> None:
    """Near 0 as well, where 1 - 2 / (e^2x + 1) has lost its digits."""
    rng = np.random.default_rng(6)
    x = (rng.uniform(-12, 12, 200_000) * np.repeat([1, 0.1, 1e-3, 1e-6], 50_000)).astype(F)
    exact = np.tanh(x.astype(np.float64))
    assert (np.abs(tanh(x) - exact) / np.spacing(np.abs(exact).astype(F))).max() < 3
    np.testing.assert_array_equal(
        tanh(np.array([-np.inf, -50, 0, 50, np.inf, np.nan], F)), np.array([-1, -1, 0, 1, 1, np.nan], F)
    )
