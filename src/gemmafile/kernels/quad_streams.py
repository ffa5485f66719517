"""The walk of `streams.py` over quads: four rows side by side, straight from the file's bytes, lanes along K.

The exact integers and the float steps are the law's (docs/numerics.md), as in `quads.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels.packing import QUAD_BYTES, QUAD_D, QUAD_D_SUMS, QUAD_MINUS_SUMS
from gemmafile.kernels.quads import Quad
from gemmafile.kernels.streams import AHEAD_BYTES


def make_walk(f: Quad, n_tokens: int) -> Any:
    """A walk of `streams.py`. Weights are unpacked once for the n tokens."""
    from numba.core import types

    from gemmafile.kernels import emit, simd, tiles

    bytes_, halves = f.bytes, f.halves
    vector, four, u64 = emit.vec("i32", 16), emit.vec("f32", 4), emit.vec("u8", 64)
    sums, floats = types.UniTuple(vector, n_tokens), types.UniTuple(four, n_tokens)
    prefetch_quad, ahead_bytes = simd.prefetcher(4 * f.bytes, level=1), AHEAD_BYTES
    row_sums = emit.make(sums, [u64, u64, emit.address], _row_sums_code(f, n_tokens))
    add_quad = emit.make(floats, [floats, *[sums] * 4, *[emit.address] * 8], _add_quad_code(f))
    zeros = emit.make(floats, [], lambda b: tiles.join(b, [emit.splat_constant(four.llvm, 0.0)] * n_tokens))
    store = emit.make(emit.void, [floats, *[emit.address] * 5], tiles.store_lanes)

    @simd.device
    def of_row(p, o1, o2, o3, a):
        low, high = halves(p, p + o1, p + o2, p + o3)
        return row_sums(low, high, a)

    @simd.device
    def walk(p0, p1, p2, p3, r1, r2, r3, n_blocks, near, leap, a, stride, out, out_stride):
        acc = zeros()
        whole, left = n_blocks >> 2, n_blocks & 3
        o1, o2, o3 = bytes_, 2 * bytes_, 3 * bytes_
        for quad in range((n_blocks + 3) >> 2):
            if quad == whole:
                o1, o2, o3 = min(1, left - 1) * bytes_, min(2, left - 1) * bytes_, (left - 1) * bytes_
            ahead = ahead_bytes if 4 * quad < near else ahead_bytes + leap
            prefetch_quad(p0 + ahead)
            prefetch_quad(p1 + ahead)
            prefetch_quad(p2 + ahead)
            prefetch_quad(p3 + ahead)
            i0, i1 = of_row(p0, o1, o2, o3, a), of_row(p1, o1, o2, o3, a)
            i2, i3 = of_row(p2, o1, o2, o3, a), of_row(p3, o1, o2, o3, a)
            acc = add_quad(acc, i0, i1, i2, i3, p0, p1, p2, p3, o1, o2, o3, a)
            p0 += 4 * bytes_
            p1 += 4 * bytes_
            p2 += 4 * bytes_
            p3 += 4 * bytes_
            a += stride
        store(acc, out, r1, r2, r3, out_stride)

    return walk


def _row_sums_code(f: Quad, n_tokens: int) -> Callable[..., Any]:
    """For each token 16 lanes, four for each block of a row's quad, whose sums are the blocks' exact integers."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit, tiles

    t = ir.VectorType(emit.I32, 16)

    def start(b: Any, a: Any, at: int) -> Any:
        """Minus the sum of each block, times the offset, in the first of its four lanes."""
        if not f.offset:
            return emit.splat_constant(t, 0)
        sums = emit.load_at(b, a, ir.VectorType(emit.I32, 4), at + QUAD_MINUS_SUMS)
        total = b.mul(sums, emit.splat_constant(sums.type, f.offset))
        lanes = [4 if lane % 4 else lane // 4 for lane in range(16)]
        return emit.shuffle(b, total, emit.splat_constant(sums.type, 0), lanes)

    def code(b: Any, low: Any, high: Any, a: Any) -> Any:
        sums = []
        for at in range(0, n_tokens * QUAD_BYTES, QUAD_BYTES):
            acc = start(b, a, at)
            for i, weights in enumerate((low, high)):
                activations = emit.load_at(b, a, weights.type, at + 64 * i)
                acc = emit.dot_bytes(b, acc, weights, activations, below_128=f.largest < 128)
            sums.append(acc)
        return tiles.join(b, sums)

    return code


def _add_quad_code(f: Quad) -> Callable[..., Any]:
    """The law's float steps for a quad of four rows: acc, the sums of each row, p of each row, o1, o2, o3, a."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit, tiles

    def by_block(b: Any, rows: Any) -> Any:
        """Lanes 4 j ... 4 j + 3 of four rows -> the sums of block j in lanes 4 j (row 0) ... 4 j + 3 (row 3)."""
        quads = range(0, 16, 4)

        def add(x: Any, y: Any, one: list[int], two: list[int]) -> Any:
            return b.add(emit.shuffle(b, x, y, one), emit.shuffle(b, x, y, two))

        firsts = [i for q in quads for i in (q, 16 + q, q + 1, 17 + q)]
        seconds = [i for q in quads for i in (q + 2, 18 + q, q + 3, 19 + q)]
        x, y = add(rows[0], rows[1], firsts, seconds), add(rows[2], rows[3], firsts, seconds)
        firsts = [i for q in quads for i in (q, q + 1, 16 + q, 17 + q)]
        seconds = [i for q in quads for i in (q + 2, q + 3, 18 + q, 19 + q)]
        return add(x, y, firsts, seconds)

    def code(b: Any, acc: Any, *arguments: Any) -> Any:
        acc, rows = tiles.split(b, acc), [tiles.split(b, row) for row in arguments[:4]]
        first, offsets, a = arguments[4:8], (None, *arguments[8:11]), arguments[11]
        floats = [
            b.sitofp(by_block(b, [row[token] for row in rows]), ir.VectorType(emit.F32, 16))
            for token in range(len(acc))
        ]
        for j, offset in enumerate(offsets):
            at = [b.add(p, offset) for p in first] if offset is not None else first
            by_row, added = scales_of_rows(b, at, f.added)
            for token, values in enumerate(floats):
                here = token * QUAD_BYTES + 4 * j
                d = b.fmul(by_row, emit.splat(b, emit.load_at(b, a, emit.F32, here + QUAD_D), 4))
                block = emit.shuffle(b, values, values, range(4 * j, 4 * j + 4))
                acc[token] = emit.fma_f32(b, block, d, acc[token])
                if added is not None:
                    total = emit.splat(b, emit.load_at(b, a, emit.F32, here + QUAD_D_SUMS), 4)
                    acc[token] = emit.fma_f32(b, added, total, acc[token])
        return tiles.join(b, acc)

    return code


def scales_of_rows(b: Any, at: Any, added_at: int | None) -> tuple[Any, Any]:
    """The float16 at four addresses as <4 x float>, and those at `added_at`, right behind them, or None."""
    from gemmafile.kernels import emit

    if added_at is None:
        return emit.load_halves(b, at), None
    assert added_at == 2
    return emit.load_half_pairs(b, at, 0)
