"""Matrix kernels of the 32-blocks: four blocks of 32 weights, each with a float16 scale, are taken as one quad.

A format gives a few facts about a block and one function that unpacks four of them (`Quad`); from these come

    matvec  1 to 4 tokens: 4 weight rows side by side, straight from the file's bytes (`streams.py`), lanes run along K
    matmul  more: 32 rows x 512 columns are unpacked into a panel of bytes, lanes are rows; the panel meets the
            tokens in tiles of 6

Both compute the same exact integer for each row and block and then the same float steps (docs/numerics.md). A row
whose length is not a multiple of 128 ends in a part of a quad: its missing blocks are the last one again, with
activations of zero. Activations: `packing.py`, "int8_32".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gemmafile.kernels.ops import ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import QUAD_BYTES, QUAD_D, QUAD_D_SUMS, QUAD_MINUS_SUMS
from gemmafile.kernels.streams import (
    AHEAD_BYTES,
    CHUNK_ROWS,
    COLUMNS,
    OUT,
    OUT_STRIDE,
    PACKED,
    ROW_BYTES,
    WEIGHTS,
    N,
    make_matvec,
    make_take,
)  # fmt: skip

PANEL_QUADS = 4
_PANEL, _SCALES = 32 * 32 * 4, 4 * 32 * 4
_WIDE = 6 * 2 * 128
"""Of a quad of a tile's tokens as words."""
_UNPACKED = 2 * 1024
SCRATCH_NEEDED = _UNPACKED + PANEL_QUADS * (_PANEL + 2 * _SCALES) + PANEL_QUADS // 2 * _WIDE + 256


@dataclass(frozen=True)
class Quad:
    """What the kernels must know of a format.

    bytes    of a block
    added    byte offset of a float16 that is added to every weight (Q4_1), or None; the scale is at byte 0
    halves(p0, p1, p2, p3)  a `simd.device`: two u8x64, the first 16 weights of each of four blocks and the last
             16, as unsigned numbers
    offset     weights are these numbers minus this
    largest    of these numbers
    """

    bytes: int
    added: int | None
    halves: Any
    offset: int
    largest: int = 255


def build_kernels(f: Quad) -> dict[str, Callable[..., None]]:
    from gemmafile.kernels import batch_amx, quads_amx

    matvec = make_matvec([_make_walk(f, n) for n in (1, 2, 3, 4)], 32, f.bytes, QUAD_BYTES)
    return {
        "matvec": matvec, "matmul": _make_matmul(f), "matmul_amx": quads_amx.make_matmul(f),
        "batch_amx": batch_amx.make_quads(f),
    }  # fmt: skip


def _make_walk(f: Quad, n_tokens: int) -> Any:
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
            by_row, added = _scales_of_rows(b, at, f.added)
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


def _scales_of_rows(b: Any, at: Any, added_at: int | None) -> tuple[Any, Any]:
    """The float16 at four addresses as <4 x float>, and those at `added_at`, right behind them, or None."""
    from gemmafile.kernels import emit

    if added_at is None:
        return emit.load_halves(b, at), None
    assert added_at == 2
    return emit.load_half_pairs(b, at, 0)


def nibble_halves(first_byte: int) -> Any:
    """`Quad.halves` for blocks whose 16 bytes from `first_byte` on hold the first weights in their low halves."""
    from numba.core import types

    from gemmafile.kernels import simd

    load_16, join_16, join_32, splat = simd.load_u8x16, simd.join_u8x16, simd.join_u8x32, simd.splat_u8x64
    as_words, as_bytes = simd.u8_as_u16x32, simd.u16_as_u8x64

    @simd.device
    def halves(p0, p1, p2, p3):
        q = join_32(
            join_16(load_16(p0 + first_byte), load_16(p1 + first_byte)),
            join_16(load_16(p2 + first_byte), load_16(p3 + first_byte)),
        )
        low = splat(types.uint8(15))
        return q & low, as_bytes(as_words(q) >> 4) & low

    return halves


def _make_matmul(f: Quad) -> Callable[..., None]:
    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.tiles import WeightTile, transposer, words_of_bytes

    load, load_f16, store_f32, take = simd.load_i64, simd.load_f16, simd.store_f32, make_take()
    align_stack, quotient, store_bytes, hidden = simd.align_stack, simd.quotient, simd.store_u8x64, simd.hidden
    fetch_row = simd.prefetcher(4 * f.bytes)
    bytes_, added_at, halves = f.bytes, f.added or 0, f.halves
    is_added_to = f.added is not None
    tile = WeightTile(QUAD_BYTES, largest=f.largest)
    is_wide = tile.is_wide
    n_tokens, n_parts, part_bytes = tile.n_tokens, 2 // tile.vectors, 128 if is_wide else 64
    # What the next tile reads, a part at a time.
    fetched = n_tokens * QUAD_BYTES // n_parts
    fetch, fetch_results = simd.prefetcher(fetched, level=1), simd.row_prefetcher(n_tokens, 128, level=1)
    has_offset = f.offset != 0 and not is_wide
    start = tile.start(f.offset)
    offsets = [0, 4, 8, 12, 64, 68, 72, 76]
    dot = tile.wide_dot(2, offsets) if is_wide else tile.dot(offsets)
    widen, bytes_64 = tile.widen(2), emit.vec("u8", 64)
    off = f.offset if is_wide else 0
    take_off = emit.make(bytes_64, [bytes_64], lambda b, v: b.sub(v, emit.splat_constant(v.type, off)) if off else v)
    # A panel of words has half as many quads in twice the bytes.
    panel_quads, panel_bytes = (PANEL_QUADS // 2, 2 * _PANEL) if is_wide else (PANEL_QUADS, _PANEL)
    step_bytes, half_bytes, apart = (256, 128, words_of_bytes) if is_wide else (128, 64, None)
    block_bytes, column_bytes = 8 * step_bytes, 32 if is_wide else 16
    zero_ints, zero_floats, load_tile, store_tile = tile.zero_ints, tile.zero_floats, tile.load, tile.store
    fma_ints, fma_outer = tile.fma_ints, tile.fma_outer
    # In the panel a block's eight steps stand together: four of its first 16 weights, four of its last.
    transpose_low = transposer([step_bytes * (8 * (i // 4) + i % 4) for i in range(16)], apart)
    transpose_high = transposer([step_bytes * (8 * (i // 4) + 4 + i % 4) for i in range(16)], apart)

    @simd.device
    def unpack(weights, row_bytes, first, n, n_blocks, quad, unpacked, panel, d_panel, ahead_first, ahead):
        """One quad of 32 rows (the last row again where there are fewer) into a panel; fetches quad `ahead` of the rows
        from ahead_first on."""
        left = min(4, n_blocks - 4 * quad)
        o1, o2, o3 = min(1, left - 1) * bytes_, min(2, left - 1) * bytes_, min(3, left - 1) * bytes_
        for half in range(2):
            for i in range(16):
                p = weights + min(first + 16 * half + i, n - 1) * row_bytes + quad * 4 * bytes_
                fetch_row(weights + min(ahead_first + 16 * half + i, n - 1) * row_bytes + ahead * 4 * bytes_)
                low, high = halves(p, p + o1, p + o2, p + o3)
                store_bytes(unpacked + 64 * i, take_off(low))
                store_bytes(unpacked + 1024 + 64 * i, take_off(high))
                at = d_panel + 64 * half + 4 * i
                store_f32(at, load_f16(p))
                store_f32(at + 128, load_f16(p + o1))
                store_f32(at + 256, load_f16(p + o2))
                store_f32(at + 384, load_f16(p + o3))
                if is_added_to:
                    store_f32(at + _SCALES, load_f16(p + added_at))
                    store_f32(at + _SCALES + 128, load_f16(p + o1 + added_at))
                    store_f32(at + _SCALES + 256, load_f16(p + o2 + added_at))
                    store_f32(at + _SCALES + 384, load_f16(p + o3 + added_at))
            transpose_low(unpacked, panel + half_bytes * half)
            transpose_high(unpacked + 1024, panel + half_bytes * half)

    def matmul(op, shared, thread):
        """out[t][r] for many tokens. Reads the weights once, the activations once per 32 rows."""
        align_stack()
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> 5
        n_quads = (n_blocks + 3) >> 2
        tokens = load(shared + load(op + ROWS))
        if tokens == 0:
            return
        stride = quotient(tokens + 5, 6) * 6 * QUAD_BYTES
        out_stride = load(op + OUT_STRIDE)
        unpacked = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        panels = unpacked + _UNPACKED
        d_panels = panels + PANEL_QUADS * _PANEL
        wide = d_panels + PANEL_QUADS * 2 * _SCALES
        first = take(op, shared, CHUNK_ROWS, n)
        while first < n:
            following = take(op, shared, CHUNK_ROWS, n)
            quad = 0
            while quad < n_quads:
                here = min(panel_quads, n_quads - quad)
                # 32 short pieces of rows are more than the hardware follows: the next panel is fetched row by row.
                ahead_first, ahead = first, quad + here
                if ahead >= n_quads:
                    ahead_first, ahead = following, 0
                for k in range(here):
                    unpack(weights, row_bytes, first, n, n_blocks, quad + k, unpacked, panels + k * panel_bytes,
                           d_panels + k * 2 * _SCALES, ahead_first, min(ahead + k, n_quads - 1))  # fmt: skip
                t = 0
                while t < tokens:
                    fetch_results(load(op + OUT) + (t + n_tokens) * out_stride + 4 * first, out_stride)
                    for part in range(n_parts):
                        c = load(op + OUT) + t * out_stride + 4 * first + 64 * part
                        if quad == 0:
                            sums = zero_floats()
                        else:
                            sums = load_tile(c, out_stride)
                        for k in range(here):
                            a = load(op + PACKED) + (quad + k) * stride + t * QUAD_BYTES
                            b = a
                            if is_wide:
                                b = wide + k * _WIDE
                                if part == 0:
                                    widen(a, b)
                            panel = panels + k * panel_bytes + part * part_bytes
                            d = d_panels + k * 2 * _SCALES + 64 * part
                            for j in range(hidden(4)):
                                if has_offset:
                                    acc = start(a + QUAD_MINUS_SUMS + 4 * j)
                                else:
                                    acc = zero_ints()
                                acc = dot(acc, panel + block_bytes * j, b + column_bytes * j)
                                sums = fma_ints(sums, acc, d + 128 * j, a + QUAD_D + 4 * j)
                                if is_added_to:
                                    sums = fma_outer(sums, d + _SCALES + 128 * j, a + QUAD_D_SUMS + 4 * j)
                            fetch(a + n_tokens * QUAD_BYTES + part * fetched)
                        store_tile(sums, c, out_stride)
                    t += n_tokens
                quad += here
            first = following

    return matmul
