"""Matrix kernels of the K-quants: super-blocks of 256 weights with integer sub-scales.

A format gives four facts about a super-block at an address (`SuperBlock`); the kernels are built from them:

    matvec  1 to 4 tokens: 4 weight rows side by side, straight from the file's bytes (`streams.py`), lanes run along K
    matmul  more: 32 rows x 512 columns are unpacked into a panel of bytes, lanes are rows; the panel meets the
            tokens in tiles of 6, the last ones in tiles of 4; the next rows are fetched meanwhile, as in `quads.py`

Both compute, for each row and super-block, the same exact integers I and M and then the same float steps
(docs/numerics.md), so a token's results are the same bits in either. Activations: `packing.py`, "int8_256".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gemmafile.kernels.ops import ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import (
    SUPER_BYTES,
    SUPER_D,
    SUPER_MINUS_SUMS,
    SUPER_SUMS_16,
    SUPER_SUMS_32,
)  # fmt: skip
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
from gemmafile.kernels.superblock_streams import Stream, make_walk

PANEL_BLOCKS = 2
"""Super-blocks in a panel: 2 x 8 KB stay in the first-level cache with their activations."""
_PANEL, _SCALES, _D = 64 * 32 * 4, 16 * 32 * 4, 32 * 4
_WIDE = 6 * 2 * 256
"""Of a super-block of a tile's tokens as words."""
_ROWS = 32 * 8
"""Addresses of rows."""
SCRATCH_NEEDED = _ROWS + PANEL_BLOCKS * (_PANEL + _SCALES + 2 * _D) + _WIDE + 256


@dataclass(frozen=True)
class SuperBlock:
    """What the kernels must know of a format. All functions are `simd.device`s.

    bytes       of a super-block
    d           byte offset of its float16 scale
    chunk(p, j) u8x64: weights 64 j ... 64 j + 63 as unsigned numbers (the offset still in them)
    scales(p)   i32x16: the sub-scales, and behind them the sub-minima as pairs of int16; None where there are none
    sub_scales  8 or 16; 0: the weights of `chunk` are multiplied by them already
    min_scale   byte offset of the float16 scale of the sub-minima
    sub_minima  0, 8 or 16
    offset      weights are those of `chunk` minus this
    largest     of the numbers of `chunk`
    """

    bytes: int
    d: int
    chunk: Any
    scales: Any
    sub_scales: int = 0
    min_scale: int = 0
    sub_minima: int = 0
    offset: int = 0
    largest: int = 255


def build_kernels(f: SuperBlock, stream: Stream, apart: SuperBlock | None = None) -> dict[str, Callable[..., None]]:
    """apart  the format with its sub-scales kept apart, where f has them in its weights: better without VNNI, since
    small weights are added up in 16 bits"""
    from gemmafile.kernels import batch_amx, emit, superblocks_amx

    matvec = make_matvec([make_walk(stream, n) for n in (1, 2, 3, 4)], 256, f.bytes, SUPER_BYTES)
    by_words = apart if apart and emit.HAS_AVX2 and not emit.HAS_VNNI else f
    return {
        "matvec": matvec, "matmul": _make_matmul(by_words), "matmul_amx": superblocks_amx.make_matmul(f),
        "batch_amx": batch_amx.make_superblocks(f),
    }  # fmt: skip


def _make_matmul(f: SuperBlock) -> Callable[..., None]:
    from gemmafile.kernels import simd
    from gemmafile.kernels.tiles import WeightTile, make_is_last

    load, take, find_rows = simd.load_i64, make_take(), make_find_rows()
    align_stack, quotient = simd.align_stack, simd.quotient
    tile = WeightTile(SUPER_BYTES, largest=f.largest)
    unpack, is_last = _make_unpack(f, tile), make_is_last(tile)
    n_tokens, fewer = tile.n_tokens, tile.fewer
    add_tile = _make_add_tile(f, tile)
    add_fewer = _make_add_tile(f, WeightTile(SUPER_BYTES, largest=f.largest, n_tokens=fewer))
    # A panel of words holds the weights times their sub-scales, one super-block in twice the bytes.
    panel_blocks = 1 if _is_wide(f, tile) else PANEL_BLOCKS
    n_steps, bytes_, fetch_panel = _count_steps(f, tile), f.bytes, make_fetch_panel(panel_blocks * f.bytes)

    def matmul(op, shared, thread):
        """out[t][r] for many tokens. Reads the weights once, the activations once per 32 rows."""
        align_stack()
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> 8
        tokens = load(shared + load(op + ROWS))
        if tokens == 0:
            return
        stride = quotient(tokens + 5, 6) * 6 * SUPER_BYTES
        out_stride = load(op + OUT_STRIDE)
        rows = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        panels = rows + _ROWS
        scale_panels = panels + PANEL_BLOCKS * _PANEL
        d_panels = scale_panels + PANEL_BLOCKS * _SCALES
        wide = d_panels + PANEL_BLOCKS * 2 * _D
        # Many tokens' activations would drive the next rows out of the cache again: of these its next panel is fetched.
        all_steps = n_steps * n_blocks * quotient(tokens + n_tokens - 1, n_tokens)
        has_few = n_blocks * stride <= FEW_BYTES
        n_lines = quotient(CHUNK_ROWS * row_bytes + 64 * all_steps - 1, 64 * all_steps) if has_few else 0
        first = take(op, shared, CHUNK_ROWS, n)
        while first < n:
            following = take(op, shared, CHUNK_ROWS, n)
            find_rows(weights, row_bytes, first, n, rows)
            ahead = weights + min(following, n - 1) * row_bytes
            block = 0
            while block < n_blocks:
                here = min(panel_blocks, n_blocks - block)
                for k in range(here):
                    unpack(rows, block + k, panels + k * _PANEL, scale_panels + k * _SCALES, d_panels + k * 2 * _D)
                if n_lines == 0:
                    if block + here < n_blocks:
                        fetch_panel(weights, row_bytes, first, n, (block + here) * bytes_)
                    else:
                        fetch_panel(weights, row_bytes, following, n, 0)
                t = 0
                while t < tokens:
                    a = load(op + PACKED) + block * stride + t * SUPER_BYTES
                    c = load(op + OUT) + t * out_stride + 4 * first
                    if is_last(tokens - t):
                        add_fewer(a, stride, c, out_stride, block == 0, here, panels, scale_panels, d_panels, wide,
                                  ahead, n_lines)  # fmt: skip
                        t += fewer
                    else:
                        add_tile(a, stride, c, out_stride, block == 0, here, panels, scale_panels, d_panels, wide,
                                 ahead, n_lines)  # fmt: skip
                        t += n_tokens
                    ahead += n_steps * here * n_lines * 64
                block += here
            first = following

    return matmul


def _is_wide(f: SuperBlock, tile: Any) -> bool:
    return tile.is_wide and f.sub_scales > 0


def _count_steps(f: SuperBlock, tile: Any) -> int:
    """Steps of a tile's sum over a super-block, at each of which something of the next rows is fetched."""
    return 2 // tile.vectors * (8 if _is_wide(f, tile) else f.sub_scales or 4)


def _make_add_tile(f: SuperBlock, tile: Any) -> Any:
    from gemmafile.kernels import simd

    is_wide, has_minimum, sub_blocks = _is_wide(f, tile), f.sub_minima > 0, f.sub_scales
    n_tokens, n_parts, part_bytes = tile.n_tokens, 2 // tile.vectors, 128 if is_wide else 64
    # What the next tile reads, a part at a time.
    fetched = n_tokens * SUPER_BYTES // n_parts
    fetch, fetch_results = simd.prefetcher(fetched, level=1), simd.row_prefetcher(n_tokens, 128, level=1)
    sums_at, minima_at = SUPER_SUMS_16 if f.sub_minima == 16 else SUPER_SUMS_32, 128 * sub_blocks
    dot_words, widen, integer_sum = tile.dot_words(f.sub_minima // 2), tile.widen(4), _make_integer_sum(f, tile)
    zero_floats, load_tile, store_tile = tile.zero_floats, tile.load, tile.store
    fma_ints, fma_ints_negative = tile.fma_ints, tile.fma_ints_negative
    steps = _count_steps(f, tile) // n_parts

    @simd.device
    def add_tile(packed, stride, out, out_stride, is_first, here, panels, scale_panels, d_panels, wide, ahead, count):
        """out[t][r], 32 rows of a tile's tokens, plus the products of `here` panels; plus nothing if they are first."""
        fetch_results(out + n_tokens * out_stride, out_stride)
        for part in range(n_parts):
            c = out + 64 * part
            for k in range(here):
                a = packed + k * stride
                panel, scale_panel = panels + k * _PANEL + part_bytes * part, scale_panels + k * _SCALES + 64 * part
                d = d_panels + k * 2 * _D + 64 * part
                b = a
                if is_wide:
                    b = wide
                    if part == 0:
                        widen(a, wide)
                total = integer_sum(panel, scale_panel, b, ahead, count)
                ahead += steps * 64 * count
                if is_first and k == 0:
                    sums = zero_floats()
                else:
                    sums = load_tile(c, out_stride)
                sums = fma_ints(sums, total, d, a + SUPER_D)
                if has_minimum:
                    least = dot_words(scale_panel + minima_at, a + sums_at)
                    sums = fma_ints_negative(sums, least, d + 128, a + SUPER_D)
                store_tile(sums, c, out_stride)
                fetch(a + n_tokens * SUPER_BYTES + part * fetched)

    return add_tile


def _make_integer_sum(f: SuperBlock, tile: Any) -> Any:
    """integer_sum(panel, scale_panel, a, ahead, count): I of the rows and tokens of a tile. Each step fetches
    `count` lines of what lies ahead."""
    from gemmafile.kernels import simd

    hidden, sub_blocks, has_scales, has_offset = simd.hidden, f.sub_scales, f.sub_scales > 0, f.offset > 0
    sub_size = 256 // (sub_blocks or 4)  # without sub-scales a step is a chunk
    sub_panel, zero_ints, add_scaled = sub_size // 4 * 128, tile.zero_ints, tile.add_scaled
    start, dot = tile.start(f.offset, sub_size // 16 if has_scales else 16), tile.dot(range(0, sub_size, 4))
    offset_sums_at = SUPER_SUMS_16 if sub_blocks == 16 else SUPER_SUMS_32
    by_words, fetch_lines = tile.word_steps > 1, make_fetch_lines()
    scaled_dot: Any = tile.scaled_dot(range(0, sub_size, 4)) if by_words else None
    scaled_offset, wide_dot = tile.scaled_offset(f.offset, sub_blocks), tile.wide_dot(4, range(0, 32, 4))

    @simd.device
    def scaled_sum(panel, scale_panel, a, ahead, count):
        """Where a sub-scale multiplies sums of 32 bits."""
        total = zero_ints()
        for s in range(sub_blocks):
            fetch_lines(ahead + 64 * s * count, count)
            if has_offset:
                acc = start(a + SUPER_MINUS_SUMS + sub_size // 4 * s)
            else:
                acc = zero_ints()
            acc = dot(acc, panel + s * sub_panel, a + s * sub_size)
            total = add_scaled(total, acc, scale_panel + 128 * s)
        return total

    @simd.device
    def plain_sum(panel, scale_panel, a, ahead, count):
        """The same where the weights hold their sub-scales."""
        if has_offset:
            total = start(a + SUPER_MINUS_SUMS)
        else:
            total = zero_ints()
        for s in range(hidden(4)):
            fetch_lines(ahead + 64 * s * count, count)
            total = dot(total, panel + s * sub_panel, a + s * sub_size)
        return total

    @simd.device
    def scaled_words_sum(panel, scale_panel, a, ahead, count):
        """The same where a sub-scale multiplies sums of 16 bits."""
        if has_offset:
            total = scaled_offset(scale_panel, a + offset_sums_at)
        else:
            total = zero_ints()
        for s in range(hidden(sub_blocks)):
            fetch_lines(ahead + 64 * s * count, count)
            total = scaled_dot(total, panel + s * sub_panel, a + s * sub_size, scale_panel + 128 * s)
        return total

    @simd.device
    def wide_sum(panel, scale_panel, a, ahead, count):
        """The same where both are words, and the weights hold their sub-scales."""
        total = zero_ints()
        for s in range(hidden(8)):
            fetch_lines(ahead + 64 * s * count, count)
            total = wide_dot(total, panel + 2048 * s, a + 64 * s)
        return total

    if not has_scales:
        return plain_sum
    return wide_sum if _is_wide(f, tile) else scaled_words_sum if by_words else scaled_sum


def _make_unpack(f: SuperBlock, tile: Any) -> Any:
    """unpack(rows, block, panel, scale_panel, d_panel): one super-block of 32 rows into a panel; their addresses
    are at `rows`."""
    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.tiles import words_of_bytes, words_twice
    from gemmafile.kernels.transposes import vector_transposer

    load, load_f16, store_f32 = simd.load_i64, simd.load_f16, simd.store_f32
    bytes_, d_at, min_at, chunk, read_scales = f.bytes, f.d, f.min_scale, f.chunk, f.scales or no_scales()
    sub_blocks, has_minimum = f.sub_scales, f.sub_minima > 0
    has_scale_panel = f.sub_scales > 0 or has_minimum
    is_wide = _is_wide(f, tile)
    has_twice = tile.word_steps > 1 or is_wide
    ints, bytes_64 = emit.vec("i32", 16), emit.vec("u8", 64)
    in_words = emit.make(ints, [ints], lambda b, v: _first_lanes(b, sub_blocks, words_twice(b, v), v))
    off = f.offset if is_wide else 0
    take_off = emit.make(bytes_64, [bytes_64], lambda b, v: b.sub(v, emit.splat_constant(v.type, off)) if off else v)
    step_bytes, half_bytes = (256, 128) if is_wide else (128, 64)
    place = vector_transposer([step_bytes * i for i in range(16)], "u8", words_of_bytes if is_wide else None)
    place_scales, scale_words = vector_transposer([128 * i for i in range(16)], "i32"), tile.scale_words()

    @simd.device
    def of_row(row, at, j):
        return take_off(chunk(load(row) + at, j))

    @simd.device
    def scales(row, at):
        return in_words(read_scales(load(row) + at)) if has_twice else read_scales(load(row) + at)

    @simd.device
    def of_rows(rows, at, j, target):
        place(
            of_row(rows, at, j), of_row(rows + 8, at, j), of_row(rows + 16, at, j), of_row(rows + 24, at, j),
            of_row(rows + 32, at, j), of_row(rows + 40, at, j), of_row(rows + 48, at, j), of_row(rows + 56, at, j),
            of_row(rows + 64, at, j), of_row(rows + 72, at, j), of_row(rows + 80, at, j), of_row(rows + 88, at, j),
            of_row(rows + 96, at, j), of_row(rows + 104, at, j), of_row(rows + 112, at, j), of_row(rows + 120, at, j),
            target,
        )  # fmt: skip

    @simd.device
    def unpack(rows, block, panel, scale_panel, d_panel):
        at = block * bytes_
        for _ in range(2):
            of_rows(rows, at, 0, panel)
            of_rows(rows, at, 1, panel + 16 * step_bytes)
            of_rows(rows, at, 2, panel + 32 * step_bytes)
            of_rows(rows, at, 3, panel + 48 * step_bytes)
            for i in range(16):
                p = load(rows + 8 * i) + at
                store_f32(d_panel + 4 * i, load_f16(p + d_at))
                if has_minimum:
                    store_f32(d_panel + 128 + 4 * i, load_f16(p + min_at))
            if has_scale_panel:
                place_scales(
                    scales(rows, at), scales(rows + 8, at), scales(rows + 16, at), scales(rows + 24, at),
                    scales(rows + 32, at), scales(rows + 40, at), scales(rows + 48, at), scales(rows + 56, at),
                    scales(rows + 64, at), scales(rows + 72, at), scales(rows + 80, at), scales(rows + 88, at),
                    scales(rows + 96, at), scales(rows + 104, at), scales(rows + 112, at), scales(rows + 120, at),
                    scale_panel,
                )  # fmt: skip
            if is_wide:
                for s in range(8):
                    scale_words(panel + 2048 * s, scale_panel + 128 * s)
            panel, scale_panel, d_panel = panel + half_bytes, scale_panel + 64, d_panel + 64
            rows += 128

    return unpack


def _first_lanes(b: Any, n: int, x: Any, y: Any) -> Any:
    """The first n lanes of x, and y's behind them."""
    from gemmafile.kernels import emit

    return emit.shuffle(b, x, y, [i if i < n else i + 16 for i in range(16)])


def no_scales() -> Any:
    """`scales` of a format that has none."""
    from gemmafile.kernels import simd

    zero = simd.constants("i32", [0] * 16)

    @simd.device
    def scales(p):
        return zero()

    return scales


def shift_parts(*by: int) -> Callable[..., Any]:
    """Right shifts of the lanes of a vector: those of its first part by the first number, and so on; negative ones
    are left shifts, all or none."""

    def code(b: Any, v: Any) -> Any:
        from gemmafile.kernels import emit

        numbers = emit.constant(v.type, [abs(n) for n in by for _ in range(v.type.count // len(by))])
        return b.shl(v, numbers) if min(by) < 0 else b.lshr(v, numbers)

    return code


def by_chunk(make: Callable[[int], Any]) -> Any:
    """chosen(j, x, y): the intrinsic `make(j)` with x and y; a j known to the compiler costs nothing."""
    from gemmafile.kernels import simd

    of_0, of_1, of_2, of_3 = (make(j) for j in range(4))

    @simd.device
    def chosen(j, x, y):
        if j == 0:
            return of_0(x, y)
        if j == 1:
            return of_1(x, y)
        if j == 2:
            return of_2(x, y)
        return of_3(x, y)

    return chosen


def sub_words() -> Any:
    """words(j, s): u16x32: 16 bytes s, one for each sub-block of 16, as a word beside its weights of chunk j."""
    from gemmafile.kernels import simd

    widen = simd.converter("u8", "u16", 16)
    chosen = by_chunk(lambda j: simd.shuffler("u16", 16, [4 * j + i // 8 for i in range(32)]))

    @simd.device
    def words(j, s):
        return chosen(j, widen(s), widen(s))

    return words
