"""The K-quants' products for many tokens on Intel's matrix unit; the twin of `superblocks.matmul`, to the bit.

The unit multiplies bytes and adds up int32 over a whole super-block, so the sub-scales go into the weights first:
sub-scale * weight has up to 14 bits and is split into 128 * high + low, two signed bytes. I = 128 * (high · q) +
(low · q) is the same exact integer; the float steps after it are the same too (docs/numerics.md).

A task is 128 weight rows. Two super-blocks of 32 rows at a time are unpacked into panels of 16 rows,
[k / 4][16 rows][4], which the unit reads as its right-hand tiles; they stay in the first-level cache while all tokens
pass by. Left-hand tiles are 16 tokens x 64 activations straight from `packing.py`'s layout: two super-blocks of all
tokens stay in the second-level cache for the 128 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gemmafile.kernels.ops import ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import SUPER_BYTES, SUPER_D, SUPER_SUMS_16, SUPER_SUMS_32

if TYPE_CHECKING:
    from gemmafile.kernels.superblocks import SuperBlock

TASK_ROWS, CHUNK_ROWS, PANEL_BLOCKS = 128, 32, 2
_PANEL = 64 * 64
"""Bytes of 16 rows x 256 weights."""
_META = 1024 + 128
"""Minima of 16 rows, then d and the scale of the minima."""
_UNPACKED, _SUMS = 9 * 1024, 4 * 1024 + 256
SCRATCH_NEEDED = 64 + _UNPACKED + 2 * PANEL_BLOCKS * (2 * _PANEL + _META) + 3 * _SUMS


def make_matmul(f: SuperBlock) -> Callable[..., None]:
    from gemmafile.kernels import amx, simd
    from gemmafile.kernels.streams import COLUMNS, OUT, OUT_STRIDE, PACKED, ROW_BYTES, WEIGHTS, N, make_take
    from gemmafile.kernels.superblocks import no_scales
    from gemmafile.kernels.transposes import transposer

    unit = amx.tiles()
    write_config = amx.config_writer([16] * 8, [64] * 8)
    configure, release = unit.configure, unit.release
    # Tiles 0, 1: low parts of two groups of 16 tokens; 2, 3: high parts; 4, 5: tokens; 6: low weights; 7: high ones.
    # Four sums at a time: an addition to a tile takes as long as four products.
    zero0, zero1, zero2, zero3 = (unit.zero(i) for i in range(4))
    store0, store1, store2, store3 = (unit.store(i) for i in range(4))
    load4, load5, load6, load7 = (unit.load(i) for i in range(4, 8))
    dot0, dot1, dot2, dot3 = unit.dot(0, 4, 6), unit.dot(1, 5, 6), unit.dot(2, 4, 7), unit.dot(3, 5, 7)
    load, load_f16, store_f32, take = simd.load_i64, simd.load_f16, simd.store_f32, make_take()
    quotient, remainder, store_bytes, store_ints = simd.quotient, simd.remainder, simd.store_u8x64, simd.store_i32x16
    bytes_, d_at, min_at, chunk, scales = f.bytes, f.d, f.min_scale, f.chunk, f.scales or no_scales()
    has_minimum = f.sub_minima > 0
    scaled = [make_scaled(f, j) for j in range(4)]
    scaled0, scaled1, scaled2, scaled3 = scaled
    transpose = transposer([64 * i for i in range(16)])
    finish0, finish1, finish2, finish3 = (_make_finish(f, range(8 * j, 8 * j + 8)) for j in range(4))

    @simd.device
    def unpack(weights, row_bytes, first, n, block, unpacked, panels, minima):
        """One super-block of 16 rows (the last one again where there are fewer): low panel, high panel, minima, d."""
        d = minima + 1024
        for i in range(16):
            p = weights + min(first + i, n - 1) * row_bytes + block * bytes_
            s = scales(p)
            at = unpacked + 64 * i
            low, high = scaled0(chunk(p, 0), s)
            store_bytes(at, low)
            store_bytes(at + 4096, high)
            low, high = scaled1(chunk(p, 1), s)
            store_bytes(at + 1024, low)
            store_bytes(at + 5120, high)
            low, high = scaled2(chunk(p, 2), s)
            store_bytes(at + 2048, low)
            store_bytes(at + 6144, high)
            low, high = scaled3(chunk(p, 3), s)
            store_bytes(at + 3072, low)
            store_bytes(at + 7168, high)
            store_f32(d + 4 * i, load_f16(p + d_at))
            if has_minimum:
                store_ints(at + 8192, s)
                store_f32(d + 64 + 4 * i, load_f16(p + min_at))
        for j in range(8):
            transpose(unpacked + 1024 * j, panels + 1024 * j)
        if has_minimum:
            transpose(unpacked + 8192, minima)

    @simd.device
    def step(a, panel, j):
        """64 columns of 32 tokens x 16 rows."""
        load4(a + 64 * j, SUPER_BYTES)
        load6(panel + 1024 * j, 64)
        dot0()
        load5(a + 16 * SUPER_BYTES + 64 * j, SUPER_BYTES)
        dot1()
        load7(panel + _PANEL + 1024 * j, 64)
        dot2()
        dot3()

    @simd.device
    def finish(sums, a, meta, c, c_stride, block):
        finish0(sums, a, meta, c, c_stride, block)
        finish1(sums, a, meta, c, c_stride, block)
        finish2(sums, a, meta, c, c_stride, block)
        finish3(sums, a, meta, c, c_stride, block)

    def matmul(op, shared, thread):
        """out[t][r] for many tokens. Reads the weights once, the activations once per 32 rows."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> 8
        tokens = load(shared + load(op + ROWS))
        if tokens == 0:
            return
        stride = quotient(tokens + 5, 6) * 6 * SUPER_BYTES
        out_stride = load(op + OUT_STRIDE)
        config = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        unpacked = config + 64
        panels = unpacked + _UNPACKED
        meta = panels + 2 * PANEL_BLOCKS * 2 * _PANEL
        sums = meta + 2 * PANEL_BLOCKS * _META
        write_config(config)
        configure(config)
        while True:
            task = take(op, shared, TASK_ROWS, n)
            if task >= n:
                break
            block = 0
            while block < n_blocks:
                here = min(PANEL_BLOCKS, n_blocks - block)
                first = task
                while first < min(task + TASK_ROWS, n):
                    for k in range(here):
                        for half in range(2):
                            unpack(weights, row_bytes, first + 16 * half, n, block + k, unpacked,
                                   panels + (2 * k + half) * 2 * _PANEL, meta + (2 * k + half) * _META)  # fmt: skip
                    # The float steps of a tile go in between the products of the next one: a load that meets the
                    # unit's own stores on their way to memory would wait, and the unit's pauses are filled.
                    items = 2 * here * quotient(tokens + 31, 32)
                    last_a, last_c, last_meta, last_block, last_sums = 0, 0, 0, 0, 0
                    next_a, next_c, next_meta, next_block, next_sums = 0, 0, 0, 0, 0
                    here_sums = sums
                    for item in range(items):
                        t = 32 * quotient(item, 2 * here)
                        k = remainder(item, 2 * here) >> 1
                        half = item & 1
                        a = load(op + PACKED) + (block + k) * stride + t * SUPER_BYTES
                        panel = panels + (2 * k + half) * 2 * _PANEL
                        here_sums += _SUMS
                        if here_sums > sums + 2 * _SUMS:
                            here_sums = sums
                        zero0()
                        zero1()
                        zero2()
                        zero3()
                        step(a, panel, 0)
                        if item > 1:
                            finish0(last_sums, last_a, last_meta, last_c, out_stride, last_block)
                        step(a, panel, 1)
                        if item > 1:
                            finish1(last_sums, last_a, last_meta, last_c, out_stride, last_block)
                        step(a, panel, 2)
                        if item > 1:
                            finish2(last_sums, last_a, last_meta, last_c, out_stride, last_block)
                        step(a, panel, 3)
                        if item > 1:
                            finish3(last_sums, last_a, last_meta, last_c, out_stride, last_block)
                        store0(here_sums, 64)
                        store2(here_sums + 1024, 64)
                        store1(here_sums + 2048, 64)
                        store3(here_sums + 3072, 64)
                        last_a, last_c, last_meta, last_block, last_sums = (
                            next_a,
                            next_c,
                            next_meta,
                            next_block,
                            next_sums,
                        )
                        next_a, next_block, next_sums = a, block + k, here_sums
                        next_c = load(op + OUT) + t * out_stride + 4 * (first + 16 * half)
                        next_meta = meta + (2 * k + half) * _META
                    if items > 1:
                        finish(last_sums, last_a, last_meta, last_c, out_stride, last_block)
                    finish(next_sums, next_a, next_meta, next_c, out_stride, next_block)
                    first += CHUNK_ROWS
                block += here
        release()

    return matmul


def make_scaled(f: SuperBlock, j: int) -> Any:
    """scaled(chunk, scales) -> (low, high): 64 weights of chunk j times their sub-scales, split into two bytes."""
    import llvmlite.ir as ir
    from numba.core import types

    from gemmafile.kernels import emit

    words = ir.VectorType(emit.I16, 32)
    n = f.sub_scales
    pair = types.UniTuple(emit.vec("u8", 64), 2)

    def splat(value: int) -> Any:
        return emit.splat_constant(words, value)

    def code(b: Any, chunk: Any, scales: Any) -> Any:
        """Bytes of even and of odd places are widened and put together again by masks and shifts: no shuffles."""
        both = b.bitcast(chunk, words)
        even, odd = b.and_(both, splat(0xFF)), b.lshr(both, splat(8))
        if f.offset:
            even, odd = b.sub(even, splat(f.offset)), b.sub(odd, splat(f.offset))
        if n:
            short = b.trunc(emit.shuffle(b, scales, scales, range(n)), ir.VectorType(emit.I16, n))
            by = emit.shuffle(b, short, short, [(64 * j + 2 * i) // (256 // n) for i in range(32)])
            even, odd = b.mul(even, by), b.mul(odd, by)
        low = b.or_(b.and_(even, splat(0x7F)), b.and_(b.shl(odd, splat(8)), splat(0x7F00)))
        high = b.or_(b.and_(b.ashr(even, splat(7)), splat(0xFF)), b.and_(b.shl(odd, splat(1)), splat(0xFF00)))
        bytes_ = ir.VectorType(emit.I8, 64)
        result = ir.Constant(ir.ArrayType(bytes_, 2), ir.Undefined)
        return b.insert_value(b.insert_value(result, b.bitcast(low, bytes_), 0), b.bitcast(high, bytes_), 1)

    return emit.make(pair, [emit.vec("u8", 64), emit.vec("i32", 16)], code)


def _make_finish(f: SuperBlock, tokens: range) -> Any:
    """finish(sums, a, meta, c, c_stride, block): one super-block's float steps for these tokens x 16 rows."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    ints, floats = ir.VectorType(emit.I32, 16), ir.VectorType(emit.F32, 16)

    def code(b: Any, sums: Any, a: Any, meta: Any, c: Any, c_stride: Any, block: Any) -> None:
        by_row, least_by_row = emit.load_at(b, meta, floats, 1024), emit.load_at(b, meta, floats, 1088)
        steps, sums_at = range(f.sub_minima // 2), SUPER_SUMS_16 if f.sub_minima == 16 else SUPER_SUMS_32
        pairs = [emit.load_at(b, meta, ir.VectorType(emit.I16, 32), 64 * (f.sub_scales + s)) for s in steps]
        is_first = b.icmp_signed("==", block, ir.Constant(emit.I64, 0))
        for t in tokens:
            at = b.add(c, b.mul(c_stride, ir.Constant(emit.I64, t)))
            place = 2048 * (t // 16) + 64 * (t % 16)
            low, high = emit.load_at(b, sums, ints, place), emit.load_at(b, sums, ints, place + 1024)
            total = b.add(b.shl(high, emit.splat_constant(ints, 7)), low)
            token = SUPER_BYTES * t
            d_token = emit.splat(b, emit.load_at(b, a, emit.F32, token + SUPER_D), 16)
            acc = b.select(is_first, emit.splat_constant(floats, 0.0), emit.load_at(b, at, floats))
            acc = emit.fma_f32(b, b.sitofp(total, floats), b.fmul(by_row, d_token), acc)
            if f.sub_minima:
                least = emit.splat_constant(ints, 0)
                for s in steps:
                    two = emit.splat(b, emit.load_at(b, a, emit.I32, token + sums_at + 4 * s), 16)
                    least = emit.dot_words(b, least, pairs[s], b.bitcast(two, ir.VectorType(emit.I16, 32)))
                acc = emit.fma_f32(b, b.sitofp(least, floats), b.fneg(b.fmul(least_by_row, d_token)), acc)
            emit.store_at(b, acc, at)

    return emit.make(emit.void, [emit.address] * 6, code)
