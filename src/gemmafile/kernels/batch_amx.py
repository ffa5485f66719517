"""Products of 4 to 32 tokens on Intel's matrix unit: the weights' rows are the unit's left-hand tiles.

So few tokens do not pay for a transposition of the weights (`superblocks_amx.py`): 16 rows are unpacked as they lie,
and what is transposed, once a product, are the activations (`packing.py`, "_by_16": right-hand tiles of 16 tokens).
The weights are read once, at nearly the speed of memory; a tile of sums is 16 rows x 16 tokens, lanes are tokens.
Exact integers and float steps are those of the other kernels (docs/numerics.md): the same bits.

An item is a super-block, or a quad of blocks, of 16 rows. The unit's products of an item are issued before the next
item is unpacked and the float steps of the last one taken, so that neither waits for the other's stores.

The 16 rows of an item are a sixteenth of a chunk apart: 16 streams, each read from end to end (`streams.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gemmafile.kernels.ops import N_THREADS, NEXT, ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import (
    QUAD_16_BYTES,
    QUAD_16_D,
    QUAD_16_D_SUMS,
    SUPER_16_BYTES,
    SUPER_16_D,
    SUPER_16_SUMS_16,
    SUPER_16_SUMS_32,
)  # fmt: skip
from gemmafile.kernels.streams import (
    COLUMNS,
    LARGE_ROWS,
    OUT,
    OUT_STRIDE,
    PACKED,
    ROW_BYTES,
    WEIGHTS,
    N,
    make_chunks,
)  # fmt: skip

if TYPE_CHECKING:
    from gemmafile.kernels.quads import Quad
    from gemmafile.kernels.superblocks import SuperBlock

MOST_TOKENS = 32
_GROUPS = 2
"""Of 16 tokens."""
_WEIGHTS, _META = 8 * 1024, 2 * 1024
"""Of an item: unpacked weights of 16 rows, and what the float steps read, 128 bytes a row."""
_SUMS = 4 * 1024
"""Sums of 16 rows x 16 tokens: up to four tiles."""
_WEIGHT_ITEMS, _META_ITEMS, _SUM_ITEMS = 2, 4, 2
"""Items whose parts are kept at a time."""
_ACC = 64 * LARGE_ROWS
"""Results of a chunk and 16 tokens."""
_CONFIG = 64
SCRATCH_NEEDED = (
    _CONFIG + _WEIGHT_ITEMS * _WEIGHTS + _META_ITEMS * _META + _GROUPS * (_SUM_ITEMS * _SUMS + _ACC) + 1024 + 64
)
ITEMS_AHEAD = 2
"""How far ahead of its use each stream is fetched into the first-level cache."""


def make_superblocks(f: SuperBlock) -> Callable[..., None]:
    from gemmafile.kernels import amx, simd
    from gemmafile.kernels.superblocks import no_scales

    unit = amx.tiles()
    parts = _Parts(f)
    # Tiles 0, 1: sums of low and high parts; 2: tokens; 3, 4: low and high weights.
    write_config = amx.config_writer([16] * 5, [64] * 5)
    zero0, zero1, store0, store1 = unit.zero(0), unit.zero(1), unit.store(0), unit.store(1)
    load2, load3, load4 = unit.load(2), unit.load(3), unit.load(4)
    dot0, dot1 = (unit.dot(i, 3 + i, 2, unsigned_a=parts.unsigned) for i in range(2))
    load_f16, store_f32, store_bytes, store_ints = simd.load_f16, simd.store_f32, simd.store_u8x64, simd.store_i32x16
    d_at, min_at, chunk, scales = f.d, f.min_scale, f.chunk, f.scales or no_scales()
    has_minimum, has_high = f.sub_minima > 0, parts.n == 2
    split0, split1, split2, split3 = (parts.splitter(j) for j in range(4))
    finish = _make_super_finish(f, parts)

    @simd.device
    def unpack_part(split, p, j, s, at):
        if has_high:
            low, high = split(chunk(p, j), s)
            store_bytes(at + 64 * j, low)
            store_bytes(at + 256 + 64 * j, high)
        else:
            store_bytes(at + 64 * j, chunk(p, j))

    @simd.device
    def unpack(p, left, at, meta):
        """Low parts at 64 j, high parts at 256 + 64 j of a row's 512 bytes; d, scale of the minima, and minima."""
        s = scales(p)
        unpack_part(split0, p, 0, s, at)
        unpack_part(split1, p, 1, s, at)
        unpack_part(split2, p, 2, s, at)
        unpack_part(split3, p, 3, s, at)
        store_f32(meta, load_f16(p + d_at))
        if has_minimum:
            store_f32(meta + 4, load_f16(p + min_at))
            store_ints(meta + 64, s)

    @simd.device
    def multiply(weights, a, sums):
        zero0()
        if has_high:
            zero1()
        for j in range(4):
            load2(a + 1024 * j, 64)
            load3(weights + 64 * j, 512)
            dot0()
            if has_high:
                load4(weights + 256 + 64 * j, 512)
                dot1()
        store0(sums, 64)
        if has_high:
            store1(sums + 1024, 64)

    return _make_matmul(write_config, unpack, multiply, finish, 256, f.bytes, SUPER_16_BYTES)


class _Parts:
    """How weights times sub-scales become the unit's bytes: I is the sum of one part, or low + (high << `shift`).

    Where the weights of `chunk` hold their sub-scales already, they are bytes as they are. Where sub-scales have 6
    bits, and weights times 3 of these stay bytes, each half of the sub-scale multiplies pairs of weights as words.
    Else products are split into two signed bytes.
    """

    def __init__(self, f: SuperBlock):
        self._f = f
        self._by_halves = f.sub_minima == 8 and not f.offset and 7 * f.largest < 256
        self.n = 2 if f.sub_scales else 1
        self.unsigned = not f.sub_scales or self._by_halves
        self.shift = 3 if self._by_halves else 7
        self.offset = 0 if f.sub_scales else f.offset
        """Still in the unit's bytes."""

    def splitter(self, j: int) -> Any:
        """split(chunk, scales) -> (low, high) of chunk j."""
        import llvmlite.ir as ir
        from numba.core import types

        from gemmafile.kernels import emit
        from gemmafile.kernels.superblocks_amx import make_scaled

        n, words, bytes_ = self._f.sub_scales, ir.VectorType(emit.I16, 32), ir.VectorType(emit.I8, 64)
        if not self._by_halves:
            return make_scaled(self._f, j)

        def code(b: Any, chunk: Any, scales: Any) -> Any:
            short = b.trunc(emit.shuffle(b, scales, scales, range(n)), ir.VectorType(emit.I16, n))
            by = emit.shuffle(b, short, short, [(64 * j + 2 * i) // (256 // n) for i in range(32)])
            pairs, result = b.bitcast(chunk, words), ir.Constant(ir.ArrayType(bytes_, 2), ir.Undefined)
            halves = b.and_(by, emit.splat_constant(words, 7)), b.lshr(by, emit.splat_constant(words, 3))
            for i, part in enumerate(halves):
                result = b.insert_value(result, b.bitcast(b.mul(pairs, part), bytes_), i)
            return result

        return emit.make(types.UniTuple(emit.vec("u8", 64), 2), [emit.vec("u8", 64), emit.vec("i32", 16)], code)


def make_quads(f: Quad) -> Callable[..., None]:
    from gemmafile.kernels import amx, emit, simd

    unit = amx.tiles()
    # Tiles 0 to 3: sums of the four blocks; 4: tokens; 5: weights.
    write_config = amx.config_writer([16] * 4 + [8, 16], [64] * 5 + [32])
    zero0, zero1, zero2, zero3 = (unit.zero(i) for i in range(4))
    store0, store1, store2, store3 = (unit.store(i) for i in range(4))
    load4, load5 = unit.load(4), unit.load(5)
    dot0, dot1, dot2, dot3 = (unit.dot(i, 5, 4) for i in range(4))
    load_f16, store_f32, store_bytes = simd.load_f16, simd.store_f32, simd.store_u8x64
    bytes_, added_at, halves = f.bytes, f.added or 0, f.halves
    is_added_to = f.added is not None
    bytes_64 = emit.vec("u8", 64)
    take_off = emit.make(bytes_64, [bytes_64], lambda b, v: b.sub(v, emit.splat_constant(v.type, f.offset)))
    # Blocks 0 and 1, then 2 and 3, from the first halves of the four blocks and the last ones.
    first_two, last_two = (
        simd.shuffler("u8", 64, [64 * (i // 16 % 2) + 16 * (2 * two + i // 32) + i % 16 for i in range(64)])
        for two in range(2)
    )
    finish = _make_quad_finish(f)

    @simd.device
    def unpack(p, left, at, meta):
        """Block j at 32 j of a row's 512 bytes; d of the four blocks, and what is added. left: blocks in the quad."""
        o1, o2, o3 = min(1, left - 1) * bytes_, min(2, left - 1) * bytes_, min(3, left - 1) * bytes_
        low, high = halves(p, p + o1, p + o2, p + o3)
        low, high = take_off(low), take_off(high)
        store_bytes(at, first_two(low, high))
        store_bytes(at + 64, last_two(low, high))
        store_f32(meta, load_f16(p))
        store_f32(meta + 4, load_f16(p + o1))
        store_f32(meta + 8, load_f16(p + o2))
        store_f32(meta + 12, load_f16(p + o3))
        if is_added_to:
            store_f32(meta + 16, load_f16(p + added_at))
            store_f32(meta + 20, load_f16(p + o1 + added_at))
            store_f32(meta + 24, load_f16(p + o2 + added_at))
            store_f32(meta + 28, load_f16(p + o3 + added_at))

    @simd.device
    def multiply(weights, a, sums):
        zero0()
        zero1()
        zero2()
        zero3()
        load4(a, 64)
        load5(weights, 512)
        dot0()
        load4(a + 512, 64)
        load5(weights + 32, 512)
        dot1()
        load4(a + 1024, 64)
        load5(weights + 64, 512)
        dot2()
        load4(a + 1536, 64)
        load5(weights + 96, 512)
        dot3()
        store0(sums, 64)
        store1(sums + 1024, 64)
        store2(sums + 2048, 64)
        store3(sums + 3072, 64)

    return _make_matmul(write_config, unpack, multiply, finish, 32, bytes_, QUAD_16_BYTES)


def _make_matmul(
    write_config: Any, unpack: Any, multiply: Any, finish: Any, block_columns: int, block_bytes: int, item_bytes: int
) -> Callable[..., None]:
    """item_bytes  of packed activations for 16 tokens and the columns of an item"""
    from gemmafile.kernels import amx, simd
    from gemmafile.kernels.transposes import transposer

    configure, release = amx.tiles().configure, amx.tiles().release
    load, atomic_add, quotient = simd.load_i64, simd.atomic_add, simd.quotient
    load_v, store_v = simd.load_f32x16, simd.store_f32x16
    shift, blocks_an_item = block_columns.bit_length() - 1, 4 if block_columns == 32 else 1
    bytes_an_item = blocks_an_item * block_bytes
    prefetch_row = simd.prefetcher(bytes_an_item, level=1)
    transpose = transposer([64 * i for i in range(16)])
    large_rows, bounds = make_chunks()

    def matmul(op, shared, thread):
        """out[t][r] for up to 32 tokens. Reads the weights once."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> shift
        n_items = quotient(n_blocks + blocks_an_item - 1, blocks_an_item)
        tokens, out_stride = load(shared + load(op + ROWS)), load(op + OUT_STRIDE)
        groups = (tokens + 15) >> 4
        config = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        unpacked = config + _CONFIG
        metas = unpacked + _WEIGHT_ITEMS * _WEIGHTS
        sums = metas + _META_ITEMS * _META
        acc = sums + _SUM_ITEMS * _GROUPS * _SUMS
        turned = acc + _GROUPS * _ACC
        write_config(config)
        configure(config)
        large = large_rows(n, load(shared + N_THREADS))
        first, end = bounds(atomic_add(op + NEXT, 1), n, large)
        while first < n:
            following, following_end = bounds(atomic_add(op + NEXT, 1), n, large)
            share = (end - first + 15) >> 4
            leap = (min(following, n - 1) - first - share) * row_bytes
            row, block = 0, 0
            last_row, last_block = 0, 0
            done_row, done_block = 0, 0
            total = share * n_items
            for item in range(total + 2):
                if 0 < item <= total:
                    here = unpacked + (item - 1 & 1) * _WEIGHTS
                    for g in range(groups):
                        a = load(op + PACKED) + (last_block * groups + g) * item_bytes
                        multiply(here, a, sums + ((item - 1 & 1) * _GROUPS + g) * _SUMS)
                if item < total:
                    here, meta = unpacked + (item & 1) * _WEIGHTS, metas + (item & 3) * _META
                    left = min(blocks_an_item, n_blocks - block * blocks_an_item)
                    ahead = ITEMS_AHEAD * bytes_an_item
                    if item >= total - ITEMS_AHEAD:
                        ahead += leap
                    for i in range(16):
                        p = weights + min(first + i * share + row, end - 1) * row_bytes + block * bytes_an_item
                        prefetch_row(p + ahead)
                        unpack(p, left, here + 512 * i, meta + 128 * i)
                if item > 1:
                    for g in range(groups):
                        a = load(op + PACKED) + (done_block * groups + g) * item_bytes
                        finish(sums + ((item & 1) * _GROUPS + g) * _SUMS, a, metas + (item - 2 & 3) * _META,
                               acc + g * _ACC + 64 * done_row, 64 * share, done_block)  # fmt: skip
                done_row, done_block = last_row, last_block
                last_row, last_block = row, block
                block += 1
                if block == n_items:
                    row, block = row + 1, 0
            for k in range(share):
                for g in range(groups):
                    transpose(acc + g * _ACC + 1024 * k, turned)
                    c = load(op + OUT) + 16 * g * out_stride + 4 * (first + 16 * k)
                    for t in range(min(16, tokens - 16 * g)):
                        store_v(c, load_v(turned + 64 * t))
                        c += out_stride
            first, end = following, following_end
        release()

    return matmul


def _make_super_finish(f: SuperBlock, parts: _Parts) -> Any:
    """finish(sums, a, meta, acc, stride, block): one super-block's float steps for 16 rows x 16 tokens; a row's results
    lie `stride` behind the last one's."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    ints, floats, words = ir.VectorType(emit.I32, 16), ir.VectorType(emit.F32, 16), ir.VectorType(emit.I16, 32)

    def code(b: Any, sums: Any, a: Any, meta: Any, acc: Any, stride: Any, block: Any) -> None:
        d_tokens, minus = emit.load_at(b, a, floats, SUPER_16_D), None
        if parts.offset:
            total, ones = emit.splat_constant(ints, 0), emit.splat_constant(words, 1)
            for s in range(4):
                total = emit.dot_words(b, total, emit.load_at(b, a, words, SUPER_16_SUMS_32 + 64 * s), ones)
            minus = b.mul(total, emit.splat_constant(ints, parts.offset))
        steps, sums_at = range(f.sub_minima // 2), SUPER_16_SUMS_16 if f.sub_minima == 16 else SUPER_16_SUMS_32
        token_sums = [emit.load_at(b, a, words, sums_at + 64 * s) for s in steps]
        is_first = b.icmp_signed("==", block, ir.Constant(emit.I64, 0))
        for i in range(16):
            total = emit.load_at(b, sums, ints, 64 * i)
            if parts.n == 2:
                high = emit.load_at(b, sums, ints, 1024 + 64 * i)
                total = b.add(b.shl(high, emit.splat_constant(ints, parts.shift)), total)
            if minus is not None:
                total = b.sub(total, minus)
            d = b.fmul(emit.splat(b, emit.load_at(b, meta, emit.F32, 128 * i), 16), d_tokens)
            y = b.select(is_first, emit.splat_constant(floats, 0.0), emit.load_at(b, acc, floats))
            y = emit.fma_f32(b, b.sitofp(total, floats), d, y)
            if f.sub_minima:
                least = emit.splat_constant(ints, 0)
                for s in steps:
                    two = emit.splat(b, emit.load_at(b, meta, emit.I32, 128 * i + 64 + 4 * (f.sub_scales + s)), 16)
                    least = emit.dot_words(b, least, b.bitcast(two, words), token_sums[s])
                by = b.fmul(emit.splat(b, emit.load_at(b, meta, emit.F32, 128 * i + 4), 16), d_tokens)
                y = emit.fma_f32(b, b.sitofp(least, floats), b.fneg(by), y)
            emit.store_at(b, y, acc)
            acc = b.add(acc, stride)

    return emit.make(emit.void, [emit.address] * 6, code)


def _make_quad_finish(f: Quad) -> Any:
    """finish(sums, a, meta, acc, stride, quad): the float steps of four blocks for 16 rows x 16 tokens."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    ints, floats = ir.VectorType(emit.I32, 16), ir.VectorType(emit.F32, 16)

    def code(b: Any, sums: Any, a: Any, meta: Any, acc: Any, stride: Any, quad: Any) -> None:
        d_tokens = [emit.load_at(b, a, floats, QUAD_16_D + 64 * j) for j in range(4)]
        token_sums = [emit.load_at(b, a, floats, QUAD_16_D_SUMS + 64 * j) for j in range(4)]
        is_first = b.icmp_signed("==", quad, ir.Constant(emit.I64, 0))
        for i in range(16):
            y = b.select(is_first, emit.splat_constant(floats, 0.0), emit.load_at(b, acc, floats))
            for j in range(4):
                total = emit.load_at(b, sums, ints, 1024 * j + 64 * i)
                d = b.fmul(emit.splat(b, emit.load_at(b, meta, emit.F32, 128 * i + 4 * j), 16), d_tokens[j])
                y = emit.fma_f32(b, b.sitofp(total, floats), d, y)
                if f.added is not None:
                    added = emit.splat(b, emit.load_at(b, meta, emit.F32, 128 * i + 16 + 4 * j), 16)
                    y = emit.fma_f32(b, added, token_sums[j], y)
            emit.store_at(b, y, acc)
            acc = b.add(acc, stride)

    return emit.make(emit.void, [emit.address] * 6, code)
