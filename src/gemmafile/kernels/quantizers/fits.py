"""The searches: for sixteen runs of weights, one in each lane, the scale (and minimum) that loses least. Needs Numba.

    x, w    addresses of n rows of float32x16: the weights and their importance
    loss    sum of w (weight - what stands for it)²

Each tries a row of scales about the obvious one; for each the numbers that would stand for the weights give, by least
squares, the best scale for those numbers. Sums run in the order of the weights, products are not fused with sums.
"""

from __future__ import annotations

from typing import Any

from numba.core import types

from gemmafile.kernels import simd
from gemmafile.kernels.quantizers.lanes import (
    absolute,
    both,
    equal,
    greater,
    hold,
    less,
    load,
    not_equal,
    number,
    round_even,
    select,
    splat,
    store,
)  # fmt: skip

f32 = types.float32
negate = simd.negate

ALL_ZERO = 1e-15
"""Weights smaller than this are zeros."""
N_ROUNDS = 5
"""Rounds of moving single numbers."""


@simd.device
def largest_of(x, n):
    """The weight that is farthest from zero, the first of such."""
    far, at = number(0), number(0)
    for i in range(n):
        v = load(x + 64 * i)
        is_farther = greater(absolute(v), far)
        far, at = select(is_farther, absolute(v), far), select(is_farther, v, at)
    return at


@simd.device
def bounds_of(x, n):
    """The smallest and the largest weight."""
    low = high = load(x)
    for i in range(1, n):
        v = load(x + 64 * i)
        low, high = select(less(v, low), v, low), select(greater(v, high), v, high)
    return low, high


@simd.device
def sum_of_squares(x, n):
    total = number(0)
    for i in range(n):
        v = load(x + 64 * i)
        total = total + v * v
    return total


def scale_fitter(n: int, half: int) -> Any:
    """fit(x, w, q): the scale of n weights that whole numbers from -half to half - 1 stand for; 0 for all zeros. The
    numbers, each plus half, go to q; zeros for all zeros."""

    @simd.device
    def try_scale(x, w, to_numbers):
        products, squares = number(0), number(0)
        for i in range(n):
            v, weight = load(x + 64 * i), load(w + 64 * i)
            q = hold(round_even(to_numbers * v), -half, half - 1)
            products, squares = products + weight * v * q, squares + weight * q * q
        return products, squares

    @simd.device
    def fit(x, w, q):
        largest = largest_of(x, n)
        chosen = number(-half) / largest
        products, squares = try_scale(x, w, chosen)
        scale = select(not_equal(squares, number(0)), products / squares, number(0))
        best = scale * products
        for step in range(-9, 10):
            if step != 0:
                to_numbers = splat(-(f32(half) + f32(0.1) * f32(step))) / largest
                products, squares = try_scale(x, w, to_numbers)
                is_better = both(greater(squares, number(0)), greater(products * products, best * squares))
                scale = select(is_better, products / squares, scale)
                best = select(is_better, scale * products, best)
                chosen = select(is_better, to_numbers, chosen)
        is_zero = less(absolute(largest), number(ALL_ZERO))
        for i in range(n):
            number_i = hold(round_even(chosen * load(x + 64 * i)), -half, half - 1) + number(half)
            store(q + 64 * i, select(is_zero, number(0), number_i))
        return select(is_zero, number(0), scale)

    return fit


def scale_and_minimum_fitter(
    n: int, most: int, first: float, step: float, n_steps: int, *, by_magnitude: bool = False
) -> Any:
    """fit(x, w, q): (scale, -minimum) of n weights that numbers from 0 to `most` stand for, times scale, plus minimum,
    which is not above 0. The numbers go to q.

    first, step, n_steps  candidates put first, first + step ... more than `most` steps between minimum and maximum
    by_magnitude          the loss is of |difference|, not of its square
    """

    @simd.device
    def loss_of(difference):
        return absolute(difference) if by_magnitude else difference * difference

    @simd.device
    def fit(x, w, q):
        low, high = bounds_of(x, n)
        sum_w, sum_x = load(w), load(w) * load(x)
        for i in range(1, n):
            weight = load(w + 64 * i)
            sum_w, sum_x = sum_w + weight, sum_x + weight * load(x + 64 * i)
        low = select(greater(low, number(0)), number(0), low)
        lowest, is_flat = low, equal(low, high)
        to_numbers = number(most) / (high - low)
        scale, best = number(1) / to_numbers, number(0)
        chosen, chosen_low = to_numbers, low
        for i in range(n):
            v = load(x + 64 * i)
            number_i = hold(round_even(to_numbers * (v - low)), 0, most)
            best = best + load(w + 64 * i) * loss_of(scale * number_i + low - v)
        for k in range(n_steps + 1):
            to_numbers = splat(f32(first) + f32(step) * f32(k) + f32(most)) / (high - low)
            sum_q, sum_qq, sum_xq = number(0), number(0), number(0)
            for i in range(n):
                v, weight = load(x + 64 * i), load(w + 64 * i)
                number_i = hold(round_even(to_numbers * (v - low)), 0, most)
                store(q + 64 * i, number_i)
                weighted = weight * number_i
                sum_q, sum_qq, sum_xq = sum_q + weighted, sum_qq + weighted * number_i, sum_xq + weighted * v
            determinant = sum_w * sum_qq - sum_q * sum_q
            new_scale = (sum_w * sum_xq - sum_x * sum_q) / determinant
            new_low = (sum_qq * sum_x - sum_q * sum_xq) / determinant
            is_above = greater(new_low, number(0))
            new_scale = select(is_above, sum_xq / sum_qq, new_scale)
            new_low = select(is_above, number(0), new_low)
            loss = number(0)
            for i in range(n):
                loss = loss + load(w + 64 * i) * loss_of(new_scale * load(q + 64 * i) + new_low - load(x + 64 * i))
            is_better = both(greater(determinant, number(0)), less(loss, best))
            best = select(is_better, loss, best)
            chosen, chosen_low = select(is_better, to_numbers, chosen), select(is_better, low, chosen_low)
            scale, low = select(is_better, new_scale, scale), select(is_better, new_low, low)
        for i in range(n):
            number_i = hold(round_even(chosen * (load(x + 64 * i) - chosen_low)), 0, most)
            store(q + 64 * i, select(is_flat, number(0), number_i))
        return select(is_flat, number(0), scale), negate(select(is_flat, lowest, low))

    return fit


def positive_fitter(n: int, most: int) -> Any:
    """fit(x, w, q): the scale of n numbers >= 0 that whole numbers from 0 to `most` stand for; these go to q."""

    @simd.device
    def loss_at(x, w, to_numbers, scale, bound):
        loss = number(0)
        for i in range(n):
            v = load(x + 64 * i)
            difference = v - scale * hold(round_even(to_numbers * v), 0, bound)
            loss = loss + load(w + 64 * i) * difference * difference
        return loss

    @simd.device
    def fit(x, w, q):
        largest = number(0)
        for i in range(n):
            v = load(x + 64 * i)
            largest = select(greater(v, largest), v, largest)
        to_numbers = number(most) / largest
        best = loss_at(x, w, to_numbers, number(1) / to_numbers, 2 * most)
        for step in range(-4, 5):
            if step != 0:
                candidate = splat(f32(0.1) * f32(step) + f32(most)) / largest
                loss = loss_at(x, w, candidate, number(1) / candidate, most)
                is_better = less(loss, best)
                best, to_numbers = select(is_better, loss, best), select(is_better, candidate, to_numbers)
        products, squares = number(0), number(0)
        for i in range(n):
            v, weight = load(x + 64 * i), load(w + 64 * i)
            number_i = hold(round_even(to_numbers * v), 0, most)
            store(q + 64 * i, number_i)
            products, squares = products + weight * v * number_i, squares + weight * number_i * number_i
        for _ in range(N_ROUNDS):
            for i in range(n):
                v, weight, old = load(x + 64 * i), load(w + 64 * i), load(q + 64 * i)
                others, other_squares = products - weight * v * old, squares - weight * old * old
                new = hold(round_even(v * other_squares / others), 0, most)
                may = both(greater(others, number(0)), greater(other_squares, number(0)))
                with_new, new_squares = others + weight * v * new, other_squares + weight * new * new
                gains = greater(with_new * with_new * squares, products * products * new_squares)
                moves = both(both(may, not_equal(new, old)), gains)
                store(q + 64 * i, select(moves, new, old))
                products, squares = select(moves, with_new, products), select(moves, new_squares, squares)
        is_zero = less(largest, number(ALL_ZERO))
        for i in range(n):
            store(q + 64 * i, select(is_zero, number(0), load(q + 64 * i)))
        scale = select(greater(squares, number(0)), products / squares, number(0))
        return select(is_zero, number(0), scale)

    return fit


def descent_fitter(n: int, half: int, n_runs: int) -> Any:
    """fit(x, q, products, squares): scales of n_runs runs of n weights, one behind the other, that whole numbers from
    -half to half - 1 stand for, found by moving one number at a time; a weight's importance is its square.

    q has room for n rows for each run, `products` and `squares` for one; run r's scale is left in row r of `products`,
    its numbers, each plus half, in q (zeros for all zeros). The runs take turns: each step of one waits for its last.
    """

    @simd.device
    def begin(x, q, products_at, squares_at):
        to_numbers = number(-half) / largest_of(x, n)
        products, squares = number(0), number(0)
        for i in range(n):
            v = load(x + 64 * i)
            number_i = hold(round_even(to_numbers * v), -half, half - 1)
            store(q + 64 * i, number_i)
            weight = v * v
            products, squares = products + weight * v * number_i, squares + weight * number_i * number_i
        store(products_at, products)
        store(squares_at, squares)

    @simd.device
    def move(x, q, products_at, squares_at):
        """Move one number if that gains."""
        v, old, products, squares = load(x), load(q), load(products_at), load(squares_at)
        weight = v * v
        others, other_squares = products - weight * v * old, squares - weight * old * old
        new = hold(round_even(v * other_squares / others), -half, half - 1)
        with_new, new_squares = others + weight * v * new, other_squares + weight * new * new
        gains = greater(with_new * with_new * squares, products * products * new_squares)
        may = both(both(greater(others, number(0)), not_equal(new, old)), greater(new_squares, number(0)))
        moves = both(may, gains)
        store(q, select(moves, new, old))
        store(products_at, select(moves, with_new, products))
        store(squares_at, select(moves, new_squares, squares))
        return select(moves, number(1), number(0))

    @simd.device
    def fit(x, q, products, squares):
        for r in range(n_runs):
            begin(x + 64 * n * r, q + 64 * n * r, products + 64 * r, squares + 64 * r)
        for _ in range(N_ROUNDS):
            n_moved = number(0)
            for i in range(n):
                for r in range(n_runs):
                    at = 64 * (n * r + i)
                    n_moved = n_moved + move(x + at, q + at, products + 64 * r, squares + 64 * r)
            if simd.max_f32x16(n_moved) == f32(0):
                break
        for r in range(n_runs):
            total = load(squares + 64 * r)
            scale = select(greater(total, number(0)), load(products + 64 * r) / total, number(0))
            is_zero = less(absolute(largest_of(x + 64 * n * r, n)), number(ALL_ZERO))
            store(products + 64 * r, select(is_zero, number(0), scale))
            for i in range(n):
                at = q + 64 * (n * r + i)
                store(at, select(is_zero, number(0), load(at) + number(half)))

    return fit
