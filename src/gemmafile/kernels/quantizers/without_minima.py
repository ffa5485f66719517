"""Q3_K and Q6_K: 256 weights in 16 sub-blocks with a scale each. Layouts: the formats' files.

Every sub-block finds its own scale; the scales become whole numbers of a step common to all 256, and the weights are
rounded once more with what those stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types

from gemmafile.kernels.quantizers import fits
from gemmafile.kernels.quantizers.jobs import LEVELS, OWN, W, X
from gemmafile.kernels.quantizers.lanes import (
    absolute,
    as_half,
    equal,
    hold,
    less,
    level,
    load,
    make_kernel,
    not_equal,
    number,
    put_byte,
    put_half,
    round_even,
    select,
    splat_int,
    sqrt,
    store,
    to_int,
)  # fmt: skip
from gemmafile.kernels.quantizers.with_minima import put_two_bits
from gemmafile.kernels.simd import device

f32, i32 = types.float32, types.int32

SCALES, WEIGHTS, NUMBERS = OWN, OWN + 1024, OWN + 2048
"""A row for each sub-block: its scale, its importance, and the scale's number."""


def kernels() -> dict[str, Callable[..., None]]:
    return {
        "q3_k": make_kernel(256, 110, _make_q3_k(), False),
        "q6_k": make_kernel(256, 210, _make_q6_k(_square), False),
        "q3_k_weighted": make_kernel(256, 110, _make_q3_k_weighted(), True),
        "q6_k_weighted": make_kernel(256, 210, _make_q6_k(_keep), True),
    }


@device
def _square(x, w):
    """Importance of 16 weights: their squares."""
    for i in range(16):
        v = load(x + 64 * i)
        store(w + 64 * i, v * v)


@device
def _keep(x, w):
    """Importance of 16 weights: their columns'."""


def _make_finish(half: int, put: Any) -> Any:
    """finish(s, step): round the weights with the sub-blocks' numbers, and put the bytes. Where a scale came to
    nothing, the fit's numbers stay."""

    @device
    def finish(s, step):
        for j in range(16):
            scale = as_half(step) * load(s + NUMBERS + 64 * j)
            is_zero = equal(scale, number(0))
            for i in range(16):
                at = 64 * (16 * j + i)
                v = hold(round_even(load(s + X + at) / scale), -half, half - 1)
                store(s + LEVELS + at, select(is_zero, load(s + LEVELS + at), v + number(half)))
        put(s, step)

    return finish


def _make_q6_k(weigh: Any) -> Any:
    fit, finish = fits.scale_fitter(16, 32), _make_finish(32, _put_q6_k)

    @device
    def quantize(s):
        for j in range(16):
            x, w = s + X + 1024 * j, s + W + 1024 * j
            weigh(x, w)
            store(s + SCALES + 64 * j, fit(x, w, s + LEVELS + 1024 * j))
        largest = fits.largest_of(s + SCALES, 16)
        is_zero = less(absolute(largest), number(fits.ALL_ZERO))
        to_numbers = number(-128) / largest
        for j in range(16):
            v = hold(round_even(to_numbers * load(s + SCALES + 64 * j)), -128, 127)
            store(s + NUMBERS + 64 * j, select(is_zero, number(0), v))
        for i in range(256):
            store(s + LEVELS + 64 * i, select(is_zero, number(0), load(s + LEVELS + 64 * i)))
        finish(s, select(is_zero, number(0), number(1) / to_numbers))

    return quantize


def _make_q3_k() -> Any:
    fit, finish = fits.descent_fitter(16, 4, 8), _make_finish(4, _put_q3_k)

    @device
    def quantize(s):
        for j in range(0, 16, 8):
            fit(s + X + 1024 * j, s + LEVELS + 1024 * j, s + SCALES + 64 * j, s + WEIGHTS)
        largest = fits.largest_of(s + SCALES, 16)
        is_some = not_equal(largest, number(0))
        to_numbers = number(-32) / largest
        for j in range(16):
            v = hold(round_even(to_numbers * load(s + SCALES + 64 * j)), -32, 31)
            store(s + NUMBERS + 64 * j, select(is_some, v, number(-32)))
        finish(s, select(is_some, number(1) / to_numbers, number(0)))

    return quantize


def _make_q3_k_weighted() -> Any:
    fit, fit_numbers = fits.scale_fitter(16, 4), fits.scale_fitter(16, 32)
    finish = _make_finish(4, _put_q3_k)

    @device
    def quantize(s):
        mean = number(2) * fits.sum_of_squares(s + X, 256) / number(256)
        for j in range(16):
            x, w = s + X + 1024 * j, s + W + 1024 * j
            total = number(0)
            for i in range(16):
                v = load(x + 64 * i)
                weight = load(w + 64 * i) * sqrt(mean + v * v)
                store(w + 64 * i, weight)
                total = total + weight
            store(s + WEIGHTS + 64 * j, total)
            store(s + SCALES + 64 * j, fit(x, w, s + LEVELS + 1024 * j))
        step = fit_numbers(s + SCALES, s + WEIGHTS, s + NUMBERS)
        for j in range(16):
            store(s + NUMBERS + 64 * j, load(s + NUMBERS + 64 * j) - number(32))
        finish(s, step)

    return quantize


@device
def _put_q6_k(s, step):
    low = splat_int(i32(15))
    for h in range(2):
        for i in range(32):
            first = 128 * h + i
            a, b, c, d = level(s, first), level(s, first + 32), level(s, first + 64), level(s, first + 96)
            put_byte(s, 64 * h + i, (a & low) | ((c & low) << 4))
            put_byte(s, 64 * h + 32 + i, (b & low) | ((d & low) << 4))
            put_byte(s, 128 + 32 * h + i, (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6))
    for j in range(16):
        put_byte(s, 192 + j, to_int(load(s + NUMBERS + 64 * j)))
    put_half(s, 208, step)


@device
def _put_q3_k(s, step):
    low, one, three = splat_int(i32(15)), splat_int(i32(1)), splat_int(i32(3))
    for i in range(32):
        bits = splat_int(i32(0))
        for j in range(8):
            bits = bits | (((level(s, 32 * j + i) >> 2) & one) << j)
        put_byte(s, i, bits)
    put_two_bits(s, 32, three)
    for j in range(8):
        first, second = _sub_scale(s, j), _sub_scale(s, j + 8)
        put_byte(s, 96 + j, (first & low) | ((second & low) << 4))
    for j in range(4):
        bits = _sub_scale(s, j) >> 4
        for k in range(1, 4):
            bits = bits | ((_sub_scale(s, j + 4 * k) >> 4) << (2 * k))
        put_byte(s, 104 + j, bits)
    put_half(s, 108, step)


@device
def _sub_scale(s, j):
    """The number of a sub-block's scale as it is kept: 32 more."""
    return to_int(load(s + NUMBERS + 64 * j) + number(32))
