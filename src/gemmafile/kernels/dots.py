"""Matrix kernels of F32 and F16: 16 lanes along K, straight from the file's bytes.

    matvec  1 to 3 tokens, 4 rows at a time
    matmul  more: 64 rows x 1024 columns stay in the second-level cache while all tokens pass by,
            4 rows x 6 tokens in registers

Order of the sums: docs/numerics.md. Activations are read as float32 rows.
"""

from __future__ import annotations

from collections.abc import Callable

from gemmafile.kernels.ops import ROWS
from gemmafile.kernels.packing import TOKEN_TILE
from gemmafile.kernels.streams import COLUMNS, OUT, OUT_STRIDE, PACKED, PACKED_STRIDE, ROW_BYTES, WEIGHTS, N, make_take

CHUNK_STEPS = 64
SIZES = {"f32": (16, 4, 4), "f16": (16, 2, 4)}
"""Columns in a step, bytes of a weight, bytes of an activation."""


def kernels() -> dict[str, Callable[..., None]]:
    built: dict[str, Callable[..., None]] = {}
    for kind in SIZES:
        built[f"{kind}_matvec"] = _make(kind, 1, 32)
        built[f"{kind}_matmul"] = _make(kind, TOKEN_TILE, 64)
    return built


def _make(kind: str, tile_tokens: int, chunk_rows: int) -> Callable[..., None]:
    from gemmafile.kernels import simd
    from gemmafile.kernels.tiles import DotTile

    load, take = simd.load_i64, make_take()
    columns_a_step, weight_bytes, input_bytes = SIZES[kind]
    tile = DotTile(tile_tokens, kind)
    zero, step, step_part, finish = tile.zero, tile.step, tile.step_part, tile.finish
    prefetch = simd.prefetcher(256)
    one_token = tile_tokens == 1

    def product(op, shared, thread):
        """out[t][r]; rows and tokens in tiles, K in chunks."""
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        columns = load(op + COLUMNS)
        tokens = load(shared + load(op + ROWS))
        out_stride = load(op + OUT_STRIDE)
        x_stride = load(op + PACKED_STRIDE)
        while True:
            first = take(op, shared, chunk_rows, n)
            if first >= n or tokens == 0:
                return
            start = 0
            while start < columns:
                steps = min(CHUNK_STEPS, (columns - start) // columns_a_step)
                left = min(CHUNK_STEPS * columns_a_step, columns - start) - steps * columns_a_step
                t = 0
                while t < tokens:
                    r = first
                    while r < min(first + chunk_rows, n):
                        w0 = weights + r * row_bytes + start * weight_bytes
                        w1 = weights + min(r + 1, n - 1) * row_bytes + start * weight_bytes
                        w2 = weights + min(r + 2, n - 1) * row_bytes + start * weight_bytes
                        w3 = weights + min(r + 3, n - 1) * row_bytes + start * weight_bytes
                        x = load(op + PACKED) + t * x_stride + start * input_bytes
                        ahead = w0 + 4 * row_bytes
                        acc = zero()
                        for _ in range(steps):
                            if one_token:
                                prefetch(ahead)
                                ahead += 256
                            acc = step(acc, w0, w1, w2, w3, x, x_stride)
                            w0 += columns_a_step * weight_bytes
                            w1 += columns_a_step * weight_bytes
                            w2 += columns_a_step * weight_bytes
                            w3 += columns_a_step * weight_bytes
                            x += columns_a_step * input_bytes
                        if left > 0:
                            acc = step_part(acc, w0, w1, w2, w3, x, x_stride, left)
                        finish(acc, load(op + OUT) + t * out_stride + 4 * r, out_stride, 1 if start == 0 else 0)
                        r += 4
                    t += tile_tokens
                start += CHUNK_STEPS * columns_a_step

    return product
