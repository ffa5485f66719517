"""Register tiles of attention: rows of weights times vectors of cached numbers. See `attention_tiles.py`.

Needs Numba; only kernel builders import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba.core import types

from gemmafile.kernels import emit
from gemmafile.kernels.cache import CACHE_TYPES, Q8_0_BLOCK
from gemmafile.kernels.emit import (
    F32,
    I8,
    I16,
    I32,
    I64,
    address,
    call,
    load_at,
    make,
    pointer,
    splat,
    splat_constant,
    store_at,
    void,
)

_HAS_32_REGISTERS = emit.HAS_AVX512 or emit.HAS_NEON
MANY_TILES = (6, 2, 1) if _HAS_32_REGISTERS else (3, 2, 1)
"""Rows of the register tiles for float32, largest first: what fits beside four vectors of columns."""
FEW_TILES = (4, 2, 1) if _HAS_32_REGISTERS else (3, 2, 1)
"""The same for kinds that are converted on the way, which is for a few rows only."""
LANES = 16 if emit.HAS_AVX512 else 4 if emit.HAS_NEON else 8
"""float32 in one register."""


class OuterTile:
    """`rows` rows x 4 vectors of columns: the inner loops of attention, in registers, as intrinsics.

    Written as LLVM code with its loops: as functions of the SIMD layer they took Numba three times as long. Rows of
    queries and of sums lie QUERY_STRIDE bytes apart, rows of scores SCORE_STRIDE.
    """

    VECTORS = 4

    def __init__(self, rows: int, kind: str, block: int, query_stride: int, score_stride: int):
        self.rows, self.kind, self.block = rows, kind, block
        self._query_stride, self._score_stride = query_stride, score_stride
        self._columns = self.VECTORS * LANES
        self._size = CACHE_TYPES[kind].n_bytes
        self._scaled, self._fetches = kind == "q8_0", kind != "f32"
        self._floats = ir.VectorType(F32, LANES)
        integer = types.int64
        self.scores = make(void, [address] * 4 + [integer] * 2, self._scores)
        """scores(queries, keys, scales, out, head_dim, ahead): out[row][position] = sum of q[row][d] k[d][position]"""
        self.sums = make(void, [address] * 4 + [integer] * 5, self._sums)
        """sums(weights, values, scales, out, stride, width, begin, end, ahead): out[row][d] += w[row][j] v[j][d] for
        begin <= j < end"""

    def _scores(self, b: Any, queries: Any, keys: Any, scales: Any, out: Any, head_dim: Any, ahead: Any) -> None:
        zero = splat_constant(self._floats, 0.0)
        for c in range(0, self.block, self._columns):
            start = [_plus(b, queries, 0), _plus(b, keys, self._size * c)]
            start += [zero] * (self.rows * self.VECTORS)
            if self._scaled:
                acc = self._scaled_scores(b, start, _plus(b, scales, 2 * c), head_dim, ahead)
            else:
                acc = _loop(b, head_dim, start, lambda state: self._score_step(b, state, None, ahead))[2:]
            self._store(b, acc, _plus(b, out, 4 * c), self._score_stride)

    def _scaled_scores(self, b: Any, start: list[Any], scales: Any, head_dim: Any, ahead: Any) -> list[Any]:
        """Blocks of 32 dimensions, each with its vectors of scales."""

        def body(state: list[Any]) -> list[Any]:
            scale, left, *inner = state
            vectors = [load_numbers(b, scale, "f16", LANES * i) for i in range(self.VECTORS)]
            n = b.select(b.icmp_signed("<", left, _number(Q8_0_BLOCK)), left, _number(Q8_0_BLOCK))
            inner = _loop(b, n, inner, lambda deeper: self._score_step(b, deeper, vectors, ahead))
            return [_plus(b, scale, 2 * self.block), b.sub(left, _number(Q8_0_BLOCK)), *inner]

        n_blocks = b.sdiv(_plus(b, head_dim, Q8_0_BLOCK - 1), _number(Q8_0_BLOCK))
        return _loop(b, n_blocks, [scales, head_dim, *start], body)[4:]

    def _score_step(self, b: Any, state: list[Any], scales: list[Any] | None, ahead: Any) -> list[Any]:
        """The next dimension. State: addresses of the queries and keys, sums."""
        at, key, *acc = state
        columns = self._load(b, key)
        if scales is not None:
            columns = [b.fmul(column, scale) for column, scale in zip(columns, scales, strict=True)]
        self._fetch(b, b.add(key, ahead))
        acc = self._products(b, acc, at, self._query_stride, columns)
        return [_plus(b, at, 4), _plus(b, key, self._size * self.block), *acc]

    def _sums(
        self, b: Any, weights: Any, values: Any, scales: Any, out: Any, stride: Any, width: Any, begin: Any, end: Any,
        ahead: Any,
    ) -> None:  # fmt: skip
        n = b.sub(end, begin)
        scale_stride = b.sdiv(width, _number(Q8_0_BLOCK // 2))
        weights = b.add(weights, b.mul(begin, _number(4)))
        values = b.add(values, b.mul(begin, stride))
        scales = b.add(scales, b.mul(begin, scale_stride))

        def column(state: list[Any]) -> list[Any]:
            (done,) = state  # columns
            target = b.add(out, b.mul(done, _number(4)))
            value = b.add(values, b.mul(done, _number(self._size)))
            scale = b.add(scales, b.mul(b.sdiv(done, _number(Q8_0_BLOCK)), _number(2)))
            acc = [load_at(b, target, self._floats, offset) for offset in self._offsets(self._query_stride)]

            def step(inner: list[Any]) -> list[Any]:
                at, here, scale_here, *acc = inner
                columns = self._load(b, here)
                if self._scaled:
                    columns = self._times_scales(b, columns, scale_here)
                self._fetch(b, b.add(here, ahead))
                acc = self._products(b, acc, at, self._score_stride, columns)
                return [_plus(b, at, 4), b.add(here, stride), b.add(scale_here, scale_stride), *acc]

            acc = _loop(b, n, [weights, value, scale, *acc], step)[3:]
            self._store(b, acc, target, self._query_stride)
            return [_plus(b, done, self._columns)]

        _loop(b, b.sdiv(width, _number(self._columns)), [_number(0)], column)

    def _load(self, b: Any, at: Any) -> list[Any]:
        """The numbers at an address as float32; those of q8_0 without their scale."""
        return [load_numbers(b, at, self.kind, LANES * i) for i in range(self.VECTORS)]

    def _times_scales(self, b: Any, columns: list[Any], scales: Any) -> list[Any]:
        """32 columns share a float16."""
        each = [load_one_half(b, scales, 2 * i) for i in range(max(1, self._columns // Q8_0_BLOCK))]
        spread = [splat(b, scale, LANES) for scale in each]
        return [b.fmul(column, spread[i * LANES // Q8_0_BLOCK]) for i, column in enumerate(columns)]

    def _products(self, b: Any, acc: list[Any], a: Any, stride: int, columns: list[Any]) -> list[Any]:
        sums: list[Any] = []
        for r in range(self.rows):
            one = splat(b, load_at(b, a, F32, r * stride), LANES)
            sums += [emit.fma_f32(b, one, column, acc[len(sums) + i]) for i, column in enumerate(columns)]
        return sums

    def _offsets(self, stride: int) -> list[int]:
        return [r * stride + 4 * LANES * i for r in range(self.rows) for i in range(self.VECTORS)]

    def _store(self, b: Any, acc: list[Any], at: Any, stride: int) -> None:
        for v, offset in zip(acc, self._offsets(stride), strict=True):
            store_at(b, v, at, offset)

    def _fetch(self, b: Any, at: Any) -> None:
        """The numbers at an address into the second-level cache."""
        for offset in range(0, self._size * self._columns if self._fetches else 0, 64):
            arguments = [pointer(b, at, I8, offset), *(ir.Constant(I32, v) for v in (0, 2, 1))]
            call(b, "llvm.prefetch.p0", ir.VoidType(), arguments)


def _number(n: int) -> Any:
    return ir.Constant(I64, n)


def _plus(b: Any, x: Any, n: int) -> Any:
    return b.add(x, _number(n)) if n else x


def _loop(b: Any, n: Any, start: list[Any], body: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """state = body(state), n times over."""
    before, inside, after = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
    b.cbranch(b.icmp_signed(">", n, _number(0)), inside, after)
    b.position_at_end(inside)
    phis = [b.phi(value.type) for value in (_number(0), *start)]
    for phi, value in zip(phis, (_number(0), *start), strict=True):
        phi.add_incoming(value, before)
    results = body(phis[1:])
    turn = b.add(phis[0], _number(1))
    for phi, value in zip(phis, (turn, *results), strict=True):
        phi.add_incoming(value, b.block)
    last = b.block
    b.cbranch(b.icmp_signed("<", turn, n), inside, after)
    b.position_at_end(after)
    out = [b.phi(value.type) for value in start]
    for phi, value, result in zip(out, start, results, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(result, last)
    return out


def load_numbers(b: Any, at: Any, kind: str, skip: int, lanes: int = LANES) -> Any:
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
