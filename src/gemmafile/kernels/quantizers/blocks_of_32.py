"""Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0: one scale, or a scale and a minimum, for 32 weights. Layouts: the formats' files.

Without importance a weight is rounded to the nearest step between the block's bounds, with no search; these bytes are
the same in every program that makes such files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types

from gemmafile.kernels.quantizers import fits
from gemmafile.kernels.quantizers.jobs import LEVELS, ROW_MEAN, W, X
from gemmafile.kernels.quantizers.lanes import (
    absolute,
    copy_sign,
    greater,
    hold,
    inverse,
    level,
    load,
    make_kernel,
    number,
    put_byte,
    put_half,
    select,
    splat_int,
    sqrt,
    store,
    to_int,
    truncate,
)  # fmt: skip
from gemmafile.kernels.simd import device, negate

f32, i32 = types.float32, types.int32


def kernels() -> dict[str, Callable[..., None]]:
    put_4, put_5 = _make_put(2, None), _make_put(6, 2)
    put_4_1, put_5_1 = _make_put(4, None), _make_put(8, 4)
    return {
        "q8_0": make_kernel(32, 34, _q8_0, False),
        "q4_0": make_kernel(32, 18, _make_symmetric(8, put_4), False),
        "q5_0": make_kernel(32, 22, _make_symmetric(16, put_5), False),
        "q4_1": make_kernel(32, 20, _make_between_bounds(15, put_4_1), False),
        "q5_1": make_kernel(32, 24, _make_between_bounds(31, put_5_1), False),
        "q4_0_weighted": make_kernel(32, 18, _make_weighted_scale(8, put_4), True),
        "q5_0_weighted": make_kernel(32, 22, _make_weighted_scale(16, put_5), True),
        "q4_1_weighted": make_kernel(32, 20, _make_weighted_bounds(15, put_4_1), True),
        "q5_1_weighted": make_kernel(32, 24, _make_weighted_bounds(31, put_5_1), True),
    }


@device
def _round_away(v):
    """To the nearest whole number, halves away from zero."""
    whole = truncate(v)
    rest = absolute(v - whole)
    return select(greater(number(0.5), rest), whole, whole + copy_sign(number(1), v))


@device
def _q8_0(s):
    x = s + X
    scale = absolute(fits.largest_of(x, 32)) / number(127)
    to_numbers = inverse(scale)
    put_half(s, 0, scale)
    for i in range(32):
        put_byte(s, 2 + i, to_int(_round_away(load(x + 64 * i) * to_numbers)))


def _make_put(low_at: int, high_at: int | None) -> Any:
    """put(s): the numbers at LEVELS, four bits from byte `low_at` on, and the fifth bits from byte `high_at` on."""
    has_high = high_at is not None
    high = high_at or 0

    @device
    def put(s):
        for i in range(16):
            first, second = level(s, i), level(s, i + 16)
            put_byte(s, low_at + i, (first & splat_int(i32(15))) | (second << 4))
        if has_high:
            for byte in range(4):
                bits = splat_int(i32(0))
                for i in range(8):
                    bits = bits | (((level(s, 8 * byte + i) >> 4) & splat_int(i32(1))) << i)
                put_byte(s, high + byte, bits)

    return put


def _make_symmetric(half: int, put: Any) -> Any:
    """Numbers 0 to 2 half - 1 for weights from -half to half - 1 steps; the farthest weight is -half."""

    @device
    def quantize(s):
        x = s + X
        scale = fits.largest_of(x, 32) / number(-half)
        to_numbers = inverse(scale)
        put_half(s, 0, scale)
        for i in range(32):
            v = truncate(load(x + 64 * i) * to_numbers + number(half + 0.5))
            store(s + LEVELS + 64 * i, hold(v, 0, 2 * half - 1))
        put(s)

    return quantize


def _make_between_bounds(most: int, put: Any) -> Any:
    """Numbers 0 to `most` from the smallest weight to the largest."""

    @device
    def quantize(s):
        x = s + X
        low, high = fits.bounds_of(x, 32)
        scale = (high - low) / number(most)
        to_numbers = inverse(scale)
        put_half(s, 0, scale)
        put_half(s, 2, low)
        for i in range(32):
            v = truncate((load(x + 64 * i) - low) * to_numbers + number(0.5))
            store(s + LEVELS + 64 * i, hold(v, 0, most))
        put(s)

    return quantize


@device
def _weigh(s):
    """Importance of a weight: its column's, more for a weight larger than its row's mean."""
    mean = load(s + ROW_MEAN)
    for i in range(32):
        v = load(s + X + 64 * i)
        store(s + W + 64 * i, load(s + W + 64 * i) * sqrt(mean + v * v))


def _make_weighted_scale(half: int, put: Any) -> Any:
    fit = fits.scale_fitter(32, half)

    @device
    def quantize(s):
        _weigh(s)
        put_half(s, 0, fit(s + X, s + W, s + LEVELS))
        put(s)

    return quantize


def _make_weighted_bounds(most: int, put: Any) -> Any:
    fit = fits.scale_and_minimum_fitter(32, most, -0.9, 0.05, 36)

    @device
    def quantize(s):
        _weigh(s)
        scale, below = fit(s + X, s + W, s + LEVELS)
        put_half(s, 0, scale)
        put_half(s, 2, negate(below))
        put(s)

    return quantize
