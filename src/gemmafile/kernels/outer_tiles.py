"""Register tiles of attention: rows of weights times vectors of cached numbers. See `attention_tiles.py`.

Needs Numba; only kernel builders import it.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba.core import types

from gemmafile.kernels import emit
from gemmafile.kernels.cache import Q8_0_BLOCK
from gemmafile.kernels.emit import F32, I8, I16, I32, address, load_at, make, splat, splat_constant, store_at, vec, void
from gemmafile.kernels.tiles import join, split

_HAS_32_REGISTERS = emit.HAS_AVX512 or emit.HAS_NEON
MANY_TILES = (6, 2, 1) if _HAS_32_REGISTERS else (3, 2, 1)
"""Rows of the register tiles for float32, largest first: what fits beside four vectors of columns."""
FEW_TILES = (4, 2, 1) if _HAS_32_REGISTERS else (3, 2, 1)
"""The same for kinds that are converted on the way, which is for a few rows only."""
LANES = 16 if emit.HAS_AVX512 else 4 if emit.HAS_NEON else 8
"""float32 in one register."""


class OuterTile:
    """`rows` rows x 4 vectors of float32 sums of outer products; rows of `a` and of `c` lie a stride apart.

    zero()                       all 0
    load(c), store(tile, c)      float32 c[row][column]
    step(tile, a, b)             tile[r] = fma(a[r], b, tile[r]), b the numbers of its kind at an address
    step_scaled(tile, a, b, s)   the same for q8_0 keys: column i times the i-th of 4 vectors of scales
    step_scales(tile, a, b, s)   the same for q8_0 values: 32 columns times each float16 at s
    """

    VECTORS = 4

    def __init__(self, rows: int, a_stride: int, c_stride: int, kind: str):
        self.rows, self.a_stride, self.c_stride, self.kind, self.lanes = rows, a_stride, c_stride, kind, LANES
        self.columns = self.VECTORS * self.lanes
        floats = vec("f32", self.lanes)
        tile, scales = types.UniTuple(floats, rows * self.VECTORS), types.UniTuple(floats, self.VECTORS)
        self._floats = floats.llvm
        zero = splat_constant(self._floats, 0.0)
        self.zero = make(tile, [], lambda b: join(b, [zero] * (rows * self.VECTORS)))
        self.load = make(tile, [address], self._load)
        self.store = make(void, [tile, address], self._store)
        self.step = make(tile, [tile, address, address], self._step)
        self.key_scales = make(scales, [address], self._key_scales)
        self.step_scaled = make(tile, [tile, address, address, scales], self._step_scaled)
        self.step_scales = make(tile, [tile, address, address, address], self._step_scales)

    def _load(self, b: Any, c: Any) -> Any:
        places = [(r, i) for r in range(self.rows) for i in range(self.VECTORS)]
        return join(b, [load_at(b, c, self._floats, r * self.c_stride + 4 * self.lanes * i) for r, i in places])

    def _store(self, b: Any, tile: Any, c: Any) -> None:
        for k, v in enumerate(split(b, tile)):
            store_at(b, v, c, (k // self.VECTORS) * self.c_stride + 4 * self.lanes * (k % self.VECTORS))

    def _columns(self, b: Any, at: Any) -> list[Any]:
        """The numbers at an address as float32; those of q8_0 without their scale."""
        return [load_numbers(b, at, self.kind, self.lanes, self.lanes * i) for i in range(self.VECTORS)]

    def _products(self, b: Any, acc: Any, a: Any, columns: list[Any]) -> Any:
        sums = split(b, acc)
        for r in range(self.rows):
            one = splat(b, load_at(b, a, F32, r * self.a_stride), self.lanes)
            for i in range(self.VECTORS):
                k = r * self.VECTORS + i
                sums[k] = emit.fma_f32(b, one, columns[i], sums[k])
        return join(b, sums)

    def _step(self, b: Any, acc: Any, a: Any, at: Any) -> Any:
        return self._products(b, acc, a, self._columns(b, at))

    def _key_scales(self, b: Any, at: Any) -> Any:
        return join(b, [load_numbers(b, at, "f16", self.lanes, self.lanes * i) for i in range(self.VECTORS)])

    def _step_scaled(self, b: Any, acc: Any, a: Any, at: Any, scales: Any) -> Any:
        columns = zip(self._columns(b, at), split(b, scales), strict=True)
        return self._products(b, acc, a, [b.fmul(column, scale) for column, scale in columns])

    def _step_scales(self, b: Any, acc: Any, a: Any, at: Any, scales: Any) -> Any:
        each = [load_one_half(b, scales, 2 * i) for i in range(max(1, self.columns // Q8_0_BLOCK))]
        spread = [splat(b, scale, self.lanes) for scale in each]
        columns = self._columns(b, at)
        columns = [b.fmul(column, spread[i * self.lanes // Q8_0_BLOCK]) for i, column in enumerate(columns)]
        return self._products(b, acc, a, columns)


def load_numbers(b: Any, at: Any, kind: str, lanes: int, skip: int) -> Any:
    """`lanes` numbers as float32, `skip` numbers after an address; those of q8_0 without their scale."""
    if kind == "f32":
        return load_at(b, at, ir.VectorType(F32, lanes), 4 * skip)
    if kind == "q8_0":
        wide = b.sext(load_at(b, at, ir.VectorType(I8, lanes), skip), ir.VectorType(I32, lanes))
        return b.sitofp(wide, ir.VectorType(F32, lanes))
    halves = load_at(b, at, ir.VectorType(I16, lanes), 2 * skip)
    return emit.half_to_f32(b, halves) if kind == "f16" else emit.bf16_to_f32(b, halves)


def load_one_half(b: Any, at: Any, offset: int) -> Any:
    """A float16 as float32."""
    return b.extract_element(emit.load_halves(b, [at] * 4, offset), ir.Constant(I32, 0))
