"""What this machine can do at most, measured with the instructions that the kernels use.

    read                         memory, in 64-byte loads: chunks handed out as a matvec does, four streams in each
    int8_dot, bf16_dot, f32_fma  a tile of sums in registers, its operands in the first-level cache: the inner loop of
                                 a matmul with nothing around it
    unit_dot                     the same with the tiles of the matrix unit, int8 as well (where amx.is_ready())

`gemmafile.bench.machine` runs them. What counts is their time; each leaves a digest of what it read or summed, so
that nothing can be left out, and tests can see that nothing was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels.ops import NEXT, SCRATCH, SCRATCH_BYTES, slots

START, BYTES, READ_DIGEST = slots("START BYTES READ_DIGEST")
"""`read`: BYTES from START on, less a last part of under STREAMS * 64. Each thread's XOR of all 64-byte words it read
is mixed into uint8[64] at READ_DIGEST + 64 * thread."""

PANEL, TURNS, PEAK_DIGEST, OPERATIONS = slots("PANEL TURNS PEAK_DIGEST OPERATIONS")
"""Peaks: TURNS times over the operands at PANEL (`panel_bytes`, any numbers). Each thread's sums, added up, are added
to 16 int32 or float32 at PEAK_DIGEST + 64 * thread. OPERATIONS is an answer: multiplications and additions a turn."""

CHUNK_BYTES, STREAMS = 1 << 16, 4
CHUNK_TURNS = 64

STEPS = 16
"""Steps of the tile in one turn; each has operands of its own, lest a product be computed once for all turns."""
MOST_ROWS, MOST_TOKENS = 4, 6
STEP_BYTES = 64 * MOST_ROWS + 64
"""The weights of a step, then 4 bytes of each token."""
UNIT_STEPS, UNIT_STEP_BYTES = 8, 4 * 1024
"""Two tiles of tokens and two of weights."""

PRODUCTS_A_LANE = {"int8_dot": 4, "bf16_dot": 2, "f32_fma": 1}


def panel_bytes(name: str) -> int:
    """Bytes of operands that a peak reads: they fit in the first-level cache."""
    return UNIT_STEPS * UNIT_STEP_BYTES if name == "unit_dot" else STEPS * STEP_BYTES


def kernels() -> dict[str, Callable[..., None]]:
    peaks = {name: _make_peak(name) for name in PRODUCTS_A_LANE}
    return {"read": _make_read(), "unit_dot": _make_unit_peak(), **peaks}


def _make_read() -> Callable[..., None]:
    from gemmafile.kernels import emit, simd

    load, atomic_add, quotient = simd.load_i64, simd.atomic_add, simd.quotient
    load_64, store_64, zero = simd.load_u8x64, simd.store_u8x64, simd.constants("u8", [0] * 64)
    mix = emit.make(emit.vec("u8", 64), [emit.vec("u8", 64)] * 2, lambda b, x, y: b.xor(x, y))

    def read(op, shared, thread):
        """Reads BYTES once, all threads together."""
        n_bytes, digest = load(op + BYTES), load(op + READ_DIGEST) + 64 * thread
        mixed = load_64(digest)
        while True:
            first = CHUNK_BYTES * atomic_add(op + NEXT, 1)
            if first >= n_bytes:
                store_64(digest, mixed)
                return
            part = quotient(min(CHUNK_BYTES, n_bytes - first), 64 * STREAMS) * 64
            a = load(op + START) + first
            end = a + part
            x0, x1, x2, x3 = mixed, zero(), zero(), zero()
            while a < end:
                x0, x1 = mix(x0, load_64(a)), mix(x1, load_64(a + part))
                x2, x3 = mix(x2, load_64(a + 2 * part)), mix(x3, load_64(a + 3 * part))
                a += 64
            mixed = mix(mix(x0, x1), mix(x2, x3))

    return read


def _make_peak(name: str) -> Callable[..., None]:
    """sums[row][token] += weights[row] . token, as WeightTile has it, for one kind of numbers."""
    import llvmlite.ir as ir
    from numba.core import types

    from gemmafile.kernels import emit, simd

    # As many sums as the registers hold beside their operands.
    rows, tokens = (MOST_ROWS, MOST_TOKENS) if emit.HAS_AVX512 else (1, 5)
    operations = 2 * STEPS * rows * tokens * 16 * PRODUCTS_A_LANE[name]
    lane, n = (emit.F32 if name == "f32_fma" else emit.I32), rows * tokens
    kind = "i32" if name == "int8_dot" else "f32"
    sums_type = types.UniTuple(emit.vec(kind, 16), n)
    operand = {"int8_dot": ir.VectorType(emit.I8, 64), "bf16_dot": ir.VectorType(emit.I16, 32),
               "f32_fma": ir.VectorType(emit.F32, 16)}[name]  # fmt: skip

    def product(b: Any, acc: Any, w: Any, x: Any) -> Any:
        if name == "int8_dot":
            return emit.dot_bytes(b, acc, w, x, below_128=True)
        return emit.dot_bf16(b, acc, w, x) if name == "bf16_dot" else emit.fma_f32(b, w, x, acc)

    def step_code(b: Any, sums: Any, panel: Any) -> Any:
        weights = [emit.load_at(b, panel, operand, 64 * r) for r in range(rows)]
        for t in range(tokens):
            four = emit.splat(b, emit.load_at(b, panel, lane, 64 * MOST_ROWS + 4 * t), 16)
            x = four if name == "f32_fma" else b.bitcast(four, operand)
            for r in range(rows):
                i = t * rows + r
                sums = b.insert_value(sums, product(b, b.extract_value(sums, i), weights[r], x), i)
        return sums

    def start_code(b: Any) -> Any:
        sums = ir.Constant(ir.ArrayType(emit.vec(kind, 16).llvm, n), ir.Undefined)
        for i in range(n):
            sums = b.insert_value(sums, emit.splat_constant(emit.vec(kind, 16).llvm, 0), i)
        return sums

    def finish_code(b: Any, sums: Any, digest: Any) -> None:
        total = emit.load_at(b, digest, emit.vec(kind, 16).llvm)
        for i in range(n):
            total = (b.add if kind == "i32" else b.fadd)(total, b.extract_value(sums, i))
        emit.store_at(b, total, digest)

    start, step = emit.make(sums_type, [], start_code), emit.make(sums_type, [sums_type, emit.address], step_code)
    finish = emit.make(emit.void, [sums_type, emit.address], finish_code)
    load, store, atomic_add = simd.load_i64, simd.store_i64, simd.atomic_add

    def peak(op, shared, thread):
        """TURNS times OPERATIONS, all threads together."""
        turns = load(op + TURNS)
        store(op + OPERATIONS, operations)
        sums = start()
        while True:
            first = CHUNK_TURNS * atomic_add(op + NEXT, 1)
            if first >= turns:
                finish(sums, load(op + PEAK_DIGEST) + 64 * thread)
                return
            for _ in range(min(CHUNK_TURNS, turns - first)):
                panel = load(op + PANEL)
                for _ in range(STEPS):
                    sums = step(sums, panel)
                    panel += STEP_BYTES

    return peak


def _make_unit_peak() -> Callable[..., None]:
    """Two tiles of 16 tokens by two of 16 weight rows, 64 columns a step: four tiles of sums."""
    from gemmafile.kernels import amx, emit, simd

    unit, write_config = amx.tiles(), amx.config_writer([16] * 8, [64] * 8)
    configure, release = unit.configure, unit.release
    zero0, zero1, zero2, zero3 = (unit.zero(i) for i in range(4))
    store0, store1, store2, store3 = (unit.store(i) for i in range(4))
    load4, load5, load6, load7 = (unit.load(i) for i in range(4, 8))
    dot0, dot1, dot2, dot3 = unit.dot(0, 4, 6), unit.dot(1, 5, 6), unit.dot(2, 4, 7), unit.dot(3, 5, 7)
    operations = 2 * UNIT_STEPS * 4 * 16 * 16 * 64
    ints = emit.vec("i32", 16)
    load, store, atomic_add = simd.load_i64, simd.store_i64, simd.atomic_add
    load_ints, store_ints = simd.load_i32x16, simd.store_i32x16
    add = emit.make(ints, [ints, ints], lambda b, x, y: b.add(x, y))

    def peak(op, shared, thread):
        """TURNS times OPERATIONS, all threads together."""
        turns, digest = load(op + TURNS), load(op + PEAK_DIGEST) + 64 * thread
        store(op + OPERATIONS, operations)
        config = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        sums = config + 64
        write_config(config)
        configure(config)
        zero0()
        zero1()
        zero2()
        zero3()
        while True:
            first = CHUNK_TURNS * atomic_add(op + NEXT, 1)
            if first >= turns:
                break
            for _ in range(min(CHUNK_TURNS, turns - first)):
                panel = load(op + PANEL)
                for _ in range(UNIT_STEPS):
                    load4(panel, 64)
                    load6(panel + 2048, 64)
                    dot0()
                    load5(panel + 1024, 64)
                    dot1()
                    load7(panel + 3072, 64)
                    dot2()
                    dot3()
                    panel += UNIT_STEP_BYTES
        store0(sums, 64)
        store1(sums + 1024, 64)
        store2(sums + 2048, 64)
        store3(sums + 3072, 64)
        release()
        total = load_ints(digest)
        for i in range(64):
            total = add(total, load_ints(sums + 64 * i))
        store_ints(digest, total)

    return peak
