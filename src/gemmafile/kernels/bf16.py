"""Matrix kernels of BF16: products of bfloat16 numbers, summed in float32.

    matvec      1 to 4 tokens: 4 weight rows side by side (`streams.py`), lanes run along K
    matmul      more: 32 rows x 256 columns stand in a panel of pairs, lanes are rows, in tiles of 6 tokens, then of 4

On Intel's matrix unit `bf16_amx.py` is matmul's twin, up to 32 tokens `batch_bf16.py`; `bf16_floats.py` is it by AVX2.

A chunk of 256 columns has 16 lanes, and a lane's chain of products in it begins at zero: the dot instruction of
AVX512_BF16, run eight times, and the matrix unit, given one number at a time, then make the same chain. A row's sum
takes the lanes in order. All of it flushes denormals, as both instructions do (docs/numerics.md).
Activations: `packing.py`, "bf16" and "bf16_many". Twin: `floats.BF16`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels.ops import N_THREADS, NEXT, ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import BF16_CHUNK
from gemmafile.kernels.streams import (
    AHEAD_BYTES,
    COLUMNS,
    FEW_BYTES,
    OUT,
    OUT_STRIDE,
    PACKED,
    ROW_BYTES,
    WEIGHTS,
    N,
    make_chunks,
    make_fetch_lines,
    make_fetch_panel,
    make_take,
)  # fmt: skip

STEPS, LANES = 8, 16
"""Dot instructions to a chunk, and its lanes; step j, lane i has columns 32 j + 2 i and the next one."""
PANEL_ROWS = 32
_UNPACKED = 16 * 64
_PANEL = STEPS * LANES * PANEL_ROWS * 4
SCRATCH_NEEDED = _UNPACKED + _PANEL


def kernels() -> dict[str, Callable[..., None]]:
    from gemmafile.kernels import batch_bf16, bf16_amx, bf16_floats, emit

    has_floats_only = emit.HAS_AVX2 and not emit.HAS_BF16
    return {
        "matvec": _make_matvec(), "matmul": bf16_floats.make_matmul() if has_floats_only else _make_matmul(),
        "matmul_amx": bf16_amx.make_matmul(), "batch_amx": batch_bf16.make_matmul(),
    }  # fmt: skip


def flushing() -> tuple[Any, Any]:
    """before = flush(): denormals count as zero from here on, until restore(before). Nothing happens on aarch64."""
    import llvmlite.ir as ir
    from numba.core import cgutils, types

    from gemmafile.kernels import emit

    zero_denormals = 0x8040

    def control(b: Any, name: str, place: Any) -> None:
        emit.call(b, f"llvm.x86.sse.{name}", ir.VoidType(), [b.bitcast(place, emit.I8.as_pointer())])

    def flush(b: Any) -> Any:
        if not emit.HAS_AVX2:
            return ir.Constant(emit.I32, 0)
        place = cgutils.alloca_once(b, emit.I32)
        control(b, "stmxcsr", place)
        before = b.load(place)
        b.store(b.or_(before, ir.Constant(emit.I32, zero_denormals)), place)
        control(b, "ldmxcsr", place)
        return before

    def restore(b: Any, before: Any) -> None:
        if emit.HAS_AVX2:
            place = cgutils.alloca_once(b, emit.I32)
            b.store(before, place)
            control(b, "ldmxcsr", place)

    return emit.make(types.int32, [], flush), emit.make(emit.void, [types.int32], restore)


def _make_matvec() -> Callable[..., None]:
    from gemmafile.kernels import simd

    load, atomic_add = simd.load_i64, simd.atomic_add
    one_token, two_tokens, three_tokens, four_tokens = (_make_walk(n) for n in (1, 2, 3, 4))
    large_rows, bounds = make_chunks()
    flush, restore = flushing()

    def matvec(op, shared, thread):
        """out[t][r], up to four tokens at a time. Reads ROW_BYTES a row, once."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        columns = load(op + COLUMNS)
        x_stride = 2 * BF16_CHUNK * simd.quotient(columns + BF16_CHUNK - 1, BF16_CHUNK)
        tokens, out_stride = load(shared + load(op + ROWS)), load(op + OUT_STRIDE)
        if tokens == 0:
            return
        before = flush()
        large = large_rows(n, load(shared + N_THREADS))
        first, end = bounds(atomic_add(op + NEXT, 1), n, large)
        while first < n:
            following, following_end = bounds(atomic_add(op + NEXT, 1), n, large)
            last, quarter = end - 1, (end - first + 3) >> 2
            for r0 in range(first, first + quarter):
                # From the last columns of a stream on its next chunk is fetched.
                leap = (min(following, n - 1) - first - quarter) * row_bytes if r0 == first + quarter - 1 else 0
                r1, r2, r3 = min(r0 + quarter, last), min(r0 + 2 * quarter, last), min(r0 + 3 * quarter, last)
                p0, p1 = weights + r0 * row_bytes, weights + r1 * row_bytes
                p2, p3 = weights + r2 * row_bytes, weights + r3 * row_bytes
                o1, o2, o3 = 4 * (r1 - r0), 4 * (r2 - r0), 4 * (r3 - r0)
                x, out = load(op + PACKED), load(op + OUT) + 4 * r0
                if tokens == 1:
                    one_token(p0, p1, p2, p3, o1, o2, o3, columns, leap, x, x_stride, out, out_stride)
                elif tokens == 2:
                    two_tokens(p0, p1, p2, p3, o1, o2, o3, columns, leap, x, x_stride, out, out_stride)
                elif tokens == 3:
                    three_tokens(p0, p1, p2, p3, o1, o2, o3, columns, leap, x, x_stride, out, out_stride)
                else:
                    for t in range(0, tokens, 4):
                        x_t, out_t = x + t * x_stride, out + t * out_stride
                        four_tokens(p0, p1, p2, p3, o1, o2, o3, columns, leap, x_t, x_stride, out_t, out_stride)
            first, end = following, following_end
        restore(before)

    return matvec


def _make_walk(n_tokens: int) -> Any:
    """walk(...): four rows, from p0 to p3, times n tokens."""
    from numba.core import types

    from gemmafile.kernels import emit, simd, tiles

    tile = tiles.DotTile(n_tokens, "bf16")
    zero, step, step_part = tile.zero, tile.step, tile.step_part
    # The sums of three or four tokens are lanes of one vector: their chains are then turned round all together.
    is_one = n_tokens > 2 and emit.HAS_AVX512
    lanes, n_sums = (16, 1) if is_one else (4, n_tokens)
    add_lanes_code, store_code = (_add_lanes_of_all, _store_quarters(n_tokens)) if is_one else (
        _add_lanes_code(n_tokens), tiles.store_lanes,
    )  # fmt: skip
    total = emit.vec("f32", lanes)
    floats, sums = types.UniTuple(total, n_sums), types.UniTuple(emit.vec("f32", 16), 4 * n_tokens)
    zeros = emit.make(floats, [], lambda b: tiles.join(b, [emit.splat_constant(total.llvm, 0.0)] * n_sums))
    add_lanes = emit.make(floats, [floats, sums], add_lanes_code)
    store = emit.make(emit.void, [floats, *[emit.address] * 5], store_code)
    prefetch = simd.prefetcher(64)

    @simd.device
    def walk(p0, p1, p2, p3, o1, o2, o3, columns, leap, x, x_stride, out, out_stride):
        total = zeros()
        start = 0
        while start < columns:
            acc = zero()
            for j in range(STEPS):
                left = columns - start - 32 * j
                if left >= 32:
                    ahead = AHEAD_BYTES if 2 * left > AHEAD_BYTES else AHEAD_BYTES + leap
                    prefetch(p0 + ahead)
                    prefetch(p1 + ahead)
                    prefetch(p2 + ahead)
                    prefetch(p3 + ahead)
                    acc = step(acc, p0, p1, p2, p3, x, x_stride)
                elif left > 0:
                    acc = step_part(acc, p0, p1, p2, p3, x, x_stride, left)
                p0 += 64
                p1 += 64
                p2 += 64
                p3 += 64
                x += 64
            total = add_lanes(total, acc)
            start += BF16_CHUNK
        store(total, out, o1, o2, o3, out_stride)

    return walk


def _add_lanes_code(n_tokens: int) -> Callable[..., Any]:
    """add_lanes(total, acc): the 16 lanes of four rows added to their sums, one lane after the other."""

    def code(b: Any, total: Any, acc: Any) -> Any:
        from gemmafile.kernels import emit, tiles

        total, acc = tiles.split(b, total), tiles.split(b, acc)

        def pairs(x: Any, y: Any, *order: int) -> Any:
            return emit.shuffle(b, x, y, [4 * q + i % 4 + 16 * (i // 4) for q in range(4) for i in order])

        for t in range(n_tokens):
            r0, r1, r2, r3 = acc[4 * t : 4 * t + 4]
            low01, high01 = pairs(r0, r1, 0, 4, 1, 5), pairs(r0, r1, 2, 6, 3, 7)
            low23, high23 = pairs(r2, r3, 0, 4, 1, 5), pairs(r2, r3, 2, 6, 3, 7)
            # by_lane[i]: four groups of 4; group q has lane 4 q + i of the four rows.
            by_lane = [
                pairs(low01, low23, 0, 1, 4, 5), pairs(low01, low23, 2, 3, 6, 7),
                pairs(high01, high23, 0, 1, 4, 5), pairs(high01, high23, 2, 3, 6, 7),
            ]  # fmt: skip
            for lane in range(LANES):
                q, v = lane // 4, by_lane[lane % 4]
                total[t] = b.fadd(total[t], emit.shuffle(b, v, v, range(4 * q, 4 * q + 4)))
        return tiles.join(b, total)

    return code


def _add_lanes_of_all(b: Any, total: Any, acc: Any) -> Any:
    """`_add_lanes_code` for one vector of sums, four rows of the first token, then of the next."""
    import llvmlite.ir as ir

    from gemmafile.kernels import tiles, transposes

    chains = tiles.split(b, acc)
    chains += [ir.Constant(chains[0].type, ir.Undefined)] * (16 - len(chains))
    (sums,) = tiles.split(b, total)
    for lane in transposes.transpose(b, chains):
        sums = b.fadd(sums, lane)
    return tiles.join(b, [sums])


def _store_quarters(n_tokens: int) -> Callable[..., None]:
    """`tiles.store_lanes` for a vector that has all tokens."""

    def code(b: Any, total: Any, addr: Any, o1: Any, o2: Any, o3: Any, stride: Any) -> None:
        from gemmafile.kernels import emit, tiles

        (sums,) = tiles.split(b, total)
        quarters = [emit.shuffle(b, sums, sums, range(4 * t, 4 * t + 4)) for t in range(n_tokens)]
        tiles.store_lanes(b, tiles.join(b, quarters), addr, o1, o2, o3, stride)

    return code


def make_gather() -> Any:
    """gather(weights, row_bytes, first, n, count, columns, column, unpacked): 32 columns of `count` rows, a row in 64
    bytes; zeros past the end of a row, and the last row again where there are fewer."""
    from numba.core import types

    from gemmafile.kernels import emit, simd

    words = emit.vec("u16", 32)
    load_part = emit.make(words, [emit.address, types.int64], lambda b, a, left: emit.load_part(b, a, words.llvm, left))
    load_whole = emit.make(words, [emit.address], lambda b, a: emit.load_at(b, a, words.llvm))
    store = emit.make(emit.void, [emit.address, words], lambda b, a, v: emit.store_at(b, v, a))

    @simd.device
    def gather(weights, row_bytes, first, n, count, columns, column, unpacked):
        left = columns - column
        for i in range(count):
            p = weights + min(first + i, n - 1) * row_bytes + 2 * column
            if left >= 32:
                store(unpacked + 64 * i, load_whole(p))
            else:
                store(unpacked + 64 * i, load_part(p, left))

    return gather


def _make_matmul() -> Callable[..., None]:
    from gemmafile.kernels import simd, tiles, transposes

    load, take = simd.load_i64, make_take()
    tile = tiles.WeightTile(0)
    n_tokens, fewer, is_last = tile.n_tokens, tile.fewer, tiles.make_is_last(tile)
    add_tile, add_fewer = _make_add_tile(tile), _make_add_tile(tiles.WeightTile(0, n_tokens=fewer))
    gather, transpose = make_gather(), transposes.stream_transposer([128 * STEPS * i for i in range(16)])
    fetch_panel = make_fetch_panel(2 * BF16_CHUNK)
    flush, restore = flushing()

    def matmul(op, shared, thread):
        """out[t][r] for many tokens. Reads the weights once, the activations once per 32 rows."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        columns = load(op + COLUMNS)
        x_stride = 2 * BF16_CHUNK * simd.quotient(columns + BF16_CHUNK - 1, BF16_CHUNK)
        tokens, out_stride = load(shared + load(op + ROWS)), load(op + OUT_STRIDE)
        unpacked = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        panel = unpacked + _UNPACKED
        # Many tokens' activations would drive the next rows out of the cache again: of these its next panel is fetched.
        all_steps = LANES * (x_stride >> 9) * simd.quotient(tokens + n_tokens - 1, n_tokens)
        n_lines = 0
        if 0 < tokens * x_stride <= FEW_BYTES:
            n_lines = simd.quotient(PANEL_ROWS * row_bytes + 64 * all_steps - 1, 64 * all_steps)
        before = flush()
        first = n if tokens == 0 else take(op, shared, PANEL_ROWS, n)
        while first < n:
            following = take(op, shared, PANEL_ROWS, n)
            ahead = weights + min(following, n - 1) * row_bytes
            start = 0
            while start < columns:
                for part in range(2 * STEPS):
                    half, j = part & 1, part >> 1
                    if first + PANEL_ROWS <= n and start + 32 * j + 32 <= columns:
                        at = weights + (first + 16 * half) * row_bytes + 2 * start + 64 * j
                        transpose(at, row_bytes, panel + 128 * j + 64 * half)
                    else:
                        gather(weights, row_bytes, first + 16 * half, n, 16, columns, start + 32 * j, unpacked)
                        transpose(unpacked, 64, panel + 128 * j + 64 * half)
                if n_lines == 0:
                    if start + BF16_CHUNK < columns:
                        fetch_panel(weights, row_bytes, first, n, 2 * (start + BF16_CHUNK))
                    else:
                        fetch_panel(weights, row_bytes, following, n, 0)
                t = 0
                while t < tokens:
                    x = load(op + PACKED) + t * x_stride + 2 * start
                    c = load(op + OUT) + t * out_stride + 4 * first
                    if is_last(tokens - t):
                        add_fewer(x, x_stride, c, out_stride, start == 0, panel, ahead, n_lines)
                        t += fewer
                    else:
                        add_tile(x, x_stride, c, out_stride, start == 0, panel, ahead, n_lines)
                        t += n_tokens
                    ahead += LANES * 64 * n_lines
                start += BF16_CHUNK
            first = following
        restore(before)

    return matmul


def _make_add_tile(tile: Any) -> Any:
    from gemmafile.kernels import emit, simd

    zero, load_tile, store_tile, n_tokens = tile.zero_floats, tile.load, tile.store, tile.n_tokens
    add_lane = emit.make(tile.floats, [tile.floats, emit.address, emit.address, emit.address], _make_add_lane(tile))
    # What the next tile reads, a few lines with each lane.
    fetch, fetch_results = simd.row_prefetcher(3, 64, level=1), simd.row_prefetcher(n_tokens, 128, level=1)
    fetch_lines = make_fetch_lines()

    @simd.device
    def add_tile(x, x_stride, out, out_stride, is_first, panel, ahead, count):
        """out[t][r], 32 rows of a tile's tokens, plus the products of a chunk; plus nothing if it is the first."""
        if is_first:
            sums = zero()
        else:
            sums = load_tile(out, out_stride)
        fetch_results(out + n_tokens * out_stride, out_stride)
        for i in range(LANES):
            fetch_lines(ahead + 64 * i * count, count)
            fetch(x + (n_tokens + (i & 1) * 3) * x_stride + 64 * (i >> 1), x_stride)
            sums = add_lane(sums, panel + 128 * STEPS * i, x + 4 * i, x_stride)
        store_tile(sums, out, out_stride)

    return add_tile


def _make_add_lane(tile: Any) -> Callable[..., Any]:
    """sums + the chains of one lane."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit, tiles

    words, floats = ir.VectorType(emit.I16, 32), ir.VectorType(emit.F32, 16)

    def code(b: Any, sums: Any, panel: Any, x: Any, x_stride: Any) -> Any:
        chains = [emit.splat_constant(floats, 0.0)] * tile.n
        tokens = [b.add(x, b.mul(x_stride, ir.Constant(emit.I64, t))) for t in range(tile.n_tokens)]
        for j in range(STEPS):
            rows = [emit.load_at(b, panel, words, 128 * j + 64 * v) for v in range(tile.vectors)]
            for t, token in enumerate(tokens):
                pair = b.bitcast(emit.splat(b, emit.load_at(b, token, emit.I32, 64 * j), 16), words)
                for v, row in enumerate(rows):
                    at = v * tile.n_tokens + t
                    chains[at] = emit.dot_bf16(b, chains[at], row, pair)
        return tiles.join(b, [b.fadd(total, chain) for total, chain in zip(tiles.split(b, sums), chains, strict=True)])

    return code
