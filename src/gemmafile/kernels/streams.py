"""The walk over a matrix' rows that the products of few tokens share: 4 rows side by side, each read once.

A thread takes chunks of rows. The four rows that are multiplied together are a quarter of a chunk apart, and each of
the four pointers runs through its quarter from end to end: four streams in pages of their own, which the processor's
prefetchers follow. (Four neighbouring rows are streams within one page, which they do not.) The longer a stream, the
nearer it comes to the pace of memory: chunks are large, and small only towards the end of a matrix, where threads that
are through would wait. At its end a stream is fetched on where it continues in the thread's next chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gemmafile.kernels.ops import N_THREADS, NEXT, ROWS, slots

WEIGHTS, ROW_BYTES, N, COLUMNS, PACKED, PACKED_STRIDE, OUT, OUT_STRIDE = slots(
    "WEIGHTS ROW_BYTES N COLUMNS PACKED PACKED_STRIDE OUT OUT_STRIDE"
)
"""PACKED_STRIDE is the row stride of the activations of the float formats (`dots.py`) only."""

CHUNK_ROWS = 32
LARGE_ROWS, LAST_ROWS = 128, 1024
"""Of the chunks that `make_chunks` gives: the most rows in a large one, and in all the small ones at the end."""
FEW_BYTES = 1 << 19
"""Activations that leave room for 32 rows of weights in the second-level cache."""
AHEAD_BYTES = 1344
"""How far ahead of its use each stream is fetched into the first-level cache."""


def make_chunks() -> tuple[Any, Any]:
    """large_rows(n, n_threads): rows of the large chunks of n rows, and bounds(i, n, large): those of chunk i, the end
    not in it; from the last chunk on the first is n or more."""
    from gemmafile.kernels import simd

    quotient = simd.quotient

    @simd.device
    def large_rows(n, n_threads):
        return min(LARGE_ROWS, max(CHUNK_ROWS, quotient(n, 4 * CHUNK_ROWS * n_threads) * CHUNK_ROWS))

    @simd.device
    def bounds(i, n, large):
        n_large = quotient(n - min(n >> 2, LAST_ROWS), large)
        if i < n_large:
            return large * i, large * i + large
        first = large * n_large + CHUNK_ROWS * (i - n_large)
        return first, min(first + CHUNK_ROWS, n)

    return large_rows, bounds


def make_take() -> Any:
    """take(op, shared, rows, n): the first of the next so many of n rows, n or more when all are taken.

    The threads take them from parts of the matrix that are far apart: beside each other they would write neighbouring
    results of every token, and each would have fetched what the other is about to change.
    """
    from gemmafile.kernels import simd

    load, atomic_add, quotient, remainder = simd.load_i64, simd.atomic_add, simd.quotient, simd.remainder

    @simd.device
    def take(op, shared, rows, n):
        i, n_tasks, n_threads = atomic_add(op + NEXT, 1), quotient(n + rows - 1, rows), load(shared + N_THREADS)
        if i >= n_tasks:
            return n
        part, whole = remainder(i, n_threads), quotient(n_tasks, n_threads)
        # A part has `whole` tasks; the first ones have one more.
        return rows * (part * whole + min(part, n_tasks - whole * n_threads) + quotient(i, n_threads))

    return take


def make_matvec(walks: Sequence[Any], block_columns: int, block_bytes: int, token_bytes: int) -> Callable[..., None]:
    """A matvec of the walks for 1 to 4 tokens:

        walk(p0, p1, p2, p3, o1, o2, o3, n_blocks, near, leap, a, stride, out, out_stride)

    p      addresses of the four rows · o  bytes from the first row's result to the others'
    near   blocks from here on that are fetched AHEAD_BYTES ahead; those after them lie `leap` bytes further on
    a      the first token's activations; the next tokens' are `token_bytes` behind, the next block's `stride` behind
    """
    from gemmafile.kernels import simd

    load, atomic_add, quotient, align_stack = simd.load_i64, simd.atomic_add, simd.quotient, simd.align_stack
    one_token, two_tokens, three_tokens, four_tokens = walks
    large_rows, bounds = make_chunks()
    shift, blocks_ahead = block_columns.bit_length() - 1, AHEAD_BYTES // block_bytes

    def matvec(op, shared, thread):
        """out[t][r], up to four tokens at a time. Reads ROW_BYTES a row, once."""
        align_stack()
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        n_blocks = load(op + COLUMNS) >> shift
        tokens, out_stride = load(shared + load(op + ROWS)), load(op + OUT_STRIDE)
        if tokens == 0:
            return
        stride = quotient(tokens + 5, 6) * 6 * token_bytes
        large = large_rows(n, load(shared + N_THREADS))
        first, end = bounds(atomic_add(op + NEXT, 1), n, large)
        while first < n:
            following, following_end = bounds(atomic_add(op + NEXT, 1), n, large)
            last, quarter = end - 1, (end - first + 3) >> 2
            leap = (min(following, n - 1) - first - quarter) * row_bytes
            for r0 in range(first, first + quarter):
                near = (first + quarter - r0) * n_blocks - blocks_ahead
                r1, r2, r3 = min(r0 + quarter, last), min(r0 + 2 * quarter, last), min(r0 + 3 * quarter, last)
                p0, p1 = weights + r0 * row_bytes, weights + r1 * row_bytes
                p2, p3 = weights + r2 * row_bytes, weights + r3 * row_bytes
                o1, o2, o3 = 4 * (r1 - r0), 4 * (r2 - r0), 4 * (r3 - r0)
                a, out = load(op + PACKED), load(op + OUT) + 4 * r0
                if tokens == 1:
                    one_token(p0, p1, p2, p3, o1, o2, o3, n_blocks, near, leap, a, stride, out, out_stride)
                elif tokens == 2:
                    two_tokens(p0, p1, p2, p3, o1, o2, o3, n_blocks, near, leap, a, stride, out, out_stride)
                elif tokens == 3:
                    three_tokens(p0, p1, p2, p3, o1, o2, o3, n_blocks, near, leap, a, stride, out, out_stride)
                else:
                    for t in range(0, tokens, 4):
                        a_t, out_t = a + t * token_bytes, out + t * out_stride
                        four_tokens(p0, p1, p2, p3, o1, o2, o3, n_blocks, near, leap, a_t, stride, out_t, out_stride)
            first, end = following, following_end

    return matvec


def make_find_rows() -> Any:
    """find_rows(weights, row_bytes, first, n, target): the addresses of 32 rows; the last row's again past the end."""
    from gemmafile.kernels import simd

    store = simd.store_i64

    @simd.device
    def find_rows(weights, row_bytes, first, n, target):
        for i in range(CHUNK_ROWS):
            store(target + 8 * i, weights + min(first + i, n - 1) * row_bytes)

    return find_rows


def make_fetch_lines() -> Any:
    """fetch(at, count): so many cache lines from there on, into the second-level cache."""
    from gemmafile.kernels import simd

    prefetch = simd.prefetcher(64)

    @simd.device
    def fetch(at, count):
        for i in range(count):
            prefetch(at + 64 * i)

    return fetch


def make_fetch_panel(n_bytes: int) -> Any:
    """fetch(weights, row_bytes, first, n, at): so many bytes of 32 rows, from `at` on, into the same."""
    from gemmafile.kernels import simd

    prefetch = simd.prefetcher(n_bytes)

    @simd.device
    def fetch(weights, row_bytes, first, n, at):
        for i in range(CHUNK_ROWS):
            prefetch(weights + min(first + i, n - 1) * row_bytes + at)

    return fetch
