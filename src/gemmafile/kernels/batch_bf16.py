"""Products of BF16 for 5 to 32 tokens on Intel's matrix unit: weights are its right-hand tiles, tokens the left ones.

An item is a chunk of 256 columns of 16 rows: it is transposed into a panel, [16 lanes][16 numbers of a chain][16 rows],
every number in four bytes, while the unit multiplies the panel before it. The sums of 16 rows and all tokens stay in
tiles until their last chunk. The 16 rows are a sixteenth of a chunk of rows apart: 16 streams, each read from end to
end (`streams.py`). The order of sums and the activations ("bf16_many") are those of `bf16_amx.py`: the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

from gemmafile.kernels.ops import N_THREADS, NEXT, ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import BF16_CHUNK, BF16_MANY_BYTES
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

STEPS = 8
_CONFIG, _UNPACKED = 64, 16 * 64
_PANEL = 16 * 1024
_SUMS = 1024
"""Of 16 tokens and 16 rows."""
_GROUPS = 2
SCRATCH_NEEDED = _CONFIG + _UNPACKED + 2 * _PANEL + LARGE_ROWS // 16 * _GROUPS * _SUMS
AHEAD_BYTES = 1024
"""How far ahead of its use each stream is fetched into the second-level cache."""


def make_matmul() -> Callable[..., None]:
    from gemmafile.kernels import amx, simd
    from gemmafile.kernels.bf16 import make_gather
    from gemmafile.kernels.bf16_amx import apart
    from gemmafile.kernels.transposes import stream_transposer

    unit = amx.tiles()
    # Tiles 0, 1: sums of two groups of 16 tokens; 2, 3: tokens; 4, 5: weights of two lanes.
    write_config = amx.config_writer([16] * 6, [64] * 6)
    zero0, zero1, store0, store1 = unit.zero(0), unit.zero(1), unit.store(0), unit.store(1)
    load2, load3, load4, load5 = (unit.load(i) for i in range(2, 6))
    dot04, dot05 = unit.dot_bf16(0, 2, 4), unit.dot_bf16(0, 2, 5)
    dot14, dot15 = unit.dot_bf16(1, 3, 4), unit.dot_bf16(1, 3, 5)
    configure, release = unit.configure, unit.release
    load, load_f32, store_f32, atomic_add = simd.load_i64, simd.load_f32, simd.store_f32, simd.atomic_add
    quotient, prefetch = simd.quotient, simd.prefetcher(64)
    gather, transpose = make_gather(), stream_transposer([1024 * i for i in range(16)], apart)
    large_rows, bounds = make_chunks()

    @simd.device
    def multiply(panel, a, groups):
        """Two lanes."""
        load4(panel, 64)
        load2(a, BF16_MANY_BYTES)
        dot04()
        if groups > 1:
            load3(a + 16 * BF16_MANY_BYTES, BF16_MANY_BYTES)
            dot14()
        load5(panel + 1024, 64)
        load2(a + 64, BF16_MANY_BYTES)
        dot05()
        if groups > 1:
            load3(a + 16 * BF16_MANY_BYTES + 64, BF16_MANY_BYTES)
            dot15()

    def batch_amx(op, shared, thread):
        """out[t][r] for up to 32 tokens. Reads the weights once."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        columns = load(op + COLUMNS)
        n_chunks = quotient(columns + BF16_CHUNK - 1, BF16_CHUNK)
        tokens, out_stride = load(shared + load(op + ROWS)), load(op + OUT_STRIDE)
        groups = (tokens + 15) >> 4
        chunk_stride = quotient(tokens + 5, 6) * 6 * BF16_MANY_BYTES
        config = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        unpacked = config + _CONFIG
        panels = unpacked + _UNPACKED
        sums = panels + 2 * _PANEL
        write_config(config)
        configure(config)
        zero0()
        zero1()
        large = large_rows(n, load(shared + N_THREADS))
        first, end = bounds(atomic_add(op + NEXT, 1), n, large)
        while first < n:
            following, following_end = bounds(atomic_add(op + NEXT, 1), n, large)
            share = (end - first + 15) >> 4
            step, leap = share * row_bytes, (min(following, n - 1) - first - share) * row_bytes
            row, chunk = 0, 0
            last_row, last_chunk = 0, 0
            total = share * n_chunks
            for item in range(total + 1):
                panel, last_panel = panels + (item & 1) * _PANEL, panels + (item + 1 & 1) * _PANEL
                a = load(op + PACKED) + last_chunk * chunk_stride
                left = columns - chunk * BF16_CHUNK
                is_regular = left >= BF16_CHUNK and first + 15 * share + row < end
                p = weights + (first + row) * row_bytes + 2 * chunk * BF16_CHUNK
                ahead = AHEAD_BYTES if item < total - 2 else AHEAD_BYTES + leap
                for j in range(STEPS):
                    if item < total:
                        if is_regular:
                            for i in range(16):
                                prefetch(p + i * step + ahead)
                            transpose(p, step, panel + 128 * j)
                        else:
                            for i in range(16):
                                r = min(first + i * share + row, end - 1)
                                gather(weights, row_bytes, r, r + 1, 1, columns, chunk * BF16_CHUNK + 32 * j,
                                       unpacked + 64 * i)  # fmt: skip
                            transpose(unpacked, 64, panel + 128 * j)
                        p += 64
                    if item > 0:
                        multiply(last_panel + 2048 * j, a + 128 * j, groups)
                if item > 0 and last_chunk == n_chunks - 1:
                    store0(sums + 2 * last_row * _SUMS, 64)
                    zero0()
                    if groups > 1:
                        store1(sums + (2 * last_row + 1) * _SUMS, 64)
                        zero1()
                last_row, last_chunk = row, chunk
                chunk += 1
                if chunk == n_chunks:
                    row, chunk = row + 1, 0
            for t in range(tokens):
                c = load(op + OUT) + t * out_stride + 4 * first
                for k in range(share):
                    here = sums + (2 * k + (t >> 4)) * _SUMS + 64 * (t & 15)
                    for i in range(16):
                        store_f32(c + 4 * (i * share + k), load_f32(here + 4 * i))
            first, end = following, following_end
        release()

    return batch_amx
