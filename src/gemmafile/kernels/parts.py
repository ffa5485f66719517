"""A row in two parts: itself, and what rounding it as activations of a format loses (the tape's Split and Join).

The product of both parts, added, is that of activations of about 15 bits, at the price of a second row.
Twins: `reference.split` and an addition.
"""

from __future__ import annotations

from collections.abc import Callable

from gemmafile.kernels.ops import NEXT, ROWS
from gemmafile.kernels.pointwise import OUT, OUT_STRIDE, WIDTH, X_STRIDE, X

PIECE = 4096
"""Numbers of a row that are joined at a time: it may be a whole vocabulary."""


def kernels() -> dict[str, Callable[..., None]]:
    return {"split_int8_256": _make_split(16), "split_int8_32": _make_split(2), "join": _make_join()}


def _make_split(n_vectors: int) -> Callable[..., None]:
    """For int8 in blocks of 16 * n_vectors."""
    from numba.core import types

    from gemmafile.kernels import simd
    from gemmafile.kernels.rounding import larger, rounded, scale_and_d

    f32 = types.float32
    load, atomic_add, load_v, store_v = simd.load_i64, simd.atomic_add, simd.load_f32x16, simd.store_f32x16
    splat, absolute, fma, max_lanes, sum_lanes = (
        simd.splat_f32x16, simd.absolute, simd.fma, simd.max_f32x16, simd.sum_f32x16,
    )  # fmt: skip

    def split(op, shared, thread):
        """out[2i] = x[i], out[2i + 1] = x[i] - d * q"""
        width, n = load(op + WIDTH), load(shared + load(op + ROWS)) >> 1
        while True:
            row = atomic_add(op + NEXT, 1)
            if row >= n:
                return
            x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + 2 * row * load(op + OUT_STRIDE)
            rest = out + load(op + OUT_STRIDE)
            block = 0
            while block < 4 * width:
                largest, taint = splat(f32(0)), splat(f32(0))
                for i in range(n_vectors):
                    v = load_v(x + block + 64 * i)
                    largest, taint = larger(absolute(v), largest), fma(v, splat(f32(0)), taint)
                scale, d = scale_and_d(max_lanes(largest), sum_lanes(taint))
                for i in range(n_vectors):
                    v = load_v(x + block + 64 * i)
                    store_v(out + block + 64 * i, v)
                    store_v(rest + block + 64 * i, fma(rounded(v, scale), splat(-d), v))
                block += 64 * n_vectors

    return split


def _make_join() -> Callable[..., None]:
    from gemmafile.kernels import simd

    load, atomic_add, load_part, store_part = (
        simd.load_i64, simd.atomic_add, simd.load_part_f32x16, simd.store_part_f32x16,
    )  # fmt: skip

    def join(op, shared, thread):
        """out[i] = x[2i] + x[2i + 1]"""
        width, n = load(op + WIDTH), load(shared + load(op + ROWS))
        pieces = simd.quotient(width + PIECE - 1, PIECE)
        while True:
            task = atomic_add(op + NEXT, 1)
            row, piece = simd.quotient(task, pieces), simd.remainder(task, pieces)
            if row >= n:
                return
            one, out = load(op + X) + 2 * row * load(op + X_STRIDE), load(op + OUT) + row * load(op + OUT_STRIDE)
            two = one + load(op + X_STRIDE)
            i = PIECE * piece
            while i < min(width, PIECE * piece + PIECE):
                store_part(
                    out + 4 * i, load_part(one + 4 * i, width - i) + load_part(two + 4 * i, width - i), width - i
                )
                i += 16

    return join
