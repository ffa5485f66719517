"""Matrix kernels of the K-quants: super-blocks of 256 weights with integer sub-scales.

A format gives four facts about a super-block at an address (`SuperBlock`); the kernels are built from them:

    matvec  1 to 4 tokens: 4 weight rows side by side, straight from the file's bytes (`streams.py`), lanes run along K
    matmul  more: 32 rows x 512 columns are unpacked into a panel of bytes, lanes are rows; the panel meets the
            tokens in tiles of 6

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
    OUT,
    OUT_STRIDE,
    PACKED,
    ROW_BYTES,
    WEIGHTS,
    N,
    make_matvec,
    make_take,
)  # fmt: skip
from gemmafile.kernels.superblock_streams import Stream, make_walk

PANEL_BLOCKS = 2
"""Super-blocks in a panel: 2 x 8 KB stay in the first-level cache with their activations."""
_PANEL, _SCALES, _D = 64 * 32 * 4, 16 * 32 * 4, 32 * 4
_WIDE = 6 * 2 * 256
"""Of a super-block of a tile's tokens as words."""
_UNPACKED = 5 * 1024
SCRATCH_NEEDED = _UNPACKED + PANEL_BLOCKS * (_PANEL + _SCALES + 2 * _D) + _WIDE + 256


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
    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.tiles import WeightTile, transposer, words_of_bytes, words_twice

    load, load_f16, store_f32, take = simd.load_i64, simd.load_f16, simd.store_f32, make_take()
    align_stack, quotient, hidden = simd.align_stack, simd.quotient, simd.hidden
    fetch_row = simd.prefetcher(f.bytes)
    store_bytes, store_ints = simd.store_u8x64, simd.store_i32x16
    bytes_, d_at, min_at, chunk, scales = f.bytes, f.d, f.min_scale, f.chunk, f.scales or no_scales()
    has_scales, has_minimum, sub_blocks = f.sub_scales > 0, f.sub_minima > 0, f.sub_scales
    has_scale_panel = has_scales or has_minimum
    sub_size = 256 // (sub_blocks or 4)  # without sub-scales a step is a chunk
    sub_panel, minima_at = sub_size // 4 * 128, 128 * sub_blocks
    tile = WeightTile(SUPER_BYTES, largest=f.largest)
    n_tokens, has_offset = tile.n_tokens, f.offset > 0
    start, dot = tile.start(f.offset, sub_size // 16 if has_scales else 16), tile.dot(range(0, sub_size, 4))
    dot_words, sums_at = tile.dot_words(f.sub_minima // 2), SUPER_SUMS_16 if f.sub_minima == 16 else SUPER_SUMS_32
    zero_ints, zero_floats, load_tile, store_tile = tile.zero_ints, tile.zero_floats, tile.load, tile.store
    add_scaled, fma_ints, fma_ints_negative = tile.add_scaled, tile.fma_ints, tile.fma_ints_negative
    offset_sums_at = SUPER_SUMS_16 if sub_blocks == 16 else SUPER_SUMS_32
    by_words = tile.word_steps > 1
    is_wide = tile.is_wide and has_scales
    scaled_dot: Any = tile.scaled_dot(range(0, sub_size, 4)) if by_words else None
    scaled_offset = tile.scaled_offset(f.offset, sub_blocks)
    transpose = transposer([128 * i for i in range(16)])
    ints = emit.vec("i32", 16)
    in_words = emit.make(ints, [ints], lambda b, v: _first_lanes(b, sub_blocks, words_twice(b, v), v))
    n_parts, part_bytes = 2 // tile.vectors, 128 if is_wide else 64
    # What the next tile reads, a part at a time.
    fetched = n_tokens * SUPER_BYTES // n_parts
    fetch, fetch_results = simd.prefetcher(fetched, level=1), simd.row_prefetcher(n_tokens, 128, level=1)
    has_twice = by_words or is_wide
    # A panel of words holds the weights times their sub-scales, one super-block in twice the bytes.
    panel_blocks = 1 if is_wide else PANEL_BLOCKS
    widen, wide_dot, scale_words, bytes_64 = (
        tile.widen(4),
        tile.wide_dot(4, range(0, 32, 4)),
        tile.scale_words(),
        emit.vec("u8", 64),
    )
    take_off = emit.make(bytes_64, [bytes_64], lambda b, v: b.sub(v, emit.splat_constant(v.type, f.offset)))
    transpose_words = transposer([256 * i for i in range(16)], words_of_bytes)

    @simd.device
    def unpack(weights, row_bytes, first, n, block, unpacked, panel, scale_panel, d_panel, ahead_first, ahead):
        """One super-block of 32 rows (the last row again where there are fewer) into a panel; fetches block `ahead` of
        the rows from ahead_first on."""
        for half in range(2):
            for i in range(16):
                p = weights + min(first + 16 * half + i, n - 1) * row_bytes + block * bytes_
                fetch_row(weights + min(ahead_first + 16 * half + i, n - 1) * row_bytes + ahead * bytes_)
                q0, q1, q2, q3 = chunk(p, 0), chunk(p, 1), chunk(p, 2), chunk(p, 3)
                if is_wide:
                    q0, q1, q2, q3 = take_off(q0), take_off(q1), take_off(q2), take_off(q3)
                store_bytes(unpacked + 64 * i, q0)
                store_bytes(unpacked + 1024 + 64 * i, q1)
                store_bytes(unpacked + 2048 + 64 * i, q2)
                store_bytes(unpacked + 3072 + 64 * i, q3)
                if has_scale_panel:
                    store_ints(unpacked + 4096 + 64 * i, in_words(scales(p)) if has_twice else scales(p))
                store_f32(d_panel + 64 * half + 4 * i, load_f16(p + d_at))
                if has_minimum:
                    store_f32(d_panel + 128 + 64 * half + 4 * i, load_f16(p + min_at))
            for j in range(4):
                if is_wide:
                    transpose_words(unpacked + 1024 * j, panel + 4096 * j + 128 * half)
                else:
                    transpose(unpacked + 1024 * j, panel + 2048 * j + 64 * half)
            if has_scale_panel:
                transpose(unpacked + 4096, scale_panel + 64 * half)
            if is_wide:
                for s in range(8):
                    scale_words(panel + 2048 * s + 128 * half, scale_panel + 128 * s + 64 * half)

    @simd.device
    def scaled_sum(panel, scale_panel, a):
        """I of 32 rows and a tile of tokens."""
        total = zero_ints()
        for s in range(sub_blocks):
            if has_offset:
                acc = start(a + SUPER_MINUS_SUMS + sub_size // 4 * s)
            else:
                acc = zero_ints()
            acc = dot(acc, panel + s * sub_panel, a + s * sub_size)
            total = add_scaled(total, acc, scale_panel + 128 * s)
        return total

    @simd.device
    def plain_sum(panel, scale_panel, a):
        """The same where the weights hold their sub-scales."""
        if has_offset:
            total = start(a + SUPER_MINUS_SUMS)
        else:
            total = zero_ints()
        for s in range(hidden(4)):
            total = dot(total, panel + s * sub_panel, a + s * sub_size)
        return total

    @simd.device
    def scaled_words_sum(panel, scale_panel, a):
        """The same where a sub-scale multiplies sums of 16 bits."""
        if has_offset:
            total = scaled_offset(scale_panel, a + offset_sums_at)
        else:
            total = zero_ints()
        for s in range(hidden(sub_blocks)):
            total = scaled_dot(total, panel + s * sub_panel, a + s * sub_size, scale_panel + 128 * s)
        return total

    @simd.device
    def wide_sum(panel, scale_panel, a):
        """The same where both are words, and the weights hold their sub-scales."""
        total = zero_ints()
        for s in range(hidden(8)):
            total = wide_dot(total, panel + 2048 * s, a + 64 * s)
        return total

    integer_sum = plain_sum if not has_scales else wide_sum if is_wide else scaled_words_sum if by_words else scaled_sum

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
        unpacked = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        panels = unpacked + _UNPACKED
        scale_panels = panels + PANEL_BLOCKS * _PANEL
        d_panels = scale_panels + PANEL_BLOCKS * _SCALES
        wide = d_panels + PANEL_BLOCKS * 2 * _D
        first = take(op, shared, CHUNK_ROWS, n)
        while first < n:
            following = take(op, shared, CHUNK_ROWS, n)
            block = 0
            while block < n_blocks:
                here = min(panel_blocks, n_blocks - block)
                # 32 short pieces of rows are more than the hardware follows: the next panel is fetched row by row.
                ahead_first, ahead = first, block + here
                if ahead >= n_blocks:
                    ahead_first, ahead = following, 0
                for k in range(here):
                    unpack(weights, row_bytes, first, n, block + k, unpacked, panels + k * _PANEL,
                           scale_panels + k * _SCALES, d_panels + k * 2 * _D,
                           ahead_first, min(ahead + k, n_blocks - 1))  # fmt: skip
                t = 0
                while t < tokens:
                    c = load(op + OUT) + t * out_stride + 4 * first
                    fetch_results(c + n_tokens * out_stride, out_stride)
                    for part in range(n_parts):
                        for k in range(here):
                            a, at = load(op + PACKED) + (block + k) * stride + t * SUPER_BYTES, 64 * part
                            panel, scale_panel = (
                                panels + k * _PANEL + part_bytes * part,
                                scale_panels + k * _SCALES + at,
                            )
                            d = d_panels + k * 2 * _D + at
                            b = a
                            if is_wide:
                                b = wide
                                if part == 0:
                                    widen(a, wide)
                            total = integer_sum(panel, scale_panel, b)
                            if block + k == 0:
                                sums = zero_floats()
                            else:
                                sums = load_tile(c + at, out_stride)
                            sums = fma_ints(sums, total, d, a + SUPER_D)
                            if has_minimum:
                                least = dot_words(scale_panel + minima_at, a + sums_at)
                                sums = fma_ints_negative(sums, least, d + 128, a + SUPER_D)
                            store_tile(sums, c + at, out_stride)
                            fetch(a + n_tokens * SUPER_BYTES + part * fetched)
                    t += n_tokens
                block += here
            first = following

    return matmul


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
