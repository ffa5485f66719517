"""Activations packed for the matrix kernels: quantised once a row, read by every kernel of the format.

K-quants ("int8_256"), 384 bytes for 256 activations of one token; super-blocks one behind the other, in each all
tokens side by side:
    byte 0-255    q       int8[256]
    byte 256-319  minus the sums of 16 q each, int32[16]
    byte 320-335  the sums of 32 q each, int16[8]
    byte 336-339  d       float32
    byte 352-383  the sums of 16 q each, int16[16]

32-blocks ("int8_32"), 192 bytes for 128 activations (a quad of blocks), laid out alike:
    byte 0-63     q of the first halves of the four blocks, int8[4][16]
    byte 64-127   q of the second halves
    byte 128-143  d       float32[4]
    byte 144-159  minus the sum of q, int32[4]
    byte 160-175  d times the sum of q, float32[4]
A quad past the end of a row holds zeros. "int8_32_many", for the matrix unit, has q block by block, int8[4][32].

For up to 32 tokens on the matrix unit, in groups of 16 tokens side by side, lanes are tokens:

"int8_256_by_16", 4928 bytes for 256 activations of 16 tokens:
    byte 0-4095     q     int8[64][16 tokens][4]
    byte 4096-4159  d     float32[16]
    byte 4160-4415  the sums of 32 q each, int16[4][16][2]
    byte 4416-4927  the sums of 16 q each, int16[8][16][2]
"int8_32_by_16", 2560 bytes for 128 activations of 16 tokens:
    byte 0-2047     q     int8[4 blocks][8][16 tokens][4]
    byte 2048-2303  d     float32[4][16]
    byte 2304-2559  d times the sum of q, float32[4][16]

"bf16": rows of bfloat16, filled up with zeros to a multiple of 256 columns. "bf16_many", for the matrix unit, has
1024 bytes for 256 columns of a token, all tokens side by side: [16 lanes][16], a number in four bytes, those of a lane
in the order of its chain (`bf16.py`).

Exactly what `quantize_activations` of a format states; twins in `activations.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels.ops import NEXT, ROWS, slots

X, X_STRIDE, PACKED, COLUMNS = slots("X X_STRIDE PACKED COLUMNS")

SUPER_BYTES, SUPER_MINUS_SUMS, SUPER_SUMS_32, SUPER_D, SUPER_SUMS_16 = 384, 256, 320, 336, 352
QUAD_BYTES, QUAD_D, QUAD_MINUS_SUMS, QUAD_D_SUMS = 192, 128, 144, 160
BF16_CHUNK, BF16_MANY_BYTES = 256, 1024
SUPER_16_BYTES, SUPER_16_D, SUPER_16_SUMS_32, SUPER_16_SUMS_16 = 4928, 4096, 4160, 4416
QUAD_16_BYTES, QUAD_16_D, QUAD_16_D_SUMS = 2560, 2048, 2304
TOKEN_TILE = 6
"""Tokens a matrix product takes at a time; buffers of activations and results have room for whole tiles."""


def padded_tokens(n: int) -> int:
    return -(-n // TOKEN_TILE) * TOKEN_TILE


def allocated_tokens(n: int) -> int:
    """Rows that buffers of activations and results have: whole tiles of any kernel, so that none needs a tail."""
    return -(-n // 96) * 96


def packed_bytes(kind: str, columns: int, tokens: int) -> int:
    """Bytes that a buffer for packed activations needs, for the matrix unit or not."""
    if kind == "int8_256":
        return columns // 256 * SUPER_BYTES * allocated_tokens(tokens)
    if kind.startswith("int8_32"):
        return -(-columns // 128) * QUAD_BYTES * allocated_tokens(tokens)
    return -(-columns // BF16_CHUNK) * BF16_MANY_BYTES * allocated_tokens(tokens)


def kernels() -> dict[str, Callable[..., None]]:
    from numba.core import types

    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.rounding import larger, quantized, scale_and_d

    f32 = types.float32
    load, atomic_add, load_v, load_part = simd.load_i64, simd.atomic_add, simd.load_f32x16, simd.load_part_f32x16
    store_f32, store_i32, store_i16, store_q = simd.store_f32, simd.store_i32, simd.store_i16, simd.store_i8x16
    splat, absolute, fma = simd.splat_f32x16, simd.absolute, simd.fma
    max_lanes, sum_lanes, sum_ints = simd.max_f32x16, simd.sum_f32x16, simd.sum_i32x16
    to_bytes, quotient, remainder = simd.i32_to_i8x16, simd.quotient, simd.remainder
    store_bf16 = simd.store_bf16x16
    f32x16 = emit.vec("f32", 16)
    scatter = emit.make(emit.void, [emit.address, f32x16, f32x16], _scatter_pairs)
    store_fours = _four_storer()

    @simd.device
    def padded(tokens):
        return quotient(tokens + 5, 6) * 6

    @simd.device
    def quantized_block(x, column, columns):
        """The 32 numbers from a column on, zeros past the last: q in two vectors, their sum, d."""
        x += 4 * column
        v0, v1 = load_part(x, columns - column), load_part(x + 64, columns - column - 16)
        taint = fma(v1, splat(f32(0)), v0 * splat(f32(0)))
        scale, d = scale_and_d(max_lanes(larger(absolute(v0), absolute(v1))), sum_lanes(taint))
        q0, q1 = quantized(v0, scale), quantized(v1, scale)
        return q0, q1, sum_ints(q0 + q1), d

    def int8_256(op, shared, thread):
        n_blocks = quotient(load(op + COLUMNS), 256)
        tokens = load(shared + load(op + ROWS))
        n_tasks = tokens * n_blocks
        while True:
            first = 8 * atomic_add(op + NEXT, 1)
            if first >= n_tasks:
                return
            for task in range(first, min(first + 8, n_tasks)):
                row, block = quotient(task, n_blocks), remainder(task, n_blocks)
                x = load(op + X) + row * load(op + X_STRIDE) + 1024 * block
                out = load(op + PACKED) + (block * padded(tokens) + row) * SUPER_BYTES
                largest, taint = splat(f32(0)), splat(f32(0))
                for i in range(16):
                    v = load_v(x + 64 * i)
                    largest, taint = larger(absolute(v), largest), fma(v, splat(f32(0)), taint)
                scale, d = scale_and_d(max_lanes(largest), sum_lanes(taint))
                before = types.int32(0)
                for i in range(16):
                    q = quantized(load_v(x + 64 * i), scale)
                    store_q(out + 16 * i, to_bytes(q))
                    total = sum_ints(q)
                    store_i32(out + SUPER_MINUS_SUMS + 4 * i, types.int32(-total))
                    store_i16(out + SUPER_SUMS_16 + 2 * i, types.int16(total))
                    if i & 1:
                        store_i16(out + SUPER_SUMS_32 + (i - 1), types.int16(before + total))
                    before = total
                store_f32(out + SUPER_D, d)

    def int8_256_by_16(op, shared, thread):
        n_blocks = quotient(load(op + COLUMNS), 256)
        tokens = load(shared + load(op + ROWS))
        groups, n_tasks = (tokens + 15) >> 4, tokens * n_blocks
        while True:
            first = 8 * atomic_add(op + NEXT, 1)
            if first >= n_tasks:
                return
            for task in range(first, min(first + 8, n_tasks)):
                row, block = quotient(task, n_blocks), remainder(task, n_blocks)
                x = load(op + X) + row * load(op + X_STRIDE) + 1024 * block
                out = load(op + PACKED) + (block * groups + (row >> 4)) * SUPER_16_BYTES
                lane = 4 * (row & 15)
                largest, taint = splat(f32(0)), splat(f32(0))
                for i in range(16):
                    v = load_v(x + 64 * i)
                    largest, taint = larger(absolute(v), largest), fma(v, splat(f32(0)), taint)
                scale, d = scale_and_d(max_lanes(largest), sum_lanes(taint))
                before = types.int32(0)
                for i in range(16):
                    q = quantized(load_v(x + 64 * i), scale)
                    store_fours(out + 256 * i + lane, to_bytes(q))
                    total = sum_ints(q)
                    sums = out + 64 * (i >> 1) + lane + 2 * (i & 1)
                    store_i16(sums + SUPER_16_SUMS_16, types.int16(total))
                    if i & 1:
                        sums = out + 64 * (i >> 2) + lane + (i & 2)
                        store_i16(sums + SUPER_16_SUMS_32, types.int16(before + total))
                    before = total
                store_f32(out + SUPER_16_D + lane, d)
                if row == tokens - 1:  # old numbers of tokens that are not there could slow the float steps down
                    for rest in range(lane + 4, 64, 4):
                        store_f32(out + SUPER_16_D + rest, f32(0))

    def int8_32_by_16(op, shared, thread):
        columns = load(op + COLUMNS)
        n_quads = quotient(columns + 127, 128)
        tokens = load(shared + load(op + ROWS))
        groups, n_tasks = (tokens + 15) >> 4, tokens * n_quads
        while True:
            first = 16 * atomic_add(op + NEXT, 1)
            if first >= n_tasks:
                return
            for task in range(first, min(first + 16, n_tasks)):
                row, quad = quotient(task, n_quads), remainder(task, n_quads)
                out = load(op + PACKED) + (quad * groups + (row >> 4)) * QUAD_16_BYTES
                lane = 4 * (row & 15)
                for j in range(4):
                    column = 128 * quad + 32 * j
                    q0, q1, total, d = quantized_block(load(op + X) + row * load(op + X_STRIDE), column, columns)
                    store_fours(out + 512 * j + lane, to_bytes(q0))
                    store_fours(out + 512 * j + 256 + lane, to_bytes(q1))
                    store_f32(out + QUAD_16_D + 64 * j + lane, d)
                    store_f32(out + QUAD_16_D_SUMS + 64 * j + lane, d * f32(total))
                    if row == tokens - 1:
                        for rest in range(lane + 4, 64, 4):
                            store_f32(out + QUAD_16_D + 64 * j + rest, f32(0))
                            store_f32(out + QUAD_16_D_SUMS + 64 * j + rest, f32(0))

    def make_int8_32(block_step, half_step):
        """First halves of blocks lie block_step bytes apart, the last half of one half_step after its first."""

        def int8_32(op, shared, thread):
            pack_quads(op, shared, block_step, half_step)

        return int8_32

    @simd.device
    def pack_quads(op, shared, block_step, half_step):
        columns = load(op + COLUMNS)
        n_quads = quotient(columns + 127, 128)
        tokens = load(shared + load(op + ROWS))
        n_tasks = tokens * n_quads
        while True:
            first = 16 * atomic_add(op + NEXT, 1)
            if first >= n_tasks:
                return
            for task in range(first, min(first + 16, n_tasks)):
                row, quad = quotient(task, n_quads), remainder(task, n_quads)
                out = load(op + PACKED) + (quad * padded(tokens) + row) * QUAD_BYTES
                for j in range(4):
                    column = 128 * quad + 32 * j
                    q0, q1, total, d = quantized_block(load(op + X) + row * load(op + X_STRIDE), column, columns)
                    store_q(out + block_step * j, to_bytes(q0))
                    store_q(out + block_step * j + half_step, to_bytes(q1))
                    store_f32(out + QUAD_D + 4 * j, d)
                    store_i32(out + QUAD_MINUS_SUMS + 4 * j, types.int32(-total))
                    store_f32(out + QUAD_D_SUMS + 4 * j, d * f32(total))

    def make_bf16(for_unit):
        """Every number in two bytes, or in four in the order of the chains."""

        @simd.device
        def row_bytes(n_chunks):
            return BF16_MANY_BYTES if for_unit else 2 * BF16_CHUNK * n_chunks

        def bf16(op, shared, thread):
            columns = load(op + COLUMNS)
            n_chunks = quotient(columns + BF16_CHUNK - 1, BF16_CHUNK)
            tokens = load(shared + load(op + ROWS))
            while True:
                row = atomic_add(op + NEXT, 1)
                if row >= tokens:
                    return
                x, out = load(op + X) + row * load(op + X_STRIDE), load(op + PACKED) + row * row_bytes(n_chunks)
                for step in range(8 * n_chunks):
                    v0 = load_part(x + 128 * step, columns - 32 * step)
                    v1 = load_part(x + 128 * step + 64, columns - 32 * step - 16)
                    if for_unit:
                        scatter(out + (step >> 3) * padded(tokens) * BF16_MANY_BYTES + 8 * (step & 7), v0, v1)
                    else:
                        store_bf16(out + 64 * step, v0)
                        store_bf16(out + 64 * step + 32, v1)

        return bf16

    int8_32, int8_32_many = make_int8_32(16, 64), make_int8_32(32, 16)
    return {
        "int8_256": int8_256, "int8_256_by_16": int8_256_by_16, "int8_32": int8_32, "int8_32_many": int8_32_many,
        "int8_32_by_16": int8_32_by_16, "bf16": make_bf16(False), "bf16_many": make_bf16(True),
    }  # fmt: skip


def _four_storer() -> Any:
    """store(address, i8x16): each four bytes 64 bytes behind the last ones."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    def code(b: Any, at: Any, v: Any) -> None:
        fours = b.bitcast(v, ir.VectorType(emit.I32, 4))
        for i in range(4):
            emit.store_at(b, b.extract_element(fours, ir.Constant(emit.I32, i)), at, 64 * i)

    return emit.make(emit.void, [emit.address, emit.vec("i8", 16)], code)


def _scatter_pairs(b: Any, out: Any, low: Any, high: Any) -> None:
    """32 columns: of pair i the odd number, then the even one, as two dwords at out + 64 i."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    words = emit.shuffle(b, emit.f32_to_bf16(b, low), emit.f32_to_bf16(b, high), range(32))
    wide = b.zext(words, ir.VectorType(emit.I32, 32))
    for i in range(16):
        emit.store_at(b, emit.shuffle(b, wide, wide, [2 * i + 1, 2 * i]), out, 64 * i)
