"""Attention over keys and values in their pages: one fused pass with softmax, cap and window.

A task is a tile of query rows (tokens of one sequence, times the query heads that share a kv head) and one kv head.
It walks the segments of 256 positions that any of its rows sees; nothing of size T x S is ever made. Where there are
too few tasks for the threads, a tile is cut into parts of one segment each, and whoever ends last puts the parts
together, in the order in which one task would have.

Beside this file: `attention_tasks.py` what tasks there are, `attention_tiles.py` the inner loops, `attention_store.py`
keys and values into their pages. Layout of pages: `cache.py`; order of sums: docs/numerics.md. Twin: `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from gemmafile.kernels import attention_tiles as t
from gemmafile.kernels.attention_tiles import ARGUMENT_BYTES, BLOCK, QUERY_STRIDE, SCORE_STRIDE, SEGMENT
from gemmafile.kernels.ops import NEXT, SCRATCH, SCRATCH_BYTES, slots

FEW_ROWS = 8
"""Up to so many rows read cached numbers as they are; for more, a block is widened to float32 once."""
BLOCK_SHIFT, PAGE_SHIFT, SEGMENT_SHIFT = 6, 7, 8
KEYS, VALUES, Q, Q_STRIDE, OUT, OUT_STRIDE, SCALE, WINDOW, CAP, INVERSE_CAP, TASKS, SHAPE = slots(
    "KEYS VALUES Q Q_STRIDE OUT OUT_STRIDE SCALE WINDOW CAP INVERSE_CAP TASKS SHAPE"
)
"""Fields of `attend`. TASKS: address of a list of tasks; SHAPE: of what all layers share, see below."""

_SHAPE = (
    "S_KEY_PAGE S_VALUE_PAGE S_KEY_HEAD S_VALUE_HEAD S_KEY_BLOCK S_N_KV S_GROUP S_HEAD_DIM S_WIDTH S_SIZE_K S_SIZE_V "
    "S_TILES_K S_TILES_V S_TILES_F32 S_MOST_ROWS S_PARTIALS S_PARTIAL_BYTES S_COUNTERS"
).split()
(
    S_KEY_PAGE, S_VALUE_PAGE, S_KEY_HEAD, S_VALUE_HEAD, S_KEY_BLOCK, S_N_KV, S_GROUP, S_HEAD_DIM, S_WIDTH, S_SIZE_K,
    S_SIZE_V, S_TILES_K, S_TILES_V, S_TILES_F32, S_MOST_ROWS, S_PARTIALS, S_PARTIAL_BYTES, S_COUNTERS,
) = (8 * i for i in range(len(_SHAPE)))  # fmt: skip
"""int64: bytes of a page and of a kv head in it, of keys and values, and of a block of keys; kv heads, query heads that
share one, head size and as stored; bytes of a number; kernels of `attention_tiles` for keys, values and float32; rows
that scratch has room for; room for parts, bytes of a part of one token and one kv head; int64 counters, all 0 between
operations."""
SHAPE_SLOTS = len(_SHAPE)

N_TASKS, ENTRIES = 0, 8
"""A list of tasks: entries, and where they are. Each entry is n_kv tasks, one a kv head."""
E_ROW, E_TOKENS, E_TABLE, E_POSITION, E_FIRST, E_LAST, E_END, E_PART, E_PARTS, E_SLOT, E_COUNTER = (
    8 * i for i in range(11)
)
ENTRY_BYTES = 88
"""An entry: first row, tokens, address of the page table, position of the first row, first and last segment, last
segment of the tile; number of this part, parts (1: whole), place of part 0 in tokens, the tile's counter times n_kv."""

PARTIAL_HEAD = 64
"""Bytes before the sums of a part's row: float32 maximum and denominator, int32 whether it saw anything."""


def tile_rows(width: int) -> int:
    """Query rows in a tile, unless one token has more: keys and values are read once for all of them."""
    return 96 if width <= 128 else 48


def most_rows(group: int, width: int) -> int:
    """Rows that a thread's scratch has room for: one is repeated where registers are left over."""
    return max(tile_rows(width), group) + 1


def tile_tokens(group: int, width: int) -> int:
    """Tokens in a tile."""
    return max(1, tile_rows(width) // group)


def partial_bytes(group: int, width: int) -> int:
    """Bytes of one token's part for one kv head."""
    return group * (4 * width + PARTIAL_HEAD)


_ROW_SLOTS = 7
"""int32 or float32 arrays of one number a row, see `_make_attend`."""


def scratch_bytes(group: int, width: int) -> int:
    """Scratch a thread needs when `group` query heads share a kv head."""
    rows = most_rows(group, width)
    row_bytes = 3 * QUERY_STRIDE + SCORE_STRIDE + 4 * _ROW_SLOTS
    return rows * row_bytes + 4 * BLOCK * width + ARGUMENT_BYTES + 64 * (_ROW_SLOTS + 2)


def kernels() -> dict[str, Callable[..., None]]:
    return {"attend": _make_attend()}


def _make_attend() -> Callable[..., None]:
    from numba.core import types

    from gemmafile.kernels import simd
    from gemmafile.kernels.outer_tiles import FEW_TILES, MANY_TILES

    f32, i32 = types.float32, types.int32
    load, load_i32, load_f32, store_f32 = simd.load_i64, simd.load_i32, simd.load_f32, simd.store_f32
    align_stack = simd.align_stack
    put, store_i32 = simd.store_i64, simd.store_i32
    load_v, store_v, load_part, store_part = (
        simd.load_f32x16,
        simd.store_f32x16,
        simd.load_part_f32x16,
        simd.store_part_f32x16,
    )
    splat, splat_i32, lanes = simd.splat_f32x16, simd.splat_i32x16, simd.lanes_i32x16
    tanh, fma, select, both, greater_i32 = simd.tanh, simd.fma, simd.select, simd.both, simd.greater_i32
    less, greater, equal = simd.less, simd.greater, simd.equal
    as_i32, as_f32 = simd.f32_as_i32x16, simd.i32_as_f32x16
    max_lanes, sum_lanes, fma_scalar = simd.max_f32x16, simd.sum_f32x16, simd.fma_scalar
    quotient, remainder, atomic_add, call = simd.quotient, simd.remainder, simd.atomic_add, simd.call_kernel
    infinity = f32(float("inf"))
    few_in_tile, many_in_tile = FEW_TILES[0], MANY_TILES[0]

    @simd.device
    def weight(x):
        """exp(x) of numbers up to 0, and of NaN, in fewer steps than `simd.exp` and to the same bits: adding 1.5 * 2^23
        rounds to an integer and leaves it in the last bits."""
        low, magic = splat(f32(-87.33)), splat(f32(12582912.0))
        held = select(greater(low, x), low, x)
        shifted = held * splat(f32(1.44269504)) + magic
        n = shifted - magic
        r = fma(n, splat(f32(-0.693359375)), held)
        r = fma(n, splat(f32(2.12194440e-4)), r)
        p = splat(f32(1.9875691500e-4))
        p = fma(p, r, splat(f32(1.3981999507e-3)))
        p = fma(p, r, splat(f32(8.3334519073e-3)))
        p = fma(p, r, splat(f32(4.1665795894e-2)))
        p = fma(p, r, splat(f32(1.6666665459e-1)))
        p = fma(p, r, splat(f32(5.0000001201e-1)))
        y = fma(p, r * r, r) + splat(f32(1))
        y = as_f32(as_i32(y) + (as_i32(shifted) << 23))
        return select(equal(x, x), select(less(x, low), splat(f32(0)), y), x)

    @simd.device
    def weight_of(x):
        return max_lanes(weight(splat(x)))

    @simd.device
    def soften(at, low, high, maximum, denominator, scale, cap, inverse_cap):
        """Scores low to high of a row's segment at `at` become weights; says their maximum and sum. In the vectors at
        the ends, what the row does not see becomes 0; other vectors are left alone."""
        begin, end = low >> 4, (high + 15) >> 4
        best = splat(f32(-1e30))
        for i in range(begin, end):
            s = load_v(at + 64 * i) * splat(scale)
            if cap > f32(0):
                s = splat(cap) * tanh(s * splat(inverse_cap))
            if 16 * i < low or high < 16 * i + 16:
                here = lanes() + splat_i32(i32(16 * i))
                seen = both(greater_i32(splat_i32(i32(high)), here), greater_i32(here, splat_i32(i32(low - 1))))
                s = select(seen, s, splat(-infinity))
            store_v(at + 64 * i, s)
            best = select(greater(s, best), s, best)
        most = max_lanes(best)
        total = splat(f32(0))
        for i in range(begin, end):
            p = weight(load_v(at + 64 * i) - splat(most))
            store_v(at + 64 * i, p)
            total = total + p
        store_f32(maximum, most)
        store_f32(denominator, sum_lanes(total))

    @simd.device
    def add_segment(sums, maximum, denominator, started, more, m, l, width):
        """A row's segment joins the segments before it."""
        if load_i32(started) == 0:
            d = 0
            while d < width:
                store_v(sums + 4 * d, load_v(more + 4 * d))
                d += 16
            store_f32(maximum, m)
            store_f32(denominator, l)
            store_i32(started, i32(1))
        else:
            before = load_f32(maximum)
            most = max(before, m)
            old, new = weight_of(before - most), weight_of(m - most)
            d = 0
            while d < width:
                store_v(sums + 4 * d, fma(load_v(more + 4 * d), splat(new), load_v(sums + 4 * d) * splat(old)))
                d += 16
            store_f32(maximum, most)
            store_f32(denominator, fma_scalar(l, new, load_f32(denominator) * old))

    @simd.device
    def lowest_seen(position, window):
        """The first position that a row sees."""
        if window > 0:
            return max(0, position - window + 1)
        return 0

    @simd.device
    def set_ranges(arguments, n_rows, group, position, first, window):
        """What of the segment at `first` each row sees."""
        low, high, n_padded = load(arguments + t.LOW), load(arguments + t.HIGH), load(arguments + t.N_ROWS)
        r = 0
        while r < n_padded:
            lowest = min(SEGMENT, max(0, lowest_seen(position, window) - first))
            end = min(SEGMENT, max(0, position + 1 - first))
            for i in range(r, min(n_padded, r + group)):
                store_i32(low + 4 * i, i32(lowest))
                store_i32(high + 4 * i, i32(end))
            if r + group < n_rows:
                position += 1
            r += group

    @simd.device
    def find_keys(op, shape, table, kv_head, position):
        """The block of keys that begins at a position."""
        page = load_i32(table + 4 * (position >> PAGE_SHIFT))
        keys = load(op + KEYS) + page * load(shape + S_KEY_PAGE) + kv_head * load(shape + S_KEY_HEAD)
        return keys + ((position & 127) >> BLOCK_SHIFT) * load(shape + S_KEY_BLOCK)

    @simd.device
    def find_values(op, shape, table, kv_head, position):
        """The value at a position."""
        page = load_i32(table + 4 * (position >> PAGE_SHIFT))
        values = load(op + VALUES) + page * load(shape + S_VALUE_PAGE) + kv_head * load(shape + S_VALUE_HEAD)
        return values + load(shape + S_SIZE_V) * load(shape + S_WIDTH) * (position & 127)

    @simd.device
    def walk_segment(op, shape, arguments, wide, table, n_rows, kv_head, segment, is_more, maxima, denominators):
        """The scores, weights and sums of all rows in one segment: into RESULTS, `maxima` and `denominators`."""
        width = load(shape + S_WIDTH)
        low, high = load(arguments + t.LOW), load(arguments + t.HIGH)
        scale, cap, inverse_cap = load_f32(op + SCALE), load_f32(op + CAP), load_f32(op + INVERSE_CAP)
        size_k, size_v = load(shape + S_SIZE_K), load(shape + S_SIZE_V)
        is_widened_k = n_rows > FEW_ROWS and size_k < 4
        is_widened_v = n_rows > FEW_ROWS and size_v < 4
        begin = load_i32(low) >> BLOCK_SHIFT
        end = (load_i32(high + 4 * (n_rows - 1)) + BLOCK - 1) >> BLOCK_SHIFT
        for block in range(begin, end):
            at = segment * SEGMENT + block * BLOCK
            keys = find_keys(op, shape, table, kv_head, at)
            put(arguments + t.DATA, keys)
            put(arguments + t.SCALES, keys + 64 * width)
            put(arguments + t.FIRST, block * BLOCK)
            if block + 1 < end:
                ahead = find_keys(op, shape, table, kv_head, at + BLOCK)
            else:
                ahead = find_values(op, shape, table, kv_head, segment * SEGMENT + begin * BLOCK)
            put(arguments + t.AHEAD, ahead - keys)
            if is_widened_k:
                put(arguments + t.TARGET, wide)
                call(load(shape + S_TILES_K), arguments, 0, t.WIDEN_KEYS)
                put(arguments + t.DATA, wide)
                call(load(shape + S_TILES_F32), arguments, 0, t.SCORES)
            else:
                call(load(shape + S_TILES_K), arguments, 0, t.SCORES)
        for r in range(load(arguments + t.N_ROWS)):
            d = 0
            while d < width:
                store_v(load(arguments + t.RESULTS) + r * QUERY_STRIDE + 4 * d, splat(f32(0)))
                d += 16
        for r in range(n_rows):
            if load_i32(low + 4 * r) < load_i32(high + 4 * r):
                soften(load(arguments + t.WEIGHTS) + r * SCORE_STRIDE, load_i32(low + 4 * r), load_i32(high + 4 * r),
                       maxima + 4 * r, denominators + 4 * r, scale, cap, inverse_cap)  # fmt: skip
        for block in range(begin, end):
            at = segment * SEGMENT + block * BLOCK
            values = find_values(op, shape, table, kv_head, at)
            put(arguments + t.DATA, values)
            put(arguments + t.SCALES, values + (128 - (at & 127)) * width + 2 * (width >> 5) * (at & 127))
            ahead = values
            if block + 1 < end:
                ahead = find_values(op, shape, table, kv_head, at + BLOCK)
            elif is_more:
                ahead = find_keys(op, shape, table, kv_head, (segment + 1) * SEGMENT)
            put(arguments + t.AHEAD, ahead - values)
            put(arguments + t.FIRST, block * BLOCK)
            if is_widened_v:
                put(arguments + t.TARGET, wide)
                call(load(shape + S_TILES_V), arguments, 0, t.WIDEN_VALUES)
                put(arguments + t.DATA, wide)
                put(arguments + t.STRIDE, 4 * width)
                call(load(shape + S_TILES_F32), arguments, 0, t.SUMS)
            else:
                put(arguments + t.STRIDE, size_v * width)
                call(load(shape + S_TILES_V), arguments, 0, t.SUMS)

    @simd.device
    def write_part(part, arguments, n_rows, maxima, denominators, width):
        """A tile's rows after one segment, for whoever puts the parts together."""
        low, high = load(arguments + t.LOW), load(arguments + t.HIGH)
        for r in range(n_rows):
            sees = load_i32(low + 4 * r) < load_i32(high + 4 * r)
            store_i32(part + 8, i32(sees))
            if sees:
                store_f32(part, load_f32(maxima + 4 * r))
                store_f32(part + 4, load_f32(denominators + 4 * r))
                d = 0
                while d < width:
                    store_v(part + PARTIAL_HEAD + 4 * d, load_v(load(arguments + t.RESULTS) + r * QUERY_STRIDE + 4 * d))
                    d += 16
            part += PARTIAL_HEAD + 4 * width

    def attend(op, shared, thread):
        """softmax(cap(q·k * scale) + mask)·v for the rows of a tile and the query heads of one kv head."""
        align_stack()
        shape, tasks = load(op + SHAPE), load(op + TASKS)
        n_kv, group, head_dim, width = (
            load(shape + S_N_KV), load(shape + S_GROUP), load(shape + S_HEAD_DIM), load(shape + S_WIDTH),
        )  # fmt: skip
        window, room = load(op + WINDOW), load(shape + S_MOST_ROWS)
        # Scratch: arguments, then per row: low, high, whether it has sums, maximum and denominator so far and of a
        # segment; queries, sums so far, sums of a segment, scores; a block as float32.
        arguments = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        array = (4 * room + 63) & ~63
        low = arguments + ((ARGUMENT_BYTES + 63) & ~63)
        high, started, maxima, denominators = low + array, low + 2 * array, low + 3 * array, low + 4 * array
        new_maxima, new_denominators = low + 5 * array, low + 6 * array
        queries = low + 7 * array
        results, more = queries + room * QUERY_STRIDE, queries + 2 * room * QUERY_STRIDE
        scores = queries + 3 * room * QUERY_STRIDE
        wide = scores + room * SCORE_STRIDE
        put(arguments + t.HEAD_DIM, head_dim)
        put(arguments + t.WIDTH, width)
        put(arguments + t.QUERIES, queries)
        put(arguments + t.WEIGHTS, scores)
        put(arguments + t.LOW, low)
        put(arguments + t.HIGH, high)
        n_tasks = load(tasks + N_TASKS) * n_kv
        while True:
            task = atomic_add(op + NEXT, 1)
            if task >= n_tasks:
                return
            entry, kv_head = load(tasks + ENTRIES) + ENTRY_BYTES * quotient(task, n_kv), remainder(task, n_kv)
            first_row, n_rows = load(entry + E_ROW), load(entry + E_TOKENS) * group
            segment, parts = load(entry + E_FIRST), load(entry + E_PARTS)
            n_padded = n_rows  # as many as the last tile of registers has: the last row is repeated
            in_tile = many_in_tile
            if n_rows <= FEW_ROWS:
                in_tile = few_in_tile
            if remainder(n_rows, in_tile) == in_tile - 1:
                n_padded += 1
            put(arguments + t.N_ROWS, n_padded)
            for r in range(n_padded):
                row = min(r, n_rows - 1)
                q = load(op + Q) + (first_row + quotient(row, group)) * load(op + Q_STRIDE)
                q += 4 * head_dim * (kv_head * group + remainder(row, group))
                d = 0
                while d < head_dim:
                    store_v(queries + r * QUERY_STRIDE + 4 * d, load_part(q + 4 * d, head_dim - d))
                    d += 16
                store_i32(started + 4 * r, i32(0))

            put(arguments + t.RESULTS, results)
            while segment <= load(entry + E_LAST):
                is_first = segment == load(entry + E_FIRST)
                set_ranges(arguments, n_rows, group, load(entry + E_POSITION), segment << SEGMENT_SHIFT, window)
                walk_segment(op, shape, arguments, wide, load(entry + E_TABLE), n_rows, kv_head, segment,
                             segment < load(entry + E_END), new_maxima, new_denominators)  # fmt: skip
                for r in range(n_rows):
                    if load_i32(low + 4 * r) < load_i32(high + 4 * r):
                        if is_first:  # the sums are in their place already
                            store_f32(maxima + 4 * r, load_f32(new_maxima + 4 * r))
                            store_f32(denominators + 4 * r, load_f32(new_denominators + 4 * r))
                            store_i32(started + 4 * r, i32(1))
                        else:
                            add_segment(results + r * QUERY_STRIDE, maxima + 4 * r, denominators + 4 * r,
                                        started + 4 * r, more + r * QUERY_STRIDE, load_f32(new_maxima + 4 * r),
                                        load_f32(new_denominators + 4 * r), width)  # fmt: skip
                put(arguments + t.RESULTS, more)
                segment += 1

            if parts > 1:
                n_tokens = load(entry + E_TOKENS)
                part_bytes = n_tokens * n_kv * load(shape + S_PARTIAL_BYTES)
                place = load(shape + S_PARTIALS) + load(entry + E_SLOT) * n_kv * load(shape + S_PARTIAL_BYTES)
                place += kv_head * n_tokens * load(shape + S_PARTIAL_BYTES)
                put(arguments + t.RESULTS, results)
                write_part(place + load(entry + E_PART) * part_bytes, arguments, n_rows, new_maxima,
                           new_denominators, width)  # fmt: skip
                counter = load(shape + S_COUNTERS) + 8 * (load(entry + E_COUNTER) + kv_head)
                if atomic_add(counter, 1) < parts - 1:
                    continue
                atomic_add(counter, -parts)
                for r in range(n_rows):
                    store_i32(started + 4 * r, i32(0))
                    part = place + r * (PARTIAL_HEAD + 4 * width)
                    for _ in range(parts):
                        if load_i32(part + 8) != 0:
                            add_segment(results + r * QUERY_STRIDE, maxima + 4 * r, denominators + 4 * r,
                                        started + 4 * r, part + PARTIAL_HEAD, load_f32(part), load_f32(part + 4),
                                        width)  # fmt: skip
                        part += part_bytes

            for r in range(n_rows):
                out = load(op + OUT) + (first_row + quotient(r, group)) * load(op + OUT_STRIDE)
                out += 4 * head_dim * (kv_head * group + remainder(r, group))
                over = splat(f32(1) / load_f32(denominators + 4 * r))
                d = 0
                while d < head_dim:
                    store_part(out + 4 * d, load_v(results + r * QUERY_STRIDE + 4 * d) * over, head_dim - d)
                    d += 16

    return attend
