"""float32 arithmetic as the law of rows states it (docs/numerics.md): fma, tree, exp, tanh, element by element.

NumPy's own float32 `*`, `+`, `/` and `sqrt` are rounded correctly and stand for themselves.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

Float32: TypeAlias = np.ndarray | np.float32

LANES = 16
"""Sums over many numbers run in this many chains side by side, joined by `tree`."""

_SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)
_BELOW_FLOAT32, _HALF = np.int64((1 << 29) - 1), np.int64(1 << 28)

_LOG2_E = np.float32(1.44269504)
_MINUS_LN2 = np.float32(-0.693359375), np.float32(2.12194440e-4)
_EXP_LOW, _EXP_HIGH = np.float32(-87.33), np.float32(88.72)
_TANH_BOUND = np.float32(30)  # of 2x: tanh 15 is 1
_EXP_POLYNOMIAL = np.array(
    [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1], np.float32
)


def fma(a: Float32, b: Float32, c: Float32) -> np.ndarray:
    """float32 a · b + c, rounded once; the arguments broadcast.

    float64 holds the product exactly, but not its sum with c, and to round that twice is wrong once in 2^29 times:
    when the first rounding lands halfway between two float32. Those sums are settled apart.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        total = np.atleast_1d(product + c)
        doubtful = (total.view(np.int64) & _BELOW_FLOAT32) == _HALF
        doubtful |= np.abs(total) < _SMALLEST_NORMAL  # there float32 is coarser, and halves lie elsewhere
        if doubtful.any():
            product, c = np.broadcast_to(product, total.shape), np.broadcast_to(c, total.shape)
            total[doubtful] = _round_to_odd(total[doubtful], product[doubtful], c[doubtful].astype(np.float64))
        return total.astype(np.float32).reshape(np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(c)))


def _round_to_odd(total: np.ndarray, product: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`total` = product + c, with its last bit set where it is inexact: the next rounding then goes the right way.

    Source: Boldo, Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd".
    """
    c_part = total - product
    rest = (product - (total - c_part)) + (c - c_part)  # two-sum: product + c = total + rest, exactly
    is_even = (total.view(np.int64) & 1) == 0
    return np.where(is_even & (rest != 0), np.nextafter(total, np.copysign(np.inf, rest)), total)


def tree(lanes: np.ndarray) -> np.ndarray:
    """float32[..., 16] -> float32[...]: the lanes' sum, by halves."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exp(x: np.ndarray) -> np.ndarray:
    """float32 e^x, within 1.01 units in the last place; 0 below -87.33, e^88.72 above 88.72, NaN for NaN."""
    n, e = _exp_parts(_hold(x, _EXP_LOW, _EXP_HIGH))
    y = e + np.float32(1)
    y = (y.view(np.int32) + (n << 23)).view(np.float32)
    return np.where(np.isnan(x), x, np.where(x < _EXP_LOW, np.float32(0), y))


def tanh(x: np.ndarray) -> np.ndarray:
    """float32 tanh x = (e^2x - 1) / (e^2x + 1), within 3 units in the last place, also near 0; NaN for NaN."""
    n, e = _exp_parts(_hold(x + x, -_TANH_BOUND, _TANH_BOUND))
    power = np.ldexp(np.float32(1), n)
    m = fma(power, e, power - np.float32(1))
    return np.where(np.isnan(x), x, m / (m + np.float32(2)))


def _hold(x: Float32, low: np.float32, high: np.float32) -> np.ndarray:
    """x within bounds; 0 for NaN."""
    return np.where(np.isnan(x), np.float32(0), np.clip(x, low, high))


def _exp_parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n int32 and e float32 with e^x = 2^n (1 + e)."""
    n = np.rint(x * _LOG2_E)
    r = x
    for part in _MINUS_LN2:
        r = fma(n, part, r)
    p = np.broadcast_to(_EXP_POLYNOMIAL[0], r.shape)
    for coefficient in _EXP_POLYNOMIAL[1:]:
        p = fma(p, r, coefficient)
    return n.astype(np.int32), fma(p, r * r, r)
