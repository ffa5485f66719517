"""The 32-blocks' products for many tokens on Intel's matrix unit; the twin of `quads.matmul`, to the bit.

A block's 32 weights, as signed bytes with their offset taken off, times 32 activations are one step of the unit and
one exact integer a row and token; the law's float step follows (docs/numerics.md).

A task is 128 weight rows. Four quads (512 columns) of 32 rows at a time are unpacked into panels of 16 rows,
[block][8][16 rows][4], which the unit reads as its right-hand tiles. Left-hand tiles are 16 tokens x 32 activations
from `packing.py`'s layout "int8_32_many". A tile's float steps go in between the products of the next one
(`superblocks_amx.py` says why).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gemmafile.kernels.ops import ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import QUAD_BYTES, QUAD_D, QUAD_D_SUMS

if TYPE_CHECKING:
    from gemmafile.kernels.quads import Quad

TASK_ROWS, CHUNK_ROWS, PANEL_QUADS = 128, 32, 4
_PANEL = 4 * 8 * 64
"""Bytes of 16 rows x 128 weights."""
_D = 4 * 64
_UNPACKED, _SUMS = 2 * 1024, 8 * 1024
SCRATCH_NEEDED = 64 + _UNPACKED + 2 * PANEL_QUADS * (_PANEL + 2 * _D) + 2 * _SUMS


def make_matmul(f: Quad) -> Callable[..., None]:
    from gemmafile.kernels import amx, emit, simd
    from gemmafile.kernels.streams import COLUMNS, OUT, OUT_STRIDE, PACKED, ROW_BYTES, WEIGHTS, N, make_take
    from gemmafile.kernels.transposes import transposer

    unit = amx.tiles()
    # Tiles 0 to 3: sums of two blocks for two groups of 16 tokens; 4, 5: tokens; 6: weights.
    write_config = amx.config_writer([16] * 6 + [8], [64] * 4 + [32] * 2 + [64])
    configure, release = unit.configure, unit.release
    zero0, zero1, zero2, zero3 = (unit.zero(i) for i in range(4))
    store0, store1, store2, store3 = (unit.store(i) for i in range(4))
    load4, load5, load6 = (unit.load(i) for i in range(4, 7))
    dot0, dot1, dot2, dot3 = unit.dot(0, 4, 6), unit.dot(1, 5, 6), unit.dot(2, 4, 6), unit.dot(3, 5, 6)
    load, load_f16, store_f32, take = simd.load_i64, simd.load_f16, simd.store_f32, make_take()
    quotient, remainder, store_bytes = simd.quotient, simd.remainder, simd.store_u8x64
    fetch_results = simd.row_prefetcher(4, 4 * CHUNK_ROWS, level=1)
    bytes_, added_at, halves = f.bytes, f.added or 0, f.halves
    is_added_to = f.added is not None
    bytes_64 = emit.vec("u8", 64)
    take_off = emit.make(bytes_64, [bytes_64], lambda b, v: b.sub(v, emit.splat_constant(v.type, f.offset)))
    transpose_low = transposer([512 * (i // 4) + 64 * (i % 4) for i in range(16)])
    transpose_high = transposer([512 * (i // 4) + 256 + 64 * (i % 4) for i in range(16)])
    finish0, finish1, finish2, finish3 = (_make_finish(f, range(8 * j, 8 * j + 8)) for j in range(4))

    @simd.device
    def unpack(weights, row_bytes, first, n, n_blocks, quad, unpacked, panel, d):
        """One quad of 16 rows (the last one again where there are fewer): panel, scales, offsets."""
        left = min(4, n_blocks - 4 * quad)
        o1, o2, o3 = min(1, left - 1) * bytes_, min(2, left - 1) * bytes_, min(3, left - 1) * bytes_
        for i in range(16):
            p = weights + min(first + i, n - 1) * row_bytes + quad * 4 * bytes_
            low, high = halves(p, p + o1, p + o2, p + o3)
            store_bytes(unpacked + 64 * i, take_off(low))
            store_bytes(unpacked + 1024 + 64 * i, take_off(high))
            at = d + 4 * i
            store_f32(at, load_f16(p))
            store_f32(at + 64, load_f16(p + o1))
            store_f32(at + 128, load_f16(p + o2))
            store_f32(at + 192, load_f16(p + o3))
            if is_added_to:
                store_f32(at + _D, load_f16(p + added_at))
                store_f32(at + _D + 64, load_f16(p + o1 + added_at))
                store_f32(at + _D + 128, load_f16(p + o2 + added_at))
                store_f32(at + _D + 192, load_f16(p + o3 + added_at))
        transpose_low(unpacked, panel)
        transpose_high(unpacked + 1024, panel)

    @simd.device
    def two_blocks(a, panel, sums):
        """Integers of two blocks, 32 tokens x 16 rows."""
        zero0()
        zero1()
        zero2()
        zero3()
        load6(panel, 64)
        load4(a, QUAD_BYTES)
        dot0()
        load5(a + 16 * QUAD_BYTES, QUAD_BYTES)
        dot1()
        load6(panel + 512, 64)
        load4(a + 32, QUAD_BYTES)
        dot2()
        load5(a + 16 * QUAD_BYTES + 32, QUAD_BYTES)
        dot3()

    @simd.device
    def keep(sums):
        store0(sums, 64)
        store1(sums + 1024, 64)
        store2(sums + 2048, 64)
        store3(sums + 3072, 64)

    @simd.device
    def finish(sums, a, d, c, c_stride, quad):
        finish0(sums, a, d, c, c_stride, quad)
        finish1(sums, a, d, c, c_stride, quad)
        finish2(sums, a, d, c, c_stride, quad)
        finish3(sums, a, d, c, c_stride, quad)

    def matmul(op, shared, thread):
        """out[t][r] for many tokens. Reads the weights once, the activations once per 32 rows."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> 5
        n_quads = (n_blocks + 3) >> 2
        tokens = load(shared + load(op + ROWS))
        if tokens == 0:
            return
        stride = quotient(tokens + 5, 6) * 6 * QUAD_BYTES
        out_stride = load(op + OUT_STRIDE)
        config = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        unpacked = config + 64
        panels = unpacked + _UNPACKED
        scales = panels + 2 * PANEL_QUADS * _PANEL
        sums = scales + 2 * PANEL_QUADS * 2 * _D
        write_config(config)
        configure(config)
        while True:
            task = take(op, shared, TASK_ROWS, n)
            if task >= n:
                break
            quad = 0
            while quad < n_quads:
                here = min(PANEL_QUADS, n_quads - quad)
                first = task
                while first < min(task + TASK_ROWS, n):
                    for k in range(here):
                        for half in range(2):
                            unpack(weights, row_bytes, first + 16 * half, n, n_blocks, quad + k, unpacked,
                                   panels + (2 * k + half) * _PANEL, scales + (2 * k + half) * 2 * _D)  # fmt: skip
                    items = 2 * here * quotient(tokens + 31, 32)
                    last_a, last_c, last_d, last_quad, last_sums = 0, 0, 0, 0, 0
                    for item in range(items):
                        t = 32 * quotient(item, 2 * here)
                        half = quotient(remainder(item, 2 * here), here)
                        k = remainder(item, here)
                        a = load(op + PACKED) + (quad + k) * stride + t * QUAD_BYTES
                        panel = panels + (2 * k + half) * _PANEL
                        here_sums = sums + _SUMS * (item & 1)
                        # Results of the next 32 tokens, a few with each item: at first they are in no cache at all.
                        fetch_results(load(op + OUT) + (t + 32 + 4 * (item & 7)) * out_stride + 4 * first, out_stride)
                        two_blocks(a, panel, here_sums)
                        if item > 0:
                            finish0(last_sums, last_a, last_d, last_c, out_stride, last_quad)
                            finish1(last_sums, last_a, last_d, last_c, out_stride, last_quad)
                        keep(here_sums)
                        two_blocks(a + 64, panel + 1024, here_sums)
                        if item > 0:
                            finish2(last_sums, last_a, last_d, last_c, out_stride, last_quad)
                            finish3(last_sums, last_a, last_d, last_c, out_stride, last_quad)
                        keep(here_sums + 4096)
                        last_a, last_quad, last_sums = a, quad + k, here_sums
                        last_c = load(op + OUT) + t * out_stride + 4 * (first + 16 * half)
                        last_d = scales + (2 * k + half) * 2 * _D
                    finish(last_sums, last_a, last_d, last_c, out_stride, last_quad)
                    first += CHUNK_ROWS
                quad += here
        release()

    return matmul


def _make_finish(f: Quad, tokens: range) -> Any:
    """finish(sums, a, d, c, c_stride, quad): the law's float steps of four blocks for these tokens x 16 rows."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    ints, floats = ir.VectorType(emit.I32, 16), ir.VectorType(emit.F32, 16)

    def code(b: Any, sums: Any, a: Any, d: Any, c: Any, c_stride: Any, quad: Any) -> None:
        by_row = [emit.load_at(b, d, floats, 64 * j) for j in range(4)]
        offset = [emit.load_at(b, d, floats, _D + 64 * j) for j in range(4)]
        is_first = b.icmp_signed("==", quad, ir.Constant(emit.I64, 0))
        for t in tokens:
            at = b.add(c, b.mul(c_stride, ir.Constant(emit.I64, t)))
            acc = b.select(is_first, emit.splat_constant(floats, 0.0), emit.load_at(b, at, floats))
            for j in range(4):
                total = emit.load_at(b, sums, ints, 2048 * j + 1024 * (t // 16) + 64 * (t % 16))
                d_token = emit.splat(b, emit.load_at(b, a, emit.F32, QUAD_BYTES * t + QUAD_D + 4 * j), 16)
                acc = emit.fma_f32(b, b.sitofp(total, floats), b.fmul(by_row[j], d_token), acc)
                if f.added is not None:
                    token_sum = emit.splat(b, emit.load_at(b, a, emit.F32, QUAD_BYTES * t + QUAD_D_SUMS + 4 * j), 16)
                    acc = emit.fma_f32(b, offset[j], token_sum, acc)
            emit.store_at(b, acc, at)

    return emit.make(emit.void, [emit.address] * 6, code)
