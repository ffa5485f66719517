"""IQ4_NL and IQ4_XS: weights are a scale times one of 16 numbers. Layouts: the formats' files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from numba.core import types

from gemmafile.kernels import emit
from gemmafile.kernels.iq4_nl import CODEBOOK
from gemmafile.kernels.quantizers import fits
from gemmafile.kernels.quantizers.jobs import LEVELS, OWN, W, X
from gemmafile.kernels.quantizers.lanes import (
    F,
    absolute,
    both,
    greater,
    hold,
    inverse,
    less,
    level,
    load,
    make_kernel,
    number,
    put_byte,
    put_half,
    round_even,
    select,
    splat,
    splat_int,
    sqrt,
    store,
    to_int,
)  # fmt: skip
from gemmafile.kernels.simd import device

f32, i32 = types.float32, types.int32

SCALES = OWN
"""A row for each sub-block of 32."""
N_TRIES = 7

_VALUES = tuple(float(v) for v in CODEBOOK)
_FARTHEST = _VALUES[0]
_BORDERS = tuple((a + b) / 2 for a, b in itertools.pairwise(_VALUES))
"""Half way between neighbours; a number on a border goes up."""


def kernels() -> dict[str, Callable[..., None]]:
    made = {}
    for weighted in (False, True):
        ending = "_weighted" if weighted else ""
        made["iq4_nl" + ending] = make_kernel(32, 18, _make_iq4_nl(weighted), weighted)
        made["iq4_xs" + ending] = make_kernel(256, 136, _make_iq4_xs(weighted), weighted)
    return made


def _step_function(values: tuple[float, ...]) -> Any:
    """look_up(v): values[k] for a lane that is nearest to number k of the codebook."""

    def code(b: Any, v: Any) -> Any:
        found = emit.splat_constant(v.type, values[0])
        for border, value in zip(_BORDERS, values[1:], strict=True):
            is_below = b.fcmp_ordered("<", v, emit.splat_constant(v.type, border))
            found = b.select(is_below, found, emit.splat_constant(v.type, value))
        return found

    return emit.make(F, [F], code)


_nearest = _step_function(_VALUES)
_index = _step_function(tuple(float(k) for k in range(16)))


@device
def _try_scale(x, w, to_numbers):
    products, squares = number(0), number(0)
    for i in range(32):
        v, weight = load(x + 64 * i), load(w + 64 * i)
        q = _nearest(to_numbers * v)
        weighted = weight * q
        products, squares = products + weighted * v, squares + weighted * q
    return products, squares


@device
def _fit(x, w):
    """The scale of 32 weights; 0 for all zeros."""
    largest = fits.largest_of(x, 32)
    first = number(0) - largest / number(_FARTHEST)
    products, squares = _try_scale(x, w, number(1) / first)
    scale = select(greater(squares, number(0)), products / squares, number(0))
    best = scale * products
    for step in range(-N_TRIES, N_TRIES + 1):
        products, squares = _try_scale(x, w, splat(f32(step) + f32(_FARTHEST)) / largest)
        is_better = both(greater(squares, number(0)), greater(products * products, best * squares))
        scale = select(is_better, products / squares, scale)
        best = select(is_better, scale * products, best)
    return select(less(absolute(largest), number(fits.ALL_ZERO)), number(0), scale)


def _make_weigh(n: int, weighted: bool) -> Any:
    """weigh(s): the importance of n weights."""

    @device
    def weigh(s):
        if weighted:
            mean = fits.sum_of_squares(s + X, n) * number(2 / n)
            for i in range(n):
                v = load(s + X + 64 * i)
                store(s + W + 64 * i, load(s + W + 64 * i) * sqrt(mean + v * v))
        else:
            for i in range(n):
                v = load(s + X + 64 * i)
                store(s + W + 64 * i, v * v)

    return weigh


@device
def _put_indices(s, k, n):
    """Four bits of each of n numbers from byte k on: weights 16 apart share a byte."""
    for g in range(n):
        for i in range(16):
            first = 32 * g + i
            put_byte(s, k + 16 * g + i, level(s, first) | (level(s, first + 16) << 4))


def _make_iq4_nl(weighted: bool) -> Any:
    weigh = _make_weigh(32, weighted)

    @device
    def quantize(s):
        weigh(s)
        scale = _fit(s + X, s + W)
        to_numbers = inverse(scale)
        for i in range(32):
            store(s + LEVELS + 64 * i, _index(to_numbers * load(s + X + 64 * i)))
        put_half(s, 0, scale)
        _put_indices(s, 2, 1)

    return quantize


def _make_iq4_xs(weighted: bool) -> Any:
    weigh = _make_weigh(256, weighted)

    @device
    def quantize(s):
        weigh(s)
        for j in range(8):
            store(s + SCALES + 64 * j, _fit(s + X + 2048 * j, s + W + 2048 * j))
        step = number(0) - fits.largest_of(s + SCALES, 8) / number(32)
        to_steps = inverse(step)
        high = splat_int(i32(0))
        for j in range(8):
            steps = hold(round_even(to_steps * load(s + SCALES + 64 * j)), -32, 31)
            store(s + SCALES + 64 * j, steps + number(32))
            to_numbers = inverse(step * steps)
            for i in range(32):
                at = 64 * (32 * j + i)
                store(s + LEVELS + at, _index(to_numbers * load(s + X + at)))
            high = high | ((to_int(steps + number(32)) >> 4) << (2 * j))
        put_half(s, 0, step)
        put_byte(s, 2, high)
        put_byte(s, 3, high >> 8)
        for j in range(4):
            first, second = to_int(load(s + SCALES + 128 * j)), to_int(load(s + SCALES + 128 * j + 64))
            put_byte(s, 4 + j, (first & splat_int(i32(15))) | ((second & splat_int(i32(15))) << 4))
        _put_indices(s, 8, 8)

    return quantize
