"""Matrix kernels of the K-quants: super-blocks of 256 weights with integer sub-scales.

A format gives four facts about a super-block at an address (`SuperBlock`); the kernels are built from them:

    matvec  1 to 3 tokens: 4 weight rows side by side, straight from the file's bytes, lanes run along K
    matmul  more: 32 rows x 512 columns are unpacked into a panel of bytes, lanes are rows; the panel meets the
            tokens in tiles of 6

Both compute, for each row and super-block, the same exact integers I and M and then the same float steps
(docs/numerics.md), so a token's results are the same bits in either. Activations: `packing.py`, "int8_256".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gemmafile.kernels.ops import NEXT, ROWS, SCRATCH, SCRATCH_BYTES, slots
from gemmafile.kernels.packing import SUPER_BYTES, SUPER_D, SUPER_MINUS_SUMS, SUPER_SUMS, TOKEN_TILE

WEIGHTS, ROW_BYTES, N, COLUMNS, PACKED, PACKED_STRIDE, OUT, OUT_STRIDE = slots(
    "WEIGHTS ROW_BYTES N COLUMNS PACKED PACKED_STRIDE OUT OUT_STRIDE"
)
"""PACKED_STRIDE is the row stride of the activations of the float formats (`dots.py`) only."""

CHUNK_ROWS = 32
PANEL_BLOCKS = 2
"""Super-blocks in a panel: 2 x 8 KB stay in the first-level cache with their activations."""
_PANEL, _SCALES, _D = 64 * 32 * 4, 16 * 32 * 4, 32 * 4
_UNPACKED = 5 * 1024
SCRATCH_NEEDED = _UNPACKED + PANEL_BLOCKS * (_PANEL + _SCALES + 2 * _D) + 256


@dataclass(frozen=True)
class SuperBlock:
    """What the kernels must know of a format. All functions are `simd.device`s.

    bytes       of a super-block
    d, minimum  byte offsets of its float16 scale and, if it has one, of the scale of its minima
    chunk(p, j) u8x64: weights 64 j ... 64 j + 63 as unsigned numbers (the offset still in them)
    scales(p)   i32x16: sub-scales; with minima: 8 sub-scales, then the 8 sub-minima as 4 pairs of int16
    sub_blocks  8 or 16
    offset_bits weights are chunk - 2^offset_bits; None: no offset
    """

    bytes: int
    d: int
    minimum: int | None
    chunk: Any
    scales: Any
    sub_blocks: int
    offset_bits: int | None


def build_kernels(f: SuperBlock) -> dict[str, Callable[..., None]]:
    return {"matvec": _make_matvec(f), "matmul": _make_matmul(f)}


def _make_matvec(f: SuperBlock) -> Callable[..., None]:
    import llvmlite.ir as ir
    from numba.core import types

    from gemmafile.kernels import emit, simd

    load, load_f32, atomic_add, quotient = simd.load_i64, simd.load_f32, simd.atomic_add, simd.quotient
    load_a, load_sums, store_4, splat_4 = simd.load_i8x64, simd.load_i32x16, simd.store_f32x4, simd.splat_f32x4
    fma_4, to_float_4 = simd.fma_x4, simd.i32_to_f32x4
    bytes_, d_at, min_at, chunk, scales = f.bytes, f.d, f.minimum, f.chunk, f.scales
    has_minimum, has_offset = f.minimum is not None, f.offset_bits is not None
    shift = f.offset_bits or 0
    v16, u64, s64 = emit.vec("i32", 16), emit.vec("u8", 64), emit.vec("i8", 64)
    lanes_per_sub = 64 // f.sub_blocks  # of the 16 lanes of a chunk's dot product
    prefetch_rows = simd.prefetcher(4 * f.bytes)

    def spread(j: int) -> Any:
        """Sub-scales of chunk j onto the lanes of its dot product."""
        first = j * f.sub_blocks // 4
        return simd.shuffler("i32", 16, [first + lane // lanes_per_sub for lane in range(16)])

    def starts(j: int) -> Any:
        """Minus the sums of chunk j's sub-blocks of 16, times the offset, in the first lane of each."""

        def code(b: Any, sums: Any) -> Any:
            shifted = b.shl(sums, emit.splat_constant(sums.type, shift))
            lanes = [16 if lane % 4 else 4 * j + lane // 4 for lane in range(16)]
            return emit.shuffle(b, shifted, emit.splat_constant(sums.type, 0), lanes)

        return emit.make(v16, [v16], code)

    def dot_code(b: Any, acc: Any, u: Any, s: Any) -> Any:
        return emit.dot_bytes(b, acc, u, s, below_128=True)

    dot = emit.make(v16, [v16, u64, s64], dot_code)
    spread0, spread1, spread2, spread3 = (spread(j) for j in range(4))
    start0, start1, start2, start3 = (starts(j) for j in range(4))
    zero = simd.constants("i32", [0] * 16)

    @simd.device
    def integer_sum(p, a):
        """Lanes whose sum is I of the super-block at p with the activations at a."""
        s = scales(p)
        if has_offset:
            sums = load_sums(a + SUPER_MINUS_SUMS)
            t0, t1, t2, t3 = start0(sums), start1(sums), start2(sums), start3(sums)
        else:
            t0, t1, t2, t3 = zero(), zero(), zero(), zero()
        t0 = dot(t0, chunk(p, 0), load_a(a)) * spread0(s, s)
        t1 = dot(t1, chunk(p, 1), load_a(a + 64)) * spread1(s, s)
        t2 = dot(t2, chunk(p, 2), load_a(a + 128)) * spread2(s, s)
        t3 = dot(t3, chunk(p, 3), load_a(a + 192)) * spread3(s, s)
        return (t0 + t1) + (t2 + t3)

    def minimum_code(b: Any, s: Any, a: Any) -> Any:
        """<4 x i32> whose sum is M, widened to 16 lanes."""
        t = ir.VectorType(emit.I16, 8)
        pairs = b.bitcast(emit.shuffle(b, s, s, range(8, 12)), t)
        zero_4 = emit.splat_constant(ir.VectorType(emit.I32, 4), 0)
        products = emit.dot_words(b, zero_4, pairs, emit.load_at(b, a, t, SUPER_SUMS))
        return emit.shuffle(b, products, zero_4, [0, 1, 2, 3] + [4] * 12)

    minimum_sum = emit.make(v16, [v16, emit.address], minimum_code)
    sum_rows = emit.make(emit.vec("i32", 4), [v16] * 4, lambda b, *rows: emit.tree_sum_rows(b, rows))

    def halves_code(b: Any, *at: Any) -> Any:
        t = ir.VectorType(emit.I16, 4)
        v = ir.Constant(t, ir.Undefined)
        for i, a in enumerate(at):
            v = b.insert_element(v, emit.load_at(b, a, emit.I16), ir.Constant(emit.I32, i))
        return emit.half_to_f32(b, v)

    four_halves = emit.make(emit.vec("f32", 4), [emit.address] * 4, halves_code)
    negate_4 = emit.make(emit.vec("f32", 4), [emit.vec("f32", 4)], lambda b, v: b.fneg(v))

    def matvec(op, shared, thread):
        """out[t][r] for 1 to 3 tokens, four rows at a time. Reads ROW_BYTES a row, once."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> 8
        tokens = load(shared + load(op + ROWS))
        if tokens == 0:
            return
        stride = quotient(tokens + 5, 6) * 6 * SUPER_BYTES
        while True:
            first = CHUNK_ROWS * atomic_add(op + NEXT, 1)
            if first >= n:
                return
            r = first
            while r < min(first + CHUNK_ROWS, n):
                r0 = weights + r * row_bytes
                r1 = weights + min(r + 1, n - 1) * row_bytes
                r2, r3 = weights + min(r + 2, n - 1) * row_bytes, weights + min(r + 3, n - 1) * row_bytes
                for t in range(tokens):
                    p0, p1, p2, p3 = r0, r1, r2, r3
                    ahead = r0 + 4 * row_bytes
                    a = load(op + PACKED) + t * SUPER_BYTES
                    acc = splat_4(types.float32(0))
                    for _ in range(n_blocks):
                        prefetch_rows(ahead)
                        i = sum_rows(integer_sum(p0, a), integer_sum(p1, a), integer_sum(p2, a), integer_sum(p3, a))
                        d = splat_4(load_f32(a + SUPER_D))
                        acc = fma_4(to_float_4(i), four_halves(p0 + d_at, p1 + d_at, p2 + d_at, p3 + d_at) * d, acc)
                        if has_minimum:
                            m = sum_rows(
                                minimum_sum(scales(p0), a), minimum_sum(scales(p1), a),
                                minimum_sum(scales(p2), a), minimum_sum(scales(p3), a),
                            )  # fmt: skip
                            least = four_halves(p0 + min_at, p1 + min_at, p2 + min_at, p3 + min_at) * d
                            acc = fma_4(to_float_4(m), negate_4(least), acc)
                        p0 += bytes_
                        p1 += bytes_
                        p2 += bytes_
                        p3 += bytes_
                        ahead += 4 * bytes_
                        a += stride
                    store_4(load(op + OUT) + t * load(op + OUT_STRIDE) + 4 * r, acc)
                r += 4

    return matvec


def _make_matmul(f: SuperBlock) -> Callable[..., None]:
    from gemmafile.kernels import simd
    from gemmafile.kernels.tiles import WeightTile, transposer

    load, load_f16, store_f32, atomic_add = simd.load_i64, simd.load_f16, simd.store_f32, simd.atomic_add
    quotient, prefetch, store_bytes, store_ints = simd.quotient, simd.prefetch, simd.store_u8x64, simd.store_i32x16
    bytes_, d_at, min_at, chunk, scales = f.bytes, f.d, f.minimum or 0, f.chunk, f.scales
    has_minimum, has_offset, sub_blocks = f.minimum is not None, f.offset_bits is not None, f.sub_blocks
    sub_size = 256 // f.sub_blocks
    sub_panel = sub_size // 4 * 128
    sums_per_sub = sub_size // 16
    assert not has_offset or sums_per_sub == 1
    tile = WeightTile(TOKEN_TILE, SUPER_BYTES, below_128=True)
    start, dot, dot_words = tile.start(f.offset_bits or 0), tile.dot(range(0, sub_size, 4)), tile.dot_words(4)
    zero_ints, zero_floats, load_tile, store_tile = tile.zero_ints, tile.zero_floats, tile.load, tile.store
    add_scaled, fma_ints, fma_ints_negative = tile.add_scaled, tile.fma_ints, tile.fma_ints_negative
    transpose = transposer([128 * i for i in range(16)])

    @simd.device
    def unpack(weights, row_bytes, first, n, block, unpacked, panel, scale_panel, d_panel):
        """One super-block of 32 rows (the last row again where there are fewer) into a panel."""
        for half in range(2):
            for i in range(16):
                p = weights + min(first + 16 * half + i, n - 1) * row_bytes + block * bytes_
                store_bytes(unpacked + 64 * i, chunk(p, 0))
                store_bytes(unpacked + 1024 + 64 * i, chunk(p, 1))
                store_bytes(unpacked + 2048 + 64 * i, chunk(p, 2))
                store_bytes(unpacked + 3072 + 64 * i, chunk(p, 3))
                store_ints(unpacked + 4096 + 64 * i, scales(p))
                store_f32(d_panel + 64 * half + 4 * i, load_f16(p + d_at))
                if has_minimum:
                    store_f32(d_panel + 128 + 64 * half + 4 * i, load_f16(p + min_at))
            for j in range(4):
                transpose(unpacked + 1024 * j, panel + 2048 * j + 64 * half)
            transpose(unpacked + 4096, scale_panel + 64 * half)

    @simd.device
    def prefetch_panel(weights, row_bytes, first, n, block, n_blocks):
        for i in range(32):
            p = weights + min(first + i, n - 1) * row_bytes + block * bytes_
            line = 0
            while line < n_blocks * bytes_:
                prefetch(p + line)
                line += 64

    def matmul(op, shared, thread):
        """out[t][r] for many tokens. Reads the weights once, the activations once per 32 rows."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> 8
        tokens = load(shared + load(op + ROWS))
        if tokens == 0:
            return
        stride = quotient(tokens + 5, 6) * 6 * SUPER_BYTES
        out_stride = load(op + OUT_STRIDE)
        unpacked = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        panels = unpacked + _UNPACKED
        scale_panels = panels + PANEL_BLOCKS * _PANEL
        d_panels = scale_panels + PANEL_BLOCKS * _SCALES
        while True:
            first = CHUNK_ROWS * atomic_add(op + NEXT, 1)
            if first >= n:
                return
            block = 0
            while block < n_blocks:
                here = min(PANEL_BLOCKS, n_blocks - block)
                for k in range(here):
                    unpack(weights, row_bytes, first, n, block + k, unpacked, panels + k * _PANEL,
                           scale_panels + k * _SCALES, d_panels + k * 2 * _D)  # fmt: skip
                following = min(PANEL_BLOCKS, n_blocks - block - here)
                prefetch_panel(weights, row_bytes, first, n, block + here, following)
                t = 0
                while t < tokens:
                    c = load(op + OUT) + t * out_stride + 4 * first
                    for k in range(here):
                        a = load(op + PACKED) + (block + k) * stride + t * SUPER_BYTES
                        panel, scale_panel, d = panels + k * _PANEL, scale_panels + k * _SCALES, d_panels + k * 2 * _D
                        total = zero_ints()
                        for s in range(sub_blocks):
                            if has_offset:
                                acc = start(a + SUPER_MINUS_SUMS + 4 * s)
                            else:
                                acc = zero_ints()
                            acc = dot(acc, panel + s * sub_panel, a + s * sub_size)
                            total = add_scaled(total, acc, scale_panel + 128 * s)
                        if block + k == 0:
                            sums = zero_floats()
                        else:
                            sums = load_tile(c, out_stride)
                        sums = fma_ints(sums, total, d, a + SUPER_D)
                        if has_minimum:
                            least = dot_words(scale_panel + 128 * 8, a + SUPER_SUMS)
                            sums = fma_ints_negative(sums, least, d + 128, a + SUPER_D)
                        store_tile(sums, c, out_stride)
                    t += TOKEN_TILE
                block += here

    return matmul


def shift_halves(low: int, high: int) -> Callable[..., Any]:
    """Right shifts of 16-bit lanes: the first half by `low`, the second by `high`."""

    def code(b: Any, v: Any) -> Any:
        from gemmafile.kernels import emit

        return b.lshr(v, emit.constant(v.type, [low] * (v.type.count // 2) + [high] * (v.type.count // 2)))

    return code
