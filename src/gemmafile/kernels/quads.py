"""Matrix kernels of the 32-blocks: four blocks of 32 weights, each with a float16 scale, are taken as one quad.

A format gives a few facts about a block and one function that unpacks four of them (`Quad`); from these come

    matvec  1 to 4 tokens: 4 weight rows side by side, straight from the file's bytes, lanes run along K
            (`quad_streams.py`)
    matmul  more: 32 rows x 512 columns are unpacked into a panel of bytes, lanes are rows; the panel meets the
            tokens in tiles of 6, the last ones in tiles of 4. Meanwhile the next 32 rows are fetched, from end to end
            and a few lines at each step: so one stream runs through memory, and its wait is nowhere

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
    CHUNK_ROWS,
    COLUMNS,
    FEW_BYTES,
    OUT,
    OUT_STRIDE,
    PACKED,
    ROW_BYTES,
    WEIGHTS,
    N,
    make_fetch_lines,
    make_fetch_panel,
    make_find_rows,
    make_matvec,
    make_take,
)  # fmt: skip

PANEL_QUADS = 4
_PANEL, _SCALES = 32 * 32 * 4, 4 * 32 * 4
_WIDE = 6 * 2 * 128
"""Of a quad of a tile's tokens as words."""
_ROWS = 32 * 8
"""Addresses of rows."""
SCRATCH_NEEDED = _ROWS + PANEL_QUADS * (_PANEL + 2 * _SCALES) + PANEL_QUADS // 2 * _WIDE + 256


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
    from gemmafile.kernels.quad_streams import make_walk

    matvec = make_matvec([make_walk(f, n) for n in (1, 2, 3, 4)], 32, f.bytes, QUAD_BYTES)
    return {
        "matvec": matvec, "matmul": _make_matmul(f), "matmul_amx": quads_amx.make_matmul(f),
        "batch_amx": batch_amx.make_quads(f),
    }  # fmt: skip


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
    from gemmafile.kernels import simd
    from gemmafile.kernels.tiles import WeightTile, make_is_last

    find_rows = make_find_rows()
    load, take, align_stack, quotient = simd.load_i64, make_take(), simd.align_stack, simd.quotient
    tile = WeightTile(QUAD_BYTES, largest=f.largest)
    unpack, is_last = _make_unpack(f, tile), make_is_last(tile)
    n_tokens, fewer = tile.n_tokens, tile.fewer
    add_tile = _make_add_tile(f, tile)
    add_fewer = _make_add_tile(f, WeightTile(QUAD_BYTES, largest=f.largest, n_tokens=fewer))
    panel_quads, panel_bytes = _panel(tile)
    n_parts, bytes_, fetch_panel = 2 // tile.vectors, f.bytes, make_fetch_panel(panel_quads * 4 * f.bytes)

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
        rows = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        panels = rows + _ROWS
        d_panels = panels + PANEL_QUADS * _PANEL
        wide = d_panels + PANEL_QUADS * 2 * _SCALES
        n_steps = 4 * n_parts * n_quads * quotient(tokens + n_tokens - 1, n_tokens)
        # Many tokens' activations would drive the next rows out of the cache again: of these its next panel is fetched.
        has_few = n_quads * stride <= FEW_BYTES
        n_lines = quotient(CHUNK_ROWS * row_bytes + 64 * n_steps - 1, 64 * n_steps) if has_few else 0
        first = take(op, shared, CHUNK_ROWS, n)
        while first < n:
            following = take(op, shared, CHUNK_ROWS, n)
            find_rows(weights, row_bytes, first, n, rows)
            ahead = weights + min(following, n - 1) * row_bytes
            quad = 0
            while quad < n_quads:
                here = min(panel_quads, n_quads - quad)
                for k in range(here):
                    unpack(rows, n_blocks, quad + k, panels + k * panel_bytes, d_panels + k * 2 * _SCALES)
                if n_lines == 0:
                    if quad + here < n_quads:
                        fetch_panel(weights, row_bytes, first, n, (quad + here) * 4 * bytes_)
                    else:
                        fetch_panel(weights, row_bytes, following, n, 0)
                t = 0
                while t < tokens:
                    a = load(op + PACKED) + quad * stride + t * QUAD_BYTES
                    c = load(op + OUT) + t * out_stride + 4 * first
                    if is_last(tokens - t):
                        add_fewer(a, stride, c, out_stride, quad == 0, here, panels, d_panels, wide, ahead, n_lines)
                        t += fewer
                    else:
                        add_tile(a, stride, c, out_stride, quad == 0, here, panels, d_panels, wide, ahead, n_lines)
                        t += n_tokens
                    ahead += 4 * n_parts * here * n_lines * 64
                quad += here
            first = following

    return matmul


def _panel(tile: Any) -> tuple[int, int]:
    """Quads of the panels, bytes of one. A panel of words has half as many quads in twice the bytes."""
    return (PANEL_QUADS // 2, 2 * _PANEL) if tile.is_wide else (PANEL_QUADS, _PANEL)


def _make_unpack(f: Quad, tile: Any) -> Any:
    """unpack(rows, n_blocks, quad, panel, d_panel): one quad of 32 rows into a panel; their addresses are at `rows`."""
    from gemmafile.kernels import emit, simd

    load, halves, bytes_ = simd.load_i64, f.halves, f.bytes
    u64 = emit.vec("u8", 64)
    place = emit.make(emit.void, [*[u64] * 4, emit.address], _place_code(f, tile))
    read_scales = emit.make(emit.void, [emit.address] * 3, _read_scales_code(f))
    block_bytes, half_bytes = (8 * 256, 128) if tile.is_wide else (8 * 128, 64)

    @simd.device
    def of_rows(rows, i, at):
        rows += 8 * i
        return halves(load(rows) + at, load(rows + 32) + at, load(rows + 64) + at, load(rows + 96) + at)

    @simd.device
    def unpack(rows, n_blocks, quad, panel, d_panel):
        last = min(3, n_blocks - 4 * quad - 1)
        for half in range(2):
            at, target, d = rows + 128 * half, panel + half_bytes * half, d_panel + 64 * half
            for j in range(4):
                block = (4 * quad + min(j, last)) * bytes_
                low0, high0 = of_rows(at, 0, block)
                low1, high1 = of_rows(at, 1, block)
                low2, high2 = of_rows(at, 2, block)
                low3, high3 = of_rows(at, 3, block)
                place(low0, low1, low2, low3, target)
                place(high0, high1, high2, high3, target + block_bytes // 2)
                read_scales(at, block, d)
                target += block_bytes
                d += 128

    return unpack


def _place_code(f: Quad, tile: Any) -> Callable[..., None]:
    """Vectors of 16 weights of rows i, i + 4, i + 8 and i + 12 -> four steps of a panel."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit, tiles, transposes

    def code(b: Any, *arguments: Any) -> None:
        rows, target = list(arguments[:4]), arguments[4]
        if tile.is_wide and f.offset:
            rows = [b.sub(v, emit.splat_constant(v.type, f.offset)) for v in rows]
        rows = [b.bitcast(v, ir.VectorType(emit.I32, 16)) for v in rows]
        for step, v in enumerate(transposes.transpose_fours(b, rows)):
            parts = tiles.words_of_bytes(b, v) if tile.is_wide else [v]
            for i, part in enumerate(parts):
                emit.store_at(b, part, target, 128 * len(parts) * step + 64 * i)

    return code


def _read_scales_code(f: Quad) -> Callable[..., None]:
    """read(rows, at, target): the scales of a block of 16 rows, and what is added to its weights."""
    from gemmafile.kernels import emit
    from gemmafile.kernels.quad_streams import scales_of_rows

    def code(b: Any, rows: Any, at: Any, target: Any) -> None:
        for four in range(0, 16, 4):
            places = [b.add(emit.load_at(b, rows, emit.I64, 8 * (four + i)), at) for i in range(4)]
            scales, added = scales_of_rows(b, places, f.added)
            emit.store_at(b, scales, target, 4 * four)
            if added is not None:
                emit.store_at(b, added, target, _SCALES + 4 * four)

    return code


def _make_add_tile(f: Quad, tile: Any) -> Any:
    from gemmafile.kernels import simd

    is_added_to, is_wide, hidden = f.added is not None, tile.is_wide, simd.hidden
    n_tokens, n_parts, part_bytes = tile.n_tokens, 2 // tile.vectors, 128 if is_wide else 64
    # What the next tile reads, a part at a time.
    fetched = n_tokens * QUAD_BYTES // n_parts
    fetch, fetch_results = simd.prefetcher(fetched, level=1), simd.row_prefetcher(n_tokens, 128, level=1)
    fetch_lines = make_fetch_lines()
    has_offset = f.offset != 0 and not is_wide
    start = tile.start(f.offset)
    offsets = [0, 4, 8, 12, 64, 68, 72, 76]
    dot, widen = tile.wide_dot(2, offsets) if is_wide else tile.dot(offsets), tile.widen(2)
    block_bytes, column_bytes = (8 * 256, 32) if is_wide else (8 * 128, 16)
    panel_bytes = _panel(tile)[1]
    zero_ints, zero_floats, load_tile, store_tile = tile.zero_ints, tile.zero_floats, tile.load, tile.store
    fma_ints, fma_outer = tile.fma_ints, tile.fma_outer

    @simd.device
    def add_tile(packed, stride, out, out_stride, is_first, here, panels, d_panels, wide, ahead, count):
        """out[t][r], 32 rows of a tile's tokens, plus the products of `here` panels; plus nothing if they are first."""
        fetch_results(out + n_tokens * out_stride, out_stride)
        for part in range(n_parts):
            c = out + 64 * part
            if is_first:
                sums = zero_floats()
            else:
                sums = load_tile(c, out_stride)
            for k in range(here):
                a = packed + k * stride
                b = a
                if is_wide:
                    b = wide + k * _WIDE
                    if part == 0:
                        widen(a, b)
                panel = panels + k * panel_bytes + part * part_bytes
                d = d_panels + k * 2 * _SCALES + 64 * part
                for j in range(hidden(4)):
                    fetch_lines(ahead, count)
                    ahead += 64 * count
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

    return add_tile
