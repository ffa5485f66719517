"""Products of BF16 for many tokens on x86 without bfloat16 instructions: the chains of `bf16.matmul`, in float32.

Every number is widened once, those of 32 rows x 256 columns in a panel, those of six tokens beside it, so that the loop
over them is nothing but fma: two vectors of rows times six tokens, a chain of a lane in each of twelve registers, which
is what it takes to keep two units busy. Then the lane's chains are added to the sums: the same bits (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels.ops import ROWS, SCRATCH, SCRATCH_BYTES
from gemmafile.kernels.packing import BF16_CHUNK, TOKEN_TILE
from gemmafile.kernels.streams import COLUMNS, OUT, OUT_STRIDE, PACKED, ROW_BYTES, WEIGHTS, N, make_take

STEPS, LANES, PANEL_ROWS = 8, 16, 32
_UNPACKED = 16 * 64
_HALF = 2 * STEPS * LANES * 64
"""Bytes of 16 rows of a panel: [lane][step][odd number, even number of a pair][16 rows]."""
_TOKEN = 4 * BF16_CHUNK
"""Bytes of a token's numbers: [step][odd, even][lane]."""
SCRATCH_NEEDED = 64 + _UNPACKED + 2 * _HALF + TOKEN_TILE * _TOKEN


def make_matmul() -> Callable[..., None]:
    from gemmafile.kernels import simd
    from gemmafile.kernels.bf16 import flushing, make_gather
    from gemmafile.kernels.transposes import transposer

    # What the next tile reads, a few lines with each lane.
    fetch, fetch_results = simd.row_prefetcher(3, 64, level=1), simd.row_prefetcher(TOKEN_TILE, 128, level=1)
    align_stack = simd.align_stack
    load, take, prefetch = simd.load_i64, make_take(), simd.prefetcher(2 * BF16_CHUNK)
    tile = _Tile()
    zero, load_tile, store_tile, add_lane, widen = tile.zero, tile.load, tile.store, tile.add_lane, tile.widen
    tile_rows = 2 * tile.width
    gather, transpose = make_gather(), transposer([128 * STEPS * i for i in range(16)], widened)
    n_parts = PANEL_ROWS // tile_rows
    flush, restore = flushing()

    def matmul(op, shared, thread):
        """out[t][r] for many tokens. Reads the weights once, the activations once per 32 rows."""
        align_stack()
        weights, row_bytes, n = load(op + WEIGHTS), load(op + ROW_BYTES), load(op + N)
        columns = load(op + COLUMNS)
        x_stride = 2 * BF16_CHUNK * simd.quotient(columns + BF16_CHUNK - 1, BF16_CHUNK)
        tokens, out_stride = load(shared + load(op + ROWS)), load(op + OUT_STRIDE)
        unpacked = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        panel = unpacked + _UNPACKED
        wide = panel + 2 * _HALF
        before = flush()
        while True:
            first = take(op, shared, PANEL_ROWS, n)
            if first >= n or tokens == 0:
                break
            start = 0
            while start < columns:
                for i in range(2 * STEPS):
                    half, j = i & 1, i >> 1
                    gather(weights, row_bytes, first + 16 * half, n, 16, columns, start + 32 * j, unpacked)
                    transpose(unpacked, panel + _HALF * half + 128 * j)
                if start + BF16_CHUNK < columns:
                    for i in range(PANEL_ROWS):
                        prefetch(weights + min(first + i, n - 1) * row_bytes + 2 * (start + BF16_CHUNK))
                t = 0
                while t < tokens:
                    fetch_results(load(op + OUT) + (t + TOKEN_TILE) * out_stride + 4 * first, out_stride)
                    x = load(op + PACKED) + t * x_stride + 2 * start
                    for i in range(TOKEN_TILE):
                        widen(x + i * x_stride, wide + i * _TOKEN)
                    for part in range(n_parts):
                        c = load(op + OUT) + t * out_stride + 4 * (first + tile_rows * part)
                        if start == 0:
                            sums = zero()
                        else:
                            sums = load_tile(c, out_stride)
                        for i in range(LANES):
                            fetch(x + (TOKEN_TILE + (i & 1) * 3) * x_stride + 64 * (i >> 1), x_stride)
                            sums = add_lane(sums, panel + _HALF * part + 128 * STEPS * i, wide + 4 * i)
                        store_tile(sums, c, out_stride)
                    t += TOKEN_TILE
                start += BF16_CHUNK
        restore(before)

    return matmul


class _Tile:
    """Two vectors of rows x six tokens."""

    def __init__(self) -> None:
        import llvmlite.ir as ir
        from numba.core import types

        from gemmafile.kernels import emit
        from gemmafile.kernels.tiles import join

        self.width = width = 8 if emit.FEW_REGISTERS else 16
        """Rows in a vector."""
        self._rows_apart = 32 if emit.FEW_REGISTERS else _HALF
        self._floats, n = ir.VectorType(emit.F32, width), 2 * TOKEN_TILE
        floats, place = types.UniTuple(emit.vec("f32", width), n), emit.address
        nothing = emit.splat_constant(self._floats, 0.0)
        self.zero = emit.make(floats, [], lambda b: join(b, [nothing] * n))
        self.load = emit.make(floats, [place, place], self._load)
        """load(c, stride): the sums from float32 c[token][row]"""
        self.store = emit.make(emit.void, [floats, place, place], self._store)
        self.add_lane = emit.make(floats, [floats, place, place], self._add_lane)
        """add_lane(sums, rows, tokens): sums + the chains of one lane"""
        self.widen = emit.make(emit.void, [place, place], _widen_token)
        """widen(a, target): 256 numbers of a token"""

    def _place(self, b: Any, c: Any, stride: Any, i: int) -> Any:
        import llvmlite.ir as ir

        from gemmafile.kernels.emit import I64

        row = b.add(c, b.mul(stride, ir.Constant(I64, i // 2)))
        return b.add(row, ir.Constant(I64, i % 2 * 4 * self.width))

    def _load(self, b: Any, c: Any, stride: Any) -> Any:
        from gemmafile.kernels import emit, tiles

        places = [self._place(b, c, stride, i) for i in range(2 * TOKEN_TILE)]
        return tiles.join(b, [emit.load_at(b, at, self._floats) for at in places])

    def _store(self, b: Any, sums: Any, c: Any, stride: Any) -> None:
        from gemmafile.kernels import emit, tiles

        for i, v in enumerate(tiles.split(b, sums)):
            emit.store_at(b, v, self._place(b, c, stride, i))

    def _add_lane(self, b: Any, sums: Any, panel: Any, tokens: Any) -> Any:
        from gemmafile.kernels import emit, tiles

        chains = [emit.splat_constant(self._floats, 0.0)] * (2 * TOKEN_TILE)
        for at in range(0, 128 * STEPS, 64):
            rows = [emit.load_at(b, panel, self._floats, at + self._rows_apart * v) for v in range(2)]
            for t in range(TOKEN_TILE):
                number = emit.splat(b, emit.load_at(b, tokens, emit.F32, _TOKEN * t + at), self.width)
                for v, row in enumerate(rows):
                    chains[2 * t + v] = emit.fma_f32(b, row, number, chains[2 * t + v])
            chains = emit.together(b, chains)
        return tiles.join(b, [b.fadd(x, y) for x, y in zip(tiles.split(b, sums), chains, strict=True)])


def widened(b: Any, pairs: Any) -> list[Any]:
    """The odd numbers of pairs of bfloat16 as float32 (their bits), then the even ones."""
    from gemmafile.kernels import emit

    t = pairs.type
    return [b.and_(pairs, emit.splat_constant(t, -65536)), b.shl(pairs, emit.splat_constant(t, 16))]


def _widen_token(b: Any, a: Any, target: Any) -> None:
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    for j in range(STEPS):
        for i, v in enumerate(widened(b, emit.load_at(b, a, ir.VectorType(emit.I32, 16), 64 * j))):
            emit.store_at(b, v, target, 128 * j + 64 * i)
