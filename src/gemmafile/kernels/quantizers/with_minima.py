"""Q2_K, Q4_K and Q5_K: 256 weights in sub-blocks with a scale and a minimum each. Layouts: the formats' files.

Every sub-block finds its own scale and minimum; these become whole numbers of two steps common to all 256, and the
weights are rounded once more with what those stand for.
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
    greater,
    hold,
    level,
    load,
    make_kernel,
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
from gemmafile.kernels.simd import device

f32, i32 = types.float32, types.int32

SCALES, MINIMA, WEIGHTS = OWN, OWN + 1024, OWN + 2048
SCALE_NUMBERS, MINIMUM_NUMBERS = OWN + 3072, OWN + 4096
"""A row for each sub-block: its scale, its minimum (below zero is above here), its importance, and their numbers."""


def kernels() -> dict[str, Callable[..., None]]:
    fit_2 = fits.scale_and_minimum_fitter(16, 3, -0.5, 0.1, 15, by_magnitude=True)
    fit_4 = fits.scale_and_minimum_fitter(32, 15, -1.0, 0.1, 20)
    fit_5 = fits.scale_and_minimum_fitter(32, 31, -0.5, 0.1, 15)
    return {
        "q2_k": make_kernel(256, 84, _make_plain(16, 3, 15, fit_2, _magnitudes, _put_q2_k), False),
        "q4_k": make_kernel(256, 144, _make_plain(32, 15, 63, fit_4, _magnitudes_and_mean, _put_q4_k), False),
        "q5_k": make_kernel(256, 176, _make_plain(32, 31, 63, fit_5, _magnitudes_and_mean, _put_q5_k), False),
        "q2_k_weighted": make_kernel(256, 84, _make_weighted(16, 3, 15, 1, _put_q2_k), True),
        "q4_k_weighted": make_kernel(256, 144, _make_weighted(32, 15, 63, 2, _put_q4_k), True),
        "q5_k_weighted": make_kernel(256, 176, _make_weighted(32, 31, 63, 2, _put_q5_k), True),
    }  # fmt: skip


@device
def _magnitudes(x, w):
    """Importance of 16 weights: |weight|."""
    for i in range(16):
        store(w + 64 * i, absolute(load(x + 64 * i)))


@device
def _magnitudes_and_mean(x, w):
    """Importance of 32 weights: |weight|, and the root of their mean square."""
    mean = sqrt(fits.sum_of_squares(x, 32) / number(32))
    for i in range(32):
        store(w + 64 * i, mean + absolute(load(x + 64 * i)))


def _make_plain(n: int, most: int, most_scale: int, fit: Any, weigh: Any, put: Any) -> Any:
    """Without an importance matrix: the largest scale and the largest minimum are `most_scale` of their steps."""
    n_sub = 256 // n
    finish = _make_finish(n, most, put)

    @device
    def to_numbers(s, values, numbers):
        """Rows of values >= 0 as whole numbers; the step."""
        largest = number(0)
        for j in range(n_sub):
            v = load(s + values + 64 * j)
            largest = select(greater(v, largest), v, largest)
        steps = select(greater(largest, number(0)), number(most_scale) / largest, number(0))
        for j in range(n_sub):
            store(s + numbers + 64 * j, hold(round_even(steps * load(s + values + 64 * j)), 0, most_scale))
        return largest / number(most_scale)

    @device
    def quantize(s):
        for j in range(n_sub):
            x, w = s + X + 64 * n * j, s + W
            weigh(x, w)
            scale, minimum = fit(x, w, s + LEVELS + 64 * n * j)
            store(s + SCALES + 64 * j, scale)
            store(s + MINIMA + 64 * j, minimum)
        step = to_numbers(s, SCALES, SCALE_NUMBERS)
        finish(s, step, to_numbers(s, MINIMA, MINIMUM_NUMBERS))

    return quantize


def _make_weighted(n: int, most: int, most_scale: int, mean_factor: int, put: Any) -> Any:
    """With an importance matrix: a sub-block counts as much as its weights together. `mean_factor`  of the mean square
    of all 256, which tells large weights from small ones."""
    n_sub = 256 // n
    fit, fit_numbers = fits.scale_and_minimum_fitter(n, most, -0.9, 0.05, 36), fits.positive_fitter(n_sub, most_scale)
    finish = _make_finish(n, most, put)

    @device
    def quantize(s):
        mean = number(mean_factor) * fits.sum_of_squares(s + X, 256) / number(256)
        for j in range(n_sub):
            x, w = s + X + 64 * n * j, s + W + 64 * n * j
            total = number(0)
            for i in range(n):
                v = load(x + 64 * i)
                weight = load(w + 64 * i) * sqrt(mean + v * v)
                store(w + 64 * i, weight)
                total = total + weight
            store(s + WEIGHTS + 64 * j, total)
            scale, minimum = fit(x, w, s + LEVELS + 64 * n * j)
            store(s + SCALES + 64 * j, scale)
            store(s + MINIMA + 64 * j, minimum)
        step = fit_numbers(s + SCALES, s + WEIGHTS, s + SCALE_NUMBERS)
        finish(s, step, fit_numbers(s + MINIMA, s + WEIGHTS, s + MINIMUM_NUMBERS))

    return quantize


def _make_finish(n: int, most: int, put: Any) -> Any:
    """finish(s, step, minimum_step): round the weights with the sub-blocks' numbers, and put the bytes. Where a scale
    came to nothing, the fit's numbers stay."""

    @device
    def finish(s, step, minimum_step):
        for j in range(256 // n):
            scale = as_half(step) * load(s + SCALE_NUMBERS + 64 * j)
            minimum = as_half(minimum_step) * load(s + MINIMUM_NUMBERS + 64 * j)
            is_zero = equal(scale, number(0))
            for i in range(n):
                at = 64 * (n * j + i)
                v = round_even((load(s + X + at) + minimum) / scale)
                store(s + LEVELS + at, select(is_zero, load(s + LEVELS + at), hold(v, 0, most)))
        put(s, step, minimum_step)

    return finish


@device
def _put_q2_k(s, step, minimum_step):
    for j in range(16):
        put_byte(s, j, to_int(load(s + SCALE_NUMBERS + 64 * j)) | (to_int(load(s + MINIMUM_NUMBERS + 64 * j)) << 4))
    put_two_bits(s, 16, splat_int(i32(3)))
    put_half(s, 80, step)
    put_half(s, 82, minimum_step)


@device
def put_two_bits(s, k, mask):
    """Two bits of each number, 64 bytes from byte k on: weights 32 apart share a byte."""
    for h in range(2):
        for i in range(32):
            first = 128 * h + i
            bits = level(s, first) & mask
            for part in range(1, 4):
                bits = bits | ((level(s, first + 32 * part) & mask) << (2 * part))
            put_byte(s, k + 32 * h + i, bits)


@device
def _put_sub_scales(s, k):
    """Numbers of six bits of 8 sub-blocks, 12 bytes from byte k on."""
    low, two = splat_int(i32(15)), splat_int(i32(48))
    for j in range(4):
        scale, minimum = to_int(load(s + SCALE_NUMBERS + 64 * j)), to_int(load(s + MINIMUM_NUMBERS + 64 * j))
        scale_4 = to_int(load(s + SCALE_NUMBERS + 64 * (j + 4)))
        minimum_4 = to_int(load(s + MINIMUM_NUMBERS + 64 * (j + 4)))
        put_byte(s, k + j, scale | ((scale_4 & two) << 2))
        put_byte(s, k + 4 + j, minimum | ((minimum_4 & two) << 2))
        put_byte(s, k + 8 + j, (scale_4 & low) | ((minimum_4 & low) << 4))


@device
def _put_nibbles(s, k):
    """Four bits of each number, 128 bytes from byte k on: weights 32 apart share a byte."""
    for g in range(4):
        for i in range(32):
            first = 64 * g + i
            put_byte(s, k + 32 * g + i, (level(s, first) & splat_int(i32(15))) | (level(s, first + 32) << 4))


@device
def _put_q4_k(s, step, minimum_step):
    put_half(s, 0, step)
    put_half(s, 2, minimum_step)
    _put_sub_scales(s, 4)
    _put_nibbles(s, 16)


@device
def _put_q5_k(s, step, minimum_step):
    put_half(s, 0, step)
    put_half(s, 2, minimum_step)
    _put_sub_scales(s, 4)
    for i in range(32):
        bits = splat_int(i32(0))
        for j in range(8):
            bits = bits | ((level(s, 32 * j + i) >> 4) << j)
        put_byte(s, 16 + i, bits)
    _put_nibbles(s, 48)
