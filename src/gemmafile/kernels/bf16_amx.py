"""BF16's product for many tokens on Intel's matrix unit; the twin of `bf16.matmul`, to the bit.

The unit is given one number of each pair, in the order of the dot instruction's chain: every number of the panel takes
four bytes, and so does every activation ("bf16_many" of `packing.py`). A task is 128 rows; 32 rows x 256 columns at a
time are unpacked into panels of 16 rows and stay in the first-level cache while all tokens pass by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels.ops import ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import BF16_CHUNK, BF16_MANY_BYTES
from gemmafile.kernels.streams import COLUMNS, OUT, OUT_STRIDE, PACKED, ROW_BYTES, WEIGHTS, N, make_take

STEPS, LANES, PANEL_ROWS, TASK_ROWS = 8, 16, 32, 128
_UNPACKED = 16 * 64
_UNIT_HALF = 2 * STEPS * LANES * 64
"""Bytes of 16 rows of a panel: every number in four bytes."""
SCRATCH_NEEDED = 64 + _UNPACKED + 2 * _UNIT_HALF


def make_matmul() -> Callable[..., None]:
    from gemmafile.kernels import amx, simd
    from gemmafile.kernels.bf16 import make_gather
    from gemmafile.kernels.transposes import transposer

    unit = amx.tiles()
    # Tiles 0 to 3: sums, tokens (0, 1) and (2, 3) of the rows' halves; 4, 5: two groups of 16 tokens; 6, 7: of 16 rows.
    write_config = amx.config_writer([16] * 8, [64] * 8)
    configure, release = unit.configure, unit.release
    zero0, zero1, zero2, zero3 = (unit.zero(i) for i in range(4))
    load0, load1, load2, load3, load4, load5, load6, load7 = (unit.load(i) for i in range(8))
    store0, store1, store2, store3 = (unit.store(i) for i in range(4))
    dot0, dot1 = unit.dot_bf16(0, 4, 6), unit.dot_bf16(1, 4, 7)
    dot2, dot3 = unit.dot_bf16(2, 5, 6), unit.dot_bf16(3, 5, 7)
    load, take, quotient = simd.load_i64, make_take(), simd.quotient
    gather, transpose = make_gather(), transposer([2 * STEPS * 64 * i for i in range(16)], apart)

    @simd.device
    def unpack(weights, row_bytes, first, n, columns, start, unpacked, panel):
        """A chunk of 32 rows: [half][lane][2 steps a pair, the odd number first][16 rows], a number in four bytes."""
        for half in range(2):
            for j in range(STEPS):
                gather(weights, row_bytes, first + 16 * half, n, 16, columns, start + 32 * j, unpacked)
                transpose(unpacked, panel + _UNIT_HALF * half + 128 * j)

    def matmul_amx(op, shared, thread):
        """out[t][r] for many tokens. Reads the weights once, the activations once per 32 rows."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        columns = load(op + COLUMNS)
        tokens, out_stride = load(shared + load(op + ROWS)), load(op + OUT_STRIDE)
        chunk_stride = quotient(tokens + 5, 6) * 6 * BF16_MANY_BYTES
        if tokens == 0:
            return
        config = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        unpacked, panel = config + 64, config + 64 + _UNPACKED
        write_config(config)
        configure(config)
        while True:
            task = take(op, shared, TASK_ROWS, n)
            if task >= n:
                break
            start = 0
            while start < columns:
                first = task
                while first < min(task + TASK_ROWS, n):
                    unpack(weights, row_bytes, first, n, columns, start, unpacked, panel)
                    t = 0
                    while t < tokens:
                        c = load(op + OUT) + t * out_stride + 4 * first
                        if start == 0:
                            zero0()
                            zero1()
                            zero2()
                            zero3()
                        else:
                            load0(c, out_stride)
                            load1(c + 64, out_stride)
                            load2(c + 16 * out_stride, out_stride)
                            load3(c + 16 * out_stride + 64, out_stride)
                        a = load(op + PACKED) + quotient(start, BF16_CHUNK) * chunk_stride + t * BF16_MANY_BYTES
                        w = panel
                        for _ in range(LANES):
                            load4(a, BF16_MANY_BYTES)
                            load6(w, 64)
                            dot0()
                            load7(w + _UNIT_HALF, 64)
                            dot1()
                            load5(a + 16 * BF16_MANY_BYTES, BF16_MANY_BYTES)
                            dot2()
                            dot3()
                            a += 64
                            w += 1024
                        store0(c, out_stride)
                        store1(c + 64, out_stride)
                        store2(c + 16 * out_stride, out_stride)
                        store3(c + 16 * out_stride + 64, out_stride)
                        t += 32
                    first += PANEL_ROWS
                start += BF16_CHUNK
        release()

    return matmul_amx


def apart(b: Any, pairs: Any) -> list[Any]:
    """The odd numbers of pairs of bfloat16, then the even ones, each in the lower half of four bytes."""
    from gemmafile.kernels import emit

    t = pairs.type
    return [b.lshr(pairs, emit.splat_constant(t, 16)), b.and_(pairs, emit.splat_constant(t, 0xFFFF))]
