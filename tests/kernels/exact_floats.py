"""One float32 operation at a time in exact rational arithmetic: slow, and independent of NumPy's rounding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def round_float32(x: Fraction) -> np.float32:
    """To nearest, ties to even; subnormals included; x within float32's range."""
    if x == 0:
        return np.float32(0)
    exponent = max(_floor_log2(abs(x)), -126) - 23
    n = round(x / Fraction(2) ** exponent)  # Python rounds a Fraction half to even
    return np.float32(np.ldexp(float(n), exponent))


def exact_fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    return round_float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def exact_tree(lanes: list[np.float32]) -> np.float32:
    """((0+8)+(4+12)) + ... : lane i and lane i + half, until one is left."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    return lanes[0]


def _floor_log2(x: Fraction) -> int:
    n = x.numerator.bit_length() - x.denominator.bit_length()
    return n if x >= Fraction(2) ** n else n - 1
