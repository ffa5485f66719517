"""Sixteen blocks side by side: lane j of every vector belongs to block j. Needs Numba.

A quantiser of a format is a function `quantize(s)` of the address of a work space, where it finds

    s + X + 64 i      weight i of the sixteen blocks: float32x16
    s + W + 64 i      its importance (weighted kernels)
    s + ROW_MEAN      mean square of the row that a block lies in (weighted kernels, formats in NEEDS_ROW_MEANS)

and where it leaves the blocks' bytes by `put_byte` and `put_half`, byte k of the sixteen blocks at s + OUTPUT + 16 k.
Nothing is summed across lanes, so a sum runs in the order of the weights, as in a plain loop over one block.
The rest of the work space is for the fits (`fits.py`): LEVELS, and rows of sixteen numbers from OWN on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba.core import types

from gemmafile.kernels import emit, simd
from gemmafile.kernels.quantizers.jobs import (
    BAD,
    IMPORTANCE,
    KIND,
    KINDS,
    LEVELS,
    N_BLOCKS,
    OUT,
    OUTPUT,
    ROW_BLOCKS,
    ROW_MEAN,
    ROW_MEANS,
    SCRATCH,
    SOURCE,
    TURNED,
    W,
    X,
)  # fmt: skip
from gemmafile.kernels.transposes import transposer

f32, i32 = types.float32, types.int32
F, M = emit.vec("f32", 16), emit.vec("b1", 16)

load, store, splat, select = simd.load_f32x16, simd.store_f32x16, simd.splat_f32x16, simd.select
less, greater, equal, absolute, round_even = simd.less, simd.greater, simd.equal, simd.absolute, simd.round_even
to_int, splat_int = simd.f32_to_i32x16, simd.splat_i32x16
both = simd.both
not_equal = emit.make(M, [F, F], lambda b, x, y: b.fcmp_unordered("!=", x, y))
sqrt = emit.make(F, [F], lambda b, v: emit.call(b, "llvm.sqrt.v16f32", v.type, [v]))
truncate = emit.make(F, [F], lambda b, v: emit.call(b, "llvm.trunc.v16f32", v.type, [v]))
copy_sign = emit.make(F, [F, F], lambda b, v, s: emit.call(b, "llvm.copysign.v16f32", v.type, [v, s]))
as_half = emit.make(F, [F], lambda b, v: emit.half_to_f32(b, emit.f32_to_half(b, v)))
"""Rounded to float16."""


def _half_bits(b: Any, v: Any) -> Any:
    return b.zext(emit.f32_to_half(b, v), ir.VectorType(emit.I32, 16))


_half_as_int = emit.make(emit.vec("i32", 16), [F], _half_bits)
_narrow, _store_bytes = simd.i32_to_i8x16, simd.store_i8x16


@simd.device
def number(value):
    """The same number in all lanes."""
    return splat(f32(value))


@simd.device
def hold(v, low, high):
    """v, or the bound that it is beyond."""
    return select(less(v, splat(f32(low))), splat(f32(low)), select(greater(v, splat(f32(high))), splat(f32(high)), v))


@simd.device
def inverse(v):
    """1 / v; 0 for 0."""
    return select(not_equal(v, number(0)), number(1) / v, number(0))


@simd.device
def put_byte(s, k, v):
    """Byte k of the blocks: the low eight bits of int32x16."""
    _store_bytes(s + OUTPUT + 16 * k, _narrow(v))


@simd.device
def put_half(s, k, v):
    """Bytes k and k + 1 of the blocks: float32x16 as float16."""
    bits = _half_as_int(v)
    put_byte(s, k, bits)
    put_byte(s, k + 1, bits >> 8)


@simd.device
def level(s, i):
    """Weight i's number in the block, as int32x16."""
    return to_int(load(s + LEVELS + 64 * i))


_turn = transposer([64 * i for i in range(16)])


def _bytes_turner() -> Any:
    """turn(source, t0 ... t15): 16 rows of 16 bytes; byte j of every row goes to t_j, the 16 side by side."""
    t = ir.VectorType(emit.I8, 16)

    def code(b: Any, source: Any, *targets: Any) -> None:
        rows = [emit.load_at(b, source, t, 16 * i) for i in range(16)]
        low, high = ([half + i // 2 + 16 * (i % 2) for i in range(16)] for half in (0, 8))
        for _ in range(4):  # a perfect shuffle of all 256 bytes turns one bit of a byte's number; four turn it over
            rows = [emit.shuffle(b, rows[i // 2], rows[8 + i // 2], high if i % 2 else low) for i in range(16)]
        for row, target in zip(rows, targets, strict=True):
            emit.store_at(b, row, target)

    return emit.make(types.void, [emit.address] * 17, code)


_turn_bytes = _bytes_turner()


_IS_F32, _IS_F16 = KINDS["F32"], KINDS["F16"]


@simd.device
def read_numbers(kind, source, i):
    """16 weights from weight i on, as float32."""
    if kind == _IS_F32:
        return load(source + 4 * i)
    if kind == _IS_F16:
        return simd.load_f16x16(source + 2 * i)
    return simd.load_bf16x16(source + 2 * i)


def make_kernel(block: int, n_bytes: int, quantize: Any, weighted: bool) -> Callable[..., None]:
    """The kernel `kernel(op, shared, thread)` for a job (`jobs.py`) of one format.

    quantize  a `simd.device`; see above
    """
    _atomic_store, read_i64, store_i64 = simd.atomic_store, simd.load_i64, simd.store_i64
    remainder, quotient, sum_lanes, fma = simd.remainder, simd.quotient, simd.sum_f32x16, simd.fma
    load_f32, store_f32 = simd.load_f32, simd.store_f32

    @simd.device
    def read_lanes(s, first, last, source, kind):
        """The weights of the blocks first, first + 1 ... to s + X, those past `last` being `last` again. The sum of 0
        times all of them."""
        size = 4 if kind == _IS_F32 else 2
        taint = number(0)
        for i in range(0, block, 16):
            for lane in range(16):
                v = read_numbers(kind, source + size * block * min(first + lane, last), i)
                taint = fma(v, number(0), taint)
                store(s + TURNED + 64 * lane, v)
            _turn(s + TURNED, s + X + 64 * i)
        return taint

    @simd.device
    def read_importance(s, first, last, op):
        """The importance of the same blocks' columns to s + W, and the mean squares of their rows."""
        importance, means = read_i64(op + IMPORTANCE), read_i64(op + ROW_MEANS)
        row_blocks = read_i64(op + ROW_BLOCKS)
        for i in range(0, block, 16):
            for lane in range(16):
                at = remainder(min(first + lane, last), row_blocks)
                store(s + TURNED + 64 * lane, load(importance + 4 * (block * at + i)))
            _turn(s + TURNED, s + W + 64 * i)
        for lane in range(16):
            row = quotient(min(first + lane, last), row_blocks)
            store_f32(s + ROW_MEAN + 4 * lane, load_f32(means + 4 * row))

    @simd.device
    def write_lanes(s, first, last, out):
        """The bytes of the blocks to their places; where two lanes hold the same block they write the same."""
        for i in range(0, n_bytes, 16):
            at = min(i, n_bytes - 16)
            o = out + at
            _turn_bytes(
                s + OUTPUT + 16 * at,
                o + n_bytes * min(first, last), o + n_bytes * min(first + 1, last),
                o + n_bytes * min(first + 2, last), o + n_bytes * min(first + 3, last),
                o + n_bytes * min(first + 4, last), o + n_bytes * min(first + 5, last),
                o + n_bytes * min(first + 6, last), o + n_bytes * min(first + 7, last),
                o + n_bytes * min(first + 8, last), o + n_bytes * min(first + 9, last),
                o + n_bytes * min(first + 10, last), o + n_bytes * min(first + 11, last),
                o + n_bytes * min(first + 12, last), o + n_bytes * min(first + 13, last),
                o + n_bytes * min(first + 14, last), o + n_bytes * min(first + 15, last),
            )  # fmt: skip

    def kernel(op, shared, thread):
        source, kind, out, n = read_i64(op + SOURCE), read_i64(op + KIND), read_i64(op + OUT), read_i64(op + N_BLOCKS)
        s = read_i64(op + SCRATCH)
        taint = number(0)
        first = 0
        while first < n:
            taint = taint + read_lanes(s, first, n - 1, source, kind)
            if weighted:
                read_importance(s, first, n - 1, op)
            quantize(s)
            write_lanes(s, first, n - 1, out)
            first += 16
        total = sum_lanes(taint)
        if total != total:
            store_i64(op + BAD, 1)

    return kernel
