"""Attention: keys and values stored into their pages, then one fused pass with online softmax, cap and window.

A task is a tile of query rows (tokens of one sequence, times the query heads that share a kv head) and one kv head.
It walks the key blocks of 64 positions that any of its rows sees; scores of 4 rows x 64 positions stay in
registers, nothing of size T x S is ever made. Layout of pages: `cache.py`; order of sums: docs/numerics.md.
Twin: `reference.py`.

Scratch of a thread, in bytes: queries [MAX_ROWS][QUERY_STRIDE], sums [MAX_ROWS][QUERY_STRIDE], scores of 4 rows
[4][256], then per row: maximum, denominator, factor (float32 each).
"""

from __future__ import annotations

from collections.abc import Callable

from gemmafile.kernels.ops import (
    N_ROWS,
    N_TILES,
    NEXT,
    POSITIONS,
    ROW_TABLES,
    SCRATCH,
    SCRATCH_BYTES,
    TILE_BYTES,
    TILE_FIRST,
    TILE_LAST,
    TILE_ROWS,
    TILE_TABLE,
    TILES,
    slots,
)  # fmt: skip

MAX_ROWS = 32
"""Query rows (tokens x heads that share a kv head) in a tile, unless one token has more."""
MAX_HEAD_DIM = 512
QUERY_STRIDE = 4 * MAX_HEAD_DIM + 64  # not a multiple of 4096: rows would fall on the same cache lines
SCORE_STRIDE = 256
BLOCK_SHIFT, PAGE_SHIFT = 6, 7

_COMMON = "KEYS VALUES KEY_PAGE VALUE_PAGE KEY_HEAD VALUE_HEAD N_KV HEAD_DIM WIDTH "
KEYS, VALUES, KEY_PAGE, VALUE_PAGE, KEY_HEAD, VALUE_HEAD, N_KV, HEAD_DIM, WIDTH = slots(_COMMON)
"""Layer's keys and values, bytes of a page and of one kv head in it, kv heads, head size and size as stored."""
*_, K, K_STRIDE, V, V_STRIDE = slots(_COMMON + "K K_STRIDE V V_STRIDE")
*_, Q, Q_STRIDE, OUT, OUT_STRIDE, GROUP, SCALE, WINDOW, CAP, INVERSE_CAP = slots(
    _COMMON + "Q Q_STRIDE OUT OUT_STRIDE GROUP SCALE WINDOW CAP INVERSE_CAP"
)


def scratch_bytes(group: int) -> int:
    """Scratch a thread needs when `group` query heads share a kv head."""
    rows = -(-max(MAX_ROWS, group) // 4) * 4
    return 2 * rows * QUERY_STRIDE + 4 * SCORE_STRIDE + 3 * 4 * rows + 256


def tile_tokens(group: int) -> int:
    """Tokens in a tile of attention."""
    return max(1, MAX_ROWS // group)


def kernels() -> dict[str, Callable[..., None]]:
    from gemmafile.kernels.cache import CACHE_BYTES

    built: dict[str, Callable[..., None]] = {}
    for kind_k in CACHE_BYTES:
        for kind_v in CACHE_BYTES:
            built[f"store_{kind_k}_{kind_v}"] = _make_store(kind_k, kind_v)
            built[f"attend_{kind_k}_{kind_v}"] = _make_attend(kind_k, kind_v)
    return built


def _make_store(kind_k: str, kind_v: str) -> Callable[..., None]:
    from gemmafile.kernels import simd
    from gemmafile.kernels.cache import CACHE_BYTES

    load, load_i32, load_f32, atomic_add = simd.load_i64, simd.load_i32, simd.load_f32, simd.atomic_add
    store_one = {"f32": simd.store_f32, "f16": simd.store_f16, "bf16": simd.store_bf16}
    store_k, store_v = store_one[kind_k], store_one[kind_v]
    size_k, size_v = CACHE_BYTES[kind_k], CACHE_BYTES[kind_v]

    def store(op, shared, thread):
        """k and v of each row into the page of its position: k transposed, v as it is."""
        n_kv, head_dim = load(op + N_KV), load(op + HEAD_DIM)
        width = load(op + WIDTH)
        n = load(shared + N_ROWS)
        while True:
            row = atomic_add(op + NEXT, 1)
            if row >= n:
                return
            position = load_i32(load(shared + POSITIONS) + 4 * row)
            page = load_i32(load(load(shared + ROW_TABLES) + 8 * row) + 4 * (position >> PAGE_SHIFT))
            inside = position & 127
            k, v = load(op + K) + row * load(op + K_STRIDE), load(op + V) + row * load(op + V_STRIDE)
            keys = load(op + KEYS) + page * load(op + KEY_PAGE)
            keys += size_k * ((inside >> BLOCK_SHIFT) * 64 * width + (inside & 63))
            values = load(op + VALUES) + page * load(op + VALUE_PAGE) + size_v * inside * width
            for head in range(n_kv):
                for d in range(head_dim):
                    store_k(
                        keys + head * load(op + KEY_HEAD) + size_k * 64 * d, load_f32(k + 4 * (head * head_dim + d))
                    )
                    store_v(values + head * load(op + VALUE_HEAD) + size_v * d, load_f32(v + 4 * (head * head_dim + d)))

    return store


def _make_attend(kind_k: str, kind_v: str) -> Callable[..., None]:
    from numba.core import types

    from gemmafile.kernels import simd
    from gemmafile.kernels.cache import CACHE_BYTES
    from gemmafile.kernels.tiles import OuterTile

    f32, i32 = types.float32, types.int32
    load, load_i32, load_f32, store_f32 = simd.load_i64, simd.load_i32, simd.load_f32, simd.store_f32
    load_v, store_v, load_part, store_part = (
        simd.load_f32x16,
        simd.store_f32x16,
        simd.load_part_f32x16,
        simd.store_part_f32x16,
    )
    splat, splat_i32, lanes = simd.splat_f32x16, simd.splat_i32x16, simd.lanes_i32x16
    exp, tanh, select, both, greater = simd.exp, simd.tanh, simd.select, simd.both, simd.greater_i32
    max_lanes, sum_lanes, fma_scalar = simd.max_f32x16, simd.sum_f32x16, simd.fma_scalar
    quotient, remainder, atomic_add = simd.quotient, simd.remainder, simd.atomic_add
    size_k, size_v = CACHE_BYTES[kind_k], CACHE_BYTES[kind_v]
    scores = OuterTile(QUERY_STRIDE, SCORE_STRIDE, kind_k)
    sums = OuterTile(SCORE_STRIDE, QUERY_STRIDE, kind_v)
    score_zero, score_step, score_store = scores.zero, scores.step, scores.store
    sum_load, sum_step, sum_step_where, sum_store = sums.load_scaled, sums.step, sums.step_where, sums.store
    infinity = f32(float("inf"))

    @simd.device
    def exp_one(x):
        return max_lanes(exp(splat(x)))

    @simd.device
    def soften(at, first, lowest, position, maximum, denominator, factor, scale, cap, inverse_cap):
        """One row's 64 scores at `at` become weights; its maximum, denominator and factor are brought up to date."""
        best = load_f32(maximum)
        for i in range(4):
            s = load_v(at + 64 * i) * splat(scale)
            if cap > f32(0):
                s = splat(cap) * tanh(s * splat(inverse_cap))
            here = lanes() + splat_i32(i32(first + 16 * i))
            seen = both(greater(splat_i32(i32(position + 1)), here), greater(here, splat_i32(i32(lowest - 1))))
            s = select(seen, s, splat(-infinity))
            store_v(at + 64 * i, s)
            block_best = max_lanes(s)
            if block_best > best:
                best = block_best
        shrink = exp_one(load_f32(maximum) - best)
        p0, p1 = exp(load_v(at) - splat(best)), exp(load_v(at + 64) - splat(best))
        p2, p3 = exp(load_v(at + 128) - splat(best)), exp(load_v(at + 192) - splat(best))
        store_v(at, p0)
        store_v(at + 64, p1)
        store_v(at + 128, p2)
        store_v(at + 192, p3)
        store_f32(denominator, fma_scalar(load_f32(denominator), shrink, sum_lanes((p0 + p1) + (p2 + p3))))
        store_f32(maximum, best)
        store_f32(factor, shrink)

    @simd.device
    def lowest_seen(position, window):
        """The first position that a row sees."""
        if window > 0:
            return max(0, position - window + 1)
        return 0

    @simd.device
    def rows_that_see(j, p0, p1, p2, p3, window):
        """Bit r is set if a row at position pr sees j."""
        bits = 0
        if p0 >= j and lowest_seen(p0, window) <= j:
            bits |= 1
        if p1 >= j and lowest_seen(p1, window) <= j:
            bits |= 2
        if p2 >= j and lowest_seen(p2, window) <= j:
            bits |= 4
        if p3 >= j and lowest_seen(p3, window) <= j:
            bits |= 8
        return bits

    def attend(op, shared, thread):
        """softmax(cap(q·k * scale) + mask)·v for the rows of a tile and the query heads of one kv head."""
        n_kv, group, head_dim, width = load(op + N_KV), load(op + GROUP), load(op + HEAD_DIM), load(op + WIDTH)
        window = load(op + WINDOW)
        scale, cap, inverse_cap = load_f32(op + SCALE), load_f32(op + CAP), load_f32(op + INVERSE_CAP)
        positions = load(shared + POSITIONS)
        scratch = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        n_tasks = load(shared + N_TILES) * n_kv
        while True:
            task = atomic_add(op + NEXT, 1)
            if task >= n_tasks:
                return
            # The last tiles see the most: they go first, so that no thread is left with a long one at the end.
            tile = load(shared + TILES) + TILE_BYTES * (load(shared + N_TILES) - 1 - quotient(task, n_kv))
            kv_head = remainder(task, n_kv)
            first_row, n_tokens, table = load(tile + TILE_FIRST), load(tile + TILE_ROWS), load(tile + TILE_TABLE)
            n_rows = n_tokens * group
            padded_rows = (n_rows + 3) & ~3
            queries = scratch
            results = queries + padded_rows * QUERY_STRIDE
            score = results + padded_rows * QUERY_STRIDE
            maxima = score + 4 * SCORE_STRIDE
            denominators, factors = maxima + 4 * padded_rows, maxima + 8 * padded_rows

            for r in range(padded_rows):
                row = min(r, n_rows - 1)
                q = load(op + Q) + (first_row + quotient(row, group)) * load(op + Q_STRIDE)
                q += 4 * head_dim * (kv_head * group + remainder(row, group))
                d = 0
                while d < width:
                    store_v(queries + r * QUERY_STRIDE + 4 * d, load_part(q + 4 * d, head_dim - d))
                    store_v(results + r * QUERY_STRIDE + 4 * d, splat(f32(0)))
                    d += 16
                store_f32(maxima + 4 * r, f32(-1e30))
                store_f32(denominators + 4 * r, f32(0))

            last = load(tile + TILE_LAST)
            lowest_of_tile = lowest_seen(load_i32(positions + 4 * first_row), window)
            block = lowest_of_tile >> BLOCK_SHIFT
            while block <= last >> BLOCK_SHIFT:
                first = block << BLOCK_SHIFT
                page = load_i32(table + 4 * (first >> PAGE_SHIFT))
                keys = load(op + KEYS) + page * load(op + KEY_PAGE) + kv_head * load(op + KEY_HEAD)
                keys += size_k * width * (first & 127)
                values = load(op + VALUES) + page * load(op + VALUE_PAGE) + kv_head * load(op + VALUE_HEAD)
                values += size_v * width * (first & 127)
                r = 0
                while r < padded_rows:
                    acc = score_zero()
                    at, key = queries + r * QUERY_STRIDE, keys
                    for _ in range(head_dim):
                        acc = score_step(acc, at, key)
                        at += 4
                        key += size_k * 64
                    score_store(acc, score)
                    p0 = load_i32(positions + 4 * (first_row + quotient(r, group)))
                    p1 = load_i32(positions + 4 * (first_row + quotient(min(r + 1, n_rows - 1), group)))
                    p2 = load_i32(positions + 4 * (first_row + quotient(min(r + 2, n_rows - 1), group)))
                    p3 = load_i32(positions + 4 * (first_row + quotient(min(r + 3, n_rows - 1), group)))
                    for i in range(4):
                        position = load_i32(positions + 4 * (first_row + quotient(min(r + i, n_rows - 1), group)))
                        lowest = lowest_seen(position, window)
                        soften(score + i * SCORE_STRIDE, first, lowest, position, maxima + 4 * (r + i),
                               denominators + 4 * (r + i), factors + 4 * (r + i), scale, cap, inverse_cap)  # fmt: skip
                    # Of the block's positions [begin, end) are seen by a row, [all_begin, all_end) by all four.
                    begin, end = max(0, lowest_seen(p0, window) - first), min(64, p3 + 1 - first)
                    all_begin = min(end, max(begin, lowest_seen(p3, window) - first))
                    all_end = max(all_begin, min(end, p0 + 1 - first))
                    d = 0
                    while d < width:
                        total = sum_load(results + r * QUERY_STRIDE + 4 * d, factors + 4 * r)
                        value = values + size_v * d
                        for j in range(begin, all_begin):
                            rows = rows_that_see(first + j, p0, p1, p2, p3, window)
                            total = sum_step_where(total, score + 4 * j, value + size_v * width * j, rows)
                        at, next_value = score + 4 * all_begin, value + size_v * width * all_begin
                        for _ in range(all_begin, all_end):
                            total = sum_step(total, at, next_value)
                            at += 4
                            next_value += size_v * width
                        for j in range(all_end, end):
                            rows = rows_that_see(first + j, p0, p1, p2, p3, window)
                            total = sum_step_where(total, score + 4 * j, value + size_v * width * j, rows)
                        sum_store(total, results + r * QUERY_STRIDE + 4 * d)
                        d += 64
                    r += 4
                block += 1

            for r in range(n_rows):
                out = load(op + OUT) + (first_row + quotient(r, group)) * load(op + OUT_STRIDE)
                out += 4 * head_dim * (kv_head * group + remainder(r, group))
                over = splat(f32(1) / load_f32(denominators + 4 * r))
                d = 0
                while d < head_dim:
                    store_part(out + 4 * d, load_v(results + r * QUERY_STRIDE + 4 * d) * over, head_dim - d)
                    d += 16

    return attend
