"""Products of 4 to 32 tokens on Intel's matrix unit: the weights' rows are the unit's left-hand tiles.

So few tokens do not pay for a transposition of the weights (`superblocks_amx.py`): 16 rows are unpacked as they lie,
and what is transposed, once a product, are the activations (`packing.py`, "_by_16": right-hand tiles of 16 tokens).
The weights are read once, at nearly the speed of memory; a tile of sums is 16 rows x 16 tokens, lanes are tokens.
Exact integers and float steps are those of the other kernels (docs/numerics.md): the same bits.

An item is a super-block, or a quad of blocks, of 16 rows. The unit's products of an item are issued before the next
item is unpacked and the float steps of the last one taken, so that neither waits for the other's stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gemmafile.kernels.ops import NEXT, ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import (
    QUAD_16_BYTES,
    QUAD_16_D,
    QUAD_16_D_SUMS,
    SUPER_16_BYTES,
    SUPER_16_D,
    SUPER_16_SUMS_16,
    SUPER_16_SUMS_32,
)  # fmt: skip
from gemmafile.kernels.streams import CHUNK_ROWS, COLUMNS, OUT, OUT_STRIDE, PACKED, ROW_BYTES, WEIGHTS, N

if TYPE_CHECKING:
    from gemmafile.kernels.quads import Quad
    from gemmafile.kernels.superblocks import SuperBlock

MOST_TOKENS = 32
_GROUPS = 2
"""Of 16 tokens."""
_ITEM = 8 * 1024 + 2048
"""Unpacked weights of 16 rows; then what the float steps read: 128 bytes a row."""
_META = 8 * 1024
_SUMS = 4 * 1024
"""Sums of 16 rows x 16 tokens: two or four tiles."""
_ITEMS = 4
_ACC = 16 * 64
_CONFIG = 64
SCRATCH_NEEDED = _CONFIG + _ITEMS * _ITEM + 2 * _GROUPS * _SUMS + CHUNK_ROWS // 16 * _GROUPS * _ACC + 1024 + 64


def make_superblocks(f: SuperBlock) -> Callable[..., None]:
    from gemmafile.kernels import amx, simd
    from gemmafile.kernels.superblocks import no_scales
    from gemmafile.kernels.superblocks_amx import make_scaled

    unit = amx.tiles()
    # Tiles 0, 1: sums of low and high parts; 2: tokens; 3, 4: low and high weights.
    write_config = amx.config_writer([16] * 5, [64] * 5)
    zero0, zero1, store0, store1 = unit.zero(0), unit.zero(1), unit.store(0), unit.store(1)
    load2, load3, load4, dot0, dot1 = unit.load(2), unit.load(3), unit.load(4), unit.dot(0, 3, 2), unit.dot(1, 4, 2)
    load_f16, store_f32, store_bytes, store_ints = simd.load_f16, simd.store_f32, simd.store_u8x64, simd.store_i32x16
    bytes_, d_at, min_at, chunk, scales = f.bytes, f.d, f.min_scale, f.chunk, f.scales or no_scales()
    has_minimum = f.sub_minima > 0
    scaled0, scaled1, scaled2, scaled3 = (make_scaled(f, j) for j in range(4))
    finish = _make_super_finish(f)

    @simd.device
    def unpack(p, block, n_blocks, at, meta):
        """Low parts at 64 j, high parts at 256 + 64 j of a row's 512 bytes; d, scale of the minima, and minima."""
        p += block * bytes_
        s = scales(p)
        low, high = scaled0(chunk(p, 0), s)
        store_bytes(at, low)
        store_bytes(at + 256, high)
        low, high = scaled1(chunk(p, 1), s)
        store_bytes(at + 64, low)
        store_bytes(at + 320, high)
        low, high = scaled2(chunk(p, 2), s)
        store_bytes(at + 128, low)
        store_bytes(at + 384, high)
        low, high = scaled3(chunk(p, 3), s)
        store_bytes(at + 192, low)
        store_bytes(at + 448, high)
        store_f32(meta, load_f16(p + d_at))
        if has_minimum:
            store_f32(meta + 4, load_f16(p + min_at))
            store_ints(meta + 64, s)

    @simd.device
    def multiply(weights, a, sums):
        zero0()
        zero1()
        for j in range(4):
            load2(a + 1024 * j, 64)
            load3(weights + 64 * j, 512)
            dot0()
            load4(weights + 256 + 64 * j, 512)
            dot1()
        store0(sums, 64)
        store1(sums + 1024, 64)

    return _make_matmul(write_config, unpack, multiply, finish, 256, bytes_, SUPER_16_BYTES)


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
    def unpack(p, quad, n_blocks, at, meta):
        """Block j at 32 j of a row's 512 bytes; d of the four blocks, and what is added."""
        p += quad * 4 * bytes_
        left = min(4, n_blocks - 4 * quad)
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
    from gemmafile.kernels.tiles import transposer

    configure, release = amx.tiles().configure, amx.tiles().release
    load, atomic_add, quotient = simd.load_i64, simd.atomic_add, simd.quotient
    load_v, store_v = simd.load_f32x16, simd.store_f32x16
    shift, blocks_an_item = block_columns.bit_length() - 1, 4 if block_columns == 32 else 1
    bytes_an_item = blocks_an_item * block_bytes
    prefetch_row = simd.prefetcher(bytes_an_item)
    transpose = transposer([64 * i for i in range(16)])

    def matmul(op, shared, thread):
        """out[t][r] for up to 32 tokens. Reads the weights once."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> shift
        n_items = quotient(n_blocks + blocks_an_item - 1, blocks_an_item)
        tokens, out_stride = load(shared + load(op + ROWS)), load(op + OUT_STRIDE)
        groups = (tokens + 15) >> 4
        config = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        ring = config + _CONFIG
        sums = ring + _ITEMS * _ITEM
        acc = sums + 2 * _GROUPS * _SUMS
        turned = acc + CHUNK_ROWS // 16 * _GROUPS * _ACC
        write_config(config)
        configure(config)
        first = CHUNK_ROWS * atomic_add(op + NEXT, 1)
        while first < n:
            following = CHUNK_ROWS * atomic_add(op + NEXT, 1)
            row_groups = (min(CHUNK_ROWS, n - first) + 15) >> 4
            row_group, block = 0, 0
            last_row_group, last_block = 0, 0
            done_row_group, done_block = 0, 0
            total = row_groups * n_items
            for item in range(total + 2):
                if 0 < item <= total:
                    for g in range(groups):
                        a = load(op + PACKED) + (last_block * groups + g) * item_bytes
                        multiply(ring + ((item - 1) & 3) * _ITEM, a, sums + (((item - 1) & 1) * _GROUPS + g) * _SUMS)
                if item < total:
                    here, r = ring + (item & 3) * _ITEM, first + 16 * row_group
                    # Spread over the rows: in a burst the prefetches keep the loads behind them waiting.
                    after = r + 16 if row_group + 1 < row_groups else min(following, n - 16)
                    ahead = weights + after * row_bytes + block * 16 * bytes_an_item
                    for i in range(16):
                        prefetch_row(ahead)
                        ahead += bytes_an_item
                        p = weights + min(r + i, n - 1) * row_bytes
                        unpack(p, block, n_blocks, here + 512 * i, here + _META + 128 * i)
                if item > 1:
                    for g in range(groups):
                        a = load(op + PACKED) + (done_block * groups + g) * item_bytes
                        finish(sums + ((item & 1) * _GROUPS + g) * _SUMS, a, ring + ((item - 2) & 3) * _ITEM + _META,
                               acc + (done_row_group * _GROUPS + g) * _ACC, done_block)  # fmt: skip
                done_row_group, done_block = last_row_group, last_block
                last_row_group, last_block = row_group, block
                block += 1
                if block == n_items:
                    row_group, block = row_group + 1, 0
            for k in range(row_groups):
                for g in range(groups):
                    transpose(acc + (k * _GROUPS + g) * _ACC, turned)
                    c = load(op + OUT) + 16 * g * out_stride + 4 * (first + 16 * k)
                    for t in range(min(16, tokens - 16 * g)):
                        store_v(c, load_v(turned + 64 * t))
                        c += out_stride
            first = following
        release()

    return matmul


def _make_super_finish(f: SuperBlock) -> Any:
    """finish(sums, a, meta, acc, block): one super-block's float steps for 16 rows x 16 tokens."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    ints, floats, words = ir.VectorType(emit.I32, 16), ir.VectorType(emit.F32, 16), ir.VectorType(emit.I16, 32)

    def code(b: Any, sums: Any, a: Any, meta: Any, acc: Any, block: Any) -> None:
        d_tokens = emit.load_at(b, a, floats, SUPER_16_D)
        steps, sums_at = range(f.sub_minima // 2), SUPER_16_SUMS_16 if f.sub_minima == 16 else SUPER_16_SUMS_32
        token_sums = [emit.load_at(b, a, words, sums_at + 64 * s) for s in steps]
        is_first = b.icmp_signed("==", block, ir.Constant(emit.I64, 0))
        for i in range(16):
            low, high = emit.load_at(b, sums, ints, 64 * i), emit.load_at(b, sums, ints, 1024 + 64 * i)
            total = b.add(b.shl(high, emit.splat_constant(ints, 7)), low)
            d = b.fmul(emit.splat(b, emit.load_at(b, meta, emit.F32, 128 * i), 16), d_tokens)
            y = b.select(is_first, emit.splat_constant(floats, 0.0), emit.load_at(b, acc, floats, 64 * i))
            y = emit.fma_f32(b, b.sitofp(total, floats), d, y)
            if f.sub_minima:
                least = emit.splat_constant(ints, 0)
                for s in steps:
                    two = emit.splat(b, emit.load_at(b, meta, emit.I32, 128 * i + 64 + 4 * (f.sub_scales + s)), 16)
                    least = emit.dot_words(b, least, b.bitcast(two, words), token_sums[s])
                by = b.fmul(emit.splat(b, emit.load_at(b, meta, emit.F32, 128 * i + 4), 16), d_tokens)
                y = emit.fma_f32(b, b.sitofp(least, floats), b.fneg(by), y)
            emit.store_at(b, y, acc, 64 * i)

    return emit.make(emit.void, [emit.address] * 5, code)


def _make_quad_finish(f: Quad) -> Any:
    """finish(sums, a, meta, acc, quad): the float steps of four blocks for 16 rows x 16 tokens."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    ints, floats = ir.VectorType(emit.I32, 16), ir.VectorType(emit.F32, 16)

    def code(b: Any, sums: Any, a: Any, meta: Any, acc: Any, quad: Any) -> None:
        d_tokens = [emit.load_at(b, a, floats, QUAD_16_D + 64 * j) for j in range(4)]
        token_sums = [emit.load_at(b, a, floats, QUAD_16_D_SUMS + 64 * j) for j in range(4)]
        is_first = b.icmp_signed("==", quad, ir.Constant(emit.I64, 0))
        for i in range(16):
            y = b.select(is_first, emit.splat_constant(floats, 0.0), emit.load_at(b, acc, floats, 64 * i))
            for j in range(4):
                total = emit.load_at(b, sums, ints, 1024 * j + 64 * i)
                d = b.fmul(emit.splat(b, emit.load_at(b, meta, emit.F32, 128 * i + 4 * j), 16), d_tokens[j])
                y = emit.fma_f32(b, b.sitofp(total, floats), d, y)
                if f.added is not None:
                    added = emit.splat(b, emit.load_at(b, meta, emit.F32, 128 * i + 16 + 4 * j), 16)
                    y = emit.fma_f32(b, added, token_sums[j], y)
            emit.store_at(b, y, acc, 64 * i)

    return emit.make(emit.void, [emit.address] * 5, code)
