"""The inner loops of attention, one kernel for each kind of cached number: `attention_tiles.f16` and so on.

A kernel is told what to do by the number it gets as its third argument, and where by a list of int64 at its first:

    SCORES   scores of all rows with a block of 64 keys
    SUMS     weighted values of a block, added to all rows' sums
    WIDEN_KEYS, WIDEN_VALUES   a block as float32, for many rows: converted once, then read by `attention_tiles.f32`

Rows are taken in register tiles of at most 6, by their lanes' columns: 64 positions of a score, 64 dimensions of a
sum. Every score is one chain of fma over the head's dimensions and every sum one over the positions, so neither the
size of a tile nor the width of a vector changes a bit. Layout of blocks: `cache.py`; order of sums: docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels.cache import CACHE_TYPES

BLOCK = 64
"""Positions of a block."""
SEGMENT = 256
"""Positions that have one maximum; segments begin at multiples of it."""
MAX_HEAD_DIM = 512
QUERY_STRIDE = 4 * MAX_HEAD_DIM + 64  # not a multiple of 4096: rows would fall on the same cache lines
SCORE_STRIDE = 4 * SEGMENT + 64

_SLOTS = "DATA SCALES N_ROWS FIRST HEAD_DIM WIDTH STRIDE QUERIES WEIGHTS RESULTS LOW HIGH TARGET AHEAD"
DATA, SCALES, N_ROWS, FIRST, HEAD_DIM, WIDTH, STRIDE, QUERIES, WEIGHTS, RESULTS, LOW, HIGH, TARGET, AHEAD = (
    8 * i for i in range(len(_SLOTS.split()))
)
"""Arguments: the block and its scales; rows; the block's first position in its segment; head size, and as stored;
bytes from value to value; float32 queries, scores or weights [256], and sums of each row; int32 LOW and HIGH of each
row: it sees the positions LOW <= p < HIGH of the segment, both ascending from row to row; where to widen to; and
for a few rows, how far ahead of this block the next one lies, to be fetched meanwhile."""
ARGUMENT_BYTES = 8 * len(_SLOTS.split())

SCORES, SUMS, WIDEN_KEYS, WIDEN_VALUES = range(4)


def kernels() -> dict[str, Callable[..., None]]:
    return {kind: _make(kind) for kind in CACHE_TYPES}


def _make(kind: str) -> Callable[..., None]:
    from gemmafile.kernels import simd
    from gemmafile.kernels.outer_tiles import FEW_TILES, MANY_TILES, OuterTile

    load, load_i32, align_stack = simd.load_i64, simd.load_i32, simd.align_stack
    most, some, one = MANY_TILES if kind == "f32" else FEW_TILES
    run_tile = _make_run([OuterTile(rows, kind, BLOCK, QUERY_STRIDE, SCORE_STRIDE) for rows in (most, some, one)])
    widen_keys, widen_values = _make_wideners(kind)

    @simd.device
    def pick_rows(left):
        """Rows of the next tile: the largest that the rows left fill."""
        if left >= most:
            return most
        return some if left >= some else one

    def tile_kernel(arguments, shared, what):
        """See the module's head."""
        align_stack()
        if what == WIDEN_KEYS:
            widen_keys(load(arguments + DATA), load(arguments + SCALES), load(arguments + TARGET),
                       load(arguments + HEAD_DIM))  # fmt: skip
            return
        if what == WIDEN_VALUES:
            widen_values(load(arguments + DATA), load(arguments + SCALES), load(arguments + TARGET),
                         load(arguments + WIDTH))  # fmt: skip
            return
        n, r, first = load(arguments + N_ROWS), 0, load(arguments + FIRST)
        while r < n:
            rows = pick_rows(n - r)
            low, high = load(arguments + LOW) + 4 * r, load(arguments + HIGH) + 4 * r
            begin, end = max(0, load_i32(low) - first), min(BLOCK, load_i32(high + 4 * (rows - 1)) - first)
            if begin < end:
                # All rows of the tile see [all_begin, all_end); what lies on either side is added row by row.
                all_begin = min(end, max(begin, load_i32(low + 4 * (rows - 1)) - first))
                all_end = max(all_begin, min(end, load_i32(high) - first))
                step, last_step = 0, 0
                if what == SUMS and (begin < all_begin or all_end < end):
                    step, last_step = -rows, rows
                while step <= last_step:
                    if step == 0:
                        run_tile(arguments, what, r, rows, all_begin, all_end)
                    else:
                        i = step + rows if step < 0 else step - 1
                        from_, to = load_i32(low + 4 * i) - first, load_i32(high + 4 * i) - first
                        if step < 0:
                            from_, to = max(0, from_), min(all_begin, to)
                        else:
                            from_, to = max(all_end, from_), min(BLOCK, to)
                        if from_ < to:
                            run_tile(arguments, what, r + i, 1, from_, to)
                    step += 1
            r += rows

    return tile_kernel


def _make_run(tiles: list[Any]) -> Any:
    """run_tile(arguments, what, r, n, begin, end): the tile of n rows from r on; SUMS of positions [begin, end)."""
    from gemmafile.kernels import simd

    load = simd.load_i64
    most, some = tiles[0].rows, tiles[1].rows
    (scores_most, sums_most), (scores_some, sums_some), (scores_one, sums_one) = ((t.scores, t.sums) for t in tiles)

    @simd.device
    def run_tile(arguments, what, r, n, begin, end):
        weights = load(arguments + WEIGHTS) + r * SCORE_STRIDE + 4 * load(arguments + FIRST)
        data, scales, ahead = load(arguments + DATA), load(arguments + SCALES), load(arguments + AHEAD)
        if what == SCORES:
            queries, head_dim = load(arguments + QUERIES) + r * QUERY_STRIDE, load(arguments + HEAD_DIM)
            if n == most:
                scores_most(queries, data, scales, weights, head_dim, ahead)
            elif n == some:
                scores_some(queries, data, scales, weights, head_dim, ahead)
            else:
                scores_one(queries, data, scales, weights, head_dim, ahead)
        else:
            out, stride, width = (
                load(arguments + RESULTS) + r * QUERY_STRIDE, load(arguments + STRIDE), load(arguments + WIDTH),
            )  # fmt: skip
            if n == most:
                sums_most(weights, data, scales, out, stride, width, begin, end, ahead)
            elif n == some:
                sums_some(weights, data, scales, out, stride, width, begin, end, ahead)
            else:
                sums_one(weights, data, scales, out, stride, width, begin, end, ahead)

    return run_tile


def _make_wideners(kind: str) -> tuple[Any, Any]:
    from gemmafile.kernels import simd
    from gemmafile.kernels.emit import address, make, splat, vec
    from gemmafile.kernels.outer_tiles import load_numbers, load_one_half

    size, scaled = CACHE_TYPES[kind].n_bytes, kind == "q8_0"
    floats = vec("f32", 16)
    load_16 = make(floats, [address], lambda b, at: load_numbers(b, at, kind, 0, 16))
    load_scales = make(floats, [address], lambda b, at: load_numbers(b, at, "f16", 0, 16))
    splat_scale = make(floats, [address], lambda b, at: splat(b, load_one_half(b, at, 0), 16))
    store = simd.store_f32x16

    @simd.device
    def widen_keys(keys, scales, target, head_dim):
        """[head_dim][64]"""
        for d in range(head_dim):
            for i in range(BLOCK // 16):
                numbers = load_16(keys + size * 16 * i)
                if scaled:
                    numbers = numbers * load_scales(scales + 2 * (BLOCK * (d >> 5) + 16 * i))
                store(target + 64 * i, numbers)
            keys += size * BLOCK
            target += 4 * BLOCK

    @simd.device
    def widen_values(values, scales, target, width):
        """[64][width]"""
        for i in range((BLOCK // 16) * width):
            numbers = load_16(values)
            if scaled:
                numbers = numbers * splat_scale(scales + 2 * (i >> 1))
            store(target, numbers)
            values += size * 16
            target += 64

    return widen_keys, widen_values
