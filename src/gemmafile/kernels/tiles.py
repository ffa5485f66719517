"""Register tiles: blocks of accumulators that stay in registers, as tuples of vectors.

A tile is a UniTuple of vectors; its loops are unrolled here, in Python, while the intrinsic is built, so that LLVM
sees plain registers. Two kinds (that of attention is in `outer_tiles.py`):

    WeightTile  32 weight rows x n tokens, lanes are weight rows, for the integer formats
    DotTile     weight rows x tokens, lanes run along K, for the float formats

Needs Numba; only kernel builders import it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir
from numba.core import types

from gemmafile.kernels import emit
from gemmafile.kernels.emit import F32, I8, I16, I32, I64, address, load_at, make, splat, store_at, vec, void
from gemmafile.kernels.packing import TOKEN_TILE

_FLOATS, _INTS = ir.VectorType(F32, 16), ir.VectorType(I32, 16)


def join(b: Any, vectors: Sequence[Any]) -> Any:
    """Vectors of one type as what a UniTuple of them is."""
    tile = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for i, v in enumerate(vectors):
        tile = b.insert_value(tile, v, i)
    return tile


def split(b: Any, tile: Any) -> list[Any]:
    """The vectors of a UniTuple."""
    return [b.extract_value(tile, i) for i in range(tile.type.count)]


def store_lanes(b: Any, tile: Any, addr: Any, o1: Any, o2: Any, o3: Any, stride: Any) -> None:
    """The four lanes of each vector of a UniTuple at addr, addr + o1, ...; the next vector `stride` bytes behind."""
    for v in split(b, tile):
        for i, offset in enumerate((None, o1, o2, o3)):
            at = addr if offset is None else b.add(addr, offset)
            store_at(b, b.extract_element(v, ir.Constant(I32, i)), at)
        addr = b.add(addr, stride)


def _at(b: Any, base: Any, *terms: Any) -> Any:
    """base + the terms; Python integers become constants."""
    for term in terms:
        base = b.add(base, ir.Constant(I64, term) if isinstance(term, int) else term)
    return base


def _times(b: Any, stride: Any, n: int) -> Any:
    return b.mul(stride, ir.Constant(I64, n))


def _word_pairs(b: Any, low: Any, high: Any) -> Any:
    """The lower word of each int32 of one vector, the upper one of another's."""
    n = 2 * low.type.count
    low, high = (b.bitcast(v, ir.VectorType(I16, n)) for v in (low, high))
    return emit.shuffle(b, low, high, [i + n * (i % 2) for i in range(n)])


def words_twice(b: Any, v: Any) -> Any:
    """The lower word of each int32 in both of its halves."""
    t = v.type
    return b.or_(b.and_(v, emit.splat_constant(t, 0xFFFF)), b.shl(v, emit.splat_constant(t, 16)))


def words_of_bytes(b: Any, fours: Any) -> list[Any]:
    """Of four signed bytes a lane the first two as words, then the others."""
    t = fours.type
    words = b.bitcast(fours, ir.VectorType(I16, 2 * t.count))
    eight, half, upper = emit.splat_constant(words.type, 8), emit.splat_constant(t, 16), emit.splat_constant(t, -65536)
    even, odd = (b.bitcast(v, t) for v in (b.ashr(b.shl(words, eight), eight), b.ashr(words, eight)))
    lower = b.xor(upper, emit.splat_constant(t, -1))
    return [b.or_(b.and_(even, lower), b.shl(odd, half)), b.or_(b.lshr(even, half), b.and_(odd, upper))]


class WeightTile:
    """16 or 32 weight rows (vectors) x n tokens. Sums are exact int32; floats follow the law.

    A panel holds weights as bytes [k / 4][32 rows][4]; a token's activations lie `token_bytes` apart. A tile of 16
    rows takes the first 16 from each address; 64 bytes further on it takes the others.
    """

    def __init__(self, token_bytes: int, *, largest: int = 255, n_tokens: int = 0):
        """largest  of a panel's bytes; n_tokens  0: what registers hold"""
        self.word_steps = 32767 // (2 * 128 * largest) if emit.HAS_AVX2 and not emit.HAS_VNNI else 0
        """Steps whose products, added in pairs, fit in 16 bits, where the CPU has no better way: a few such sums
        are then widened, and multiplied by a scale, in one instruction."""
        self.is_wide = emit.HAS_AVX2 and not emit.HAS_VNNI and largest > 127
        """Whether a panel is better made of words: pairs of products with such bytes do not fit in 16 bits."""
        full = 3 if emit.FEW_REGISTERS else TOKEN_TILE
        self.n_tokens = n_tokens = n_tokens or full
        """What registers hold is a divisor of TOKEN_TILE, since packed activations have room for whole ones."""
        self.fewer = (2 * full + 1) // 3
        """Tokens of the tile that takes the last ones: all even numbers are then sums of whole tiles."""
        self.vectors = 1 if emit.FEW_REGISTERS else 2
        self.n, self.token_bytes, self.largest = n_tokens * self.vectors, token_bytes, largest
        ints, floats = types.UniTuple(vec("i32", 16), self.n), types.UniTuple(vec("f32", 16), self.n)
        zero_i, zero_f = emit.splat_constant(_INTS, 0), emit.splat_constant(_FLOATS, 0.0)
        self.ints, self.floats = ints, floats
        self.zero_ints = make(ints, [], lambda b: join(b, [zero_i] * self.n))
        self.zero_floats = make(floats, [], lambda b: join(b, [zero_f] * self.n))
        self.load = make(floats, [address, address], self._load)
        """load(c, stride): the tile from float32 c[token][row]"""
        self.store = make(void, [floats, address, address], self._store)
        """store(tile, c, stride): all 32 rows; rows of an output are padded to 32 numbers"""
        self.add_scaled = make(ints, [ints, ints, address], self._add_scaled)
        """add_scaled(total, acc, scales): total += acc * scales int32[32]"""
        self.fma_ints = make(floats, [floats, ints, address, address], self._fma_ints(False))
        """fma_ints(f, acc, d_rows, d_tokens): f = fma(float(acc), d_rows[row] * d_tokens[token], f)"""
        self.fma_ints_negative = make(floats, [floats, ints, address, address], self._fma_ints(True))
        self.fma_outer = make(floats, [floats, address, address], self._fma_outer)
        """fma_outer(f, rows, tokens): f = fma(rows[row], tokens[token], f)"""

    def start(self, factor: int, n_sums: int = 1) -> Any:
        """start(a): accumulators from the sum of the n int32 at `a` of each token, times the factor."""

        def code(b: Any, a: Any) -> Any:
            each = []
            for t in range(self.n_tokens):
                sums = [load_at(b, a, I32, t * self.token_bytes + 4 * i) for i in range(n_sums)]
                each.append(b.mul(functools.reduce(b.add, sums), ir.Constant(I32, factor)))
            return join(b, [splat(b, each[i % self.n_tokens], 16) for i in range(self.n)])

        return make(self.ints, [address], code)

    def dot(self, offsets: Sequence[int]) -> Any:
        """dot(acc, panel, a): acc += the products of successive panel steps with the 4 bytes at a + each offset."""
        bytes_ = ir.VectorType(I8, 64)
        if self.word_steps:
            ones = emit.splat_constant(ir.VectorType(I16, 16), 1)
            return make(
                self.ints, [self.ints, address, address],
                lambda b, acc, panel, a: self._dot_by_words(b, acc, panel, a, offsets, [ones] * 2 * self.vectors),
            )  # fmt: skip

        def code(b: Any, acc: Any, panel: Any, a: Any) -> Any:
            acc = split(b, acc)
            for s, offset in enumerate(offsets):
                weights = [load_at(b, panel, bytes_, (s * 2 + v) * 64) for v in range(self.vectors)]
                for t in range(self.n_tokens):
                    four = b.bitcast(splat(b, load_at(b, a, I32, t * self.token_bytes + offset), 16), bytes_)
                    for v in range(self.vectors):
                        i = v * self.n_tokens + t
                        acc[i] = emit.dot_bytes(b, acc[i], weights[v], four, below_128=self.largest < 128)
            return join(b, acc)

        return make(self.ints, [self.ints, address, address], code)

    def widen(self, n_chunks: int) -> Any:
        """widen(a, target): n * 64 activations of each token as words."""
        bytes_, words = ir.VectorType(I8, 16), ir.VectorType(I16, 16)

        def code(b: Any, a: Any, target: Any) -> None:
            for t in range(self.n_tokens):
                for i in range(0, 64 * n_chunks, 16):
                    wide = b.sext(load_at(b, a, bytes_, t * self.token_bytes + i), words)
                    store_at(b, wide, target, 2 * (64 * n_chunks * t + i))

        return make(void, [address, address], code)

    def wide_dot(self, n_chunks: int, offsets: Sequence[int]) -> Any:
        """wide_dot(acc, panel, a): acc += the products of successive panel steps with the 4 columns that `widen` has at
        a + twice each offset; panel [step][2 vectors][first, last two columns][16 rows][2]."""
        words, token_bytes = ir.VectorType(I16, 16), 128 * n_chunks

        def code(b: Any, acc: Any, panel: Any, a: Any) -> Any:
            parts = [emit.half(b, v, h) for v in split(b, acc) for h in range(2)]
            for step in range(2 * len(offsets)):
                s, last = step // 2, step % 2
                for v in range(self.vectors):
                    rows = [load_at(b, panel, words, 256 * s + 128 * v + 64 * last + 32 * h) for h in range(2)]
                    for t in range(self.n_tokens):
                        two = b.bitcast(
                            splat(b, load_at(b, a, I32, token_bytes * t + 2 * offsets[s] + 4 * last), 8), words
                        )
                        for h in range(2):
                            i = 2 * (v * self.n_tokens + t) + h
                            parts[i] = emit.dot_words(b, parts[i], rows[h], two)
                parts = emit.together(b, parts)
            return join(b, [emit.shuffle(b, parts[i], parts[i + 1], range(16)) for i in range(0, len(parts), 2)])

        return make(self.ints, [self.ints, address, address], code)

    def scaled_dot(self, offsets: Sequence[int]) -> Any:
        """scaled_dot(total, panel, a, scales): total += scales int32[32], each twice an int16, * what `dot` sums.
        Only where there are `word_steps`."""

        def code(b: Any, total: Any, panel: Any, a: Any, scales: Any) -> Any:
            by_row = [load_at(b, scales, ir.VectorType(I16, 16), 32 * part) for part in range(2 * self.vectors)]
            return self._dot_by_words(b, total, panel, a, offsets, by_row)

        return make(self.ints, [self.ints, address, address, address], code)

    def _dot_by_words(self, b: Any, acc: Any, panel: Any, a: Any, offsets: Sequence[int], scales: Sequence[Any]) -> Any:
        """AVX2: 8 rows at a time; scales <16 x i16>, twice that of each row, for each 8 of the rows."""
        eight, pairs = ir.VectorType(I32, 8), ir.VectorType(I16, 16)
        bytes_, n_parts = ir.VectorType(I8, 32), 2 * self.vectors
        parts = [emit.half(b, v, h) for v in split(b, acc) for h in range(2)]
        place = {(t, p): 2 * (p // 2 * self.n_tokens + t) + p % 2 for t in range(self.n_tokens) for p in range(n_parts)}
        for first in range(0, len(offsets), self.word_steps):
            words: dict[tuple[int, int], Any] = {}
            for s in range(first, min(first + self.word_steps, len(offsets))):
                weights = [load_at(b, panel, bytes_, 128 * s + 32 * p) for p in range(n_parts)]
                for t in range(self.n_tokens):
                    four = b.bitcast(splat(b, load_at(b, a, I32, t * self.token_bytes + offsets[s]), 8), bytes_)
                    for p in range(n_parts):
                        two = emit.call(b, "llvm.x86.avx2.pmadd.ub.sw", pairs, [weights[p], four])
                        words[t, p] = b.add(words[t, p], two) if (t, p) in words else two
                words = dict(zip(words, emit.together(b, list(words.values())), strict=True))
            for key, v in words.items():
                total = emit.call(b, "llvm.x86.avx2.pmadd.wd", eight, [v, scales[key[1]]])
                parts[place[key]] = b.add(parts[place[key]], total)
        return join(b, [emit.shuffle(b, parts[i], parts[i + 1], range(16)) for i in range(0, len(parts), 2)])

    def scaled_offset(self, factor: int, n_scales: int) -> Any:
        """scaled_offset(scales, a): accumulators of -factor times the sum of scales int32[n][32], each twice an int16,
        times the n int16 at `a` of each token."""

        def code(b: Any, scales: Any, a: Any) -> Any:
            acc = [emit.splat_constant(_INTS, 0)] * self.n
            for s in range(0, n_scales, 2):
                for v in range(self.vectors):
                    rows = _word_pairs(b, *(load_at(b, scales, _INTS, 128 * (s + i) + 64 * v) for i in range(2)))
                    for t in range(self.n_tokens):
                        two = splat(b, load_at(b, a, I32, t * self.token_bytes + 2 * s), 16)
                        i = v * self.n_tokens + t
                        acc[i] = emit.dot_words(b, acc[i], rows, b.bitcast(two, rows.type))
            return join(b, [b.mul(v, emit.splat_constant(_INTS, -factor)) for v in acc])

        return make(self.ints, [address, address], code)

    def dot_words(self, n_steps: int) -> Any:
        """dot_words(panel, a): sums of int16 pairs, panel [step][32 rows][2], 2 x int16 a step at a."""
        words = ir.VectorType(I16, 32)

        def code(b: Any, panel: Any, a: Any) -> Any:
            acc = [emit.splat_constant(_INTS, 0)] * self.n
            for s in range(n_steps):
                rows = [load_at(b, panel, words, (s * 2 + v) * 64) for v in range(self.vectors)]
                for t in range(self.n_tokens):
                    two = b.bitcast(splat(b, load_at(b, a, I32, t * self.token_bytes + 4 * s), 16), words)
                    for v in range(self.vectors):
                        i = v * self.n_tokens + t
                        acc[i] = emit.dot_words(b, acc[i], rows[v], two)
            return join(b, acc)

        return make(self.ints, [address, address], code)

    @staticmethod
    def scale_words() -> Any:
        """scale_words(panel, scales): eight steps of a panel of words, 16 rows each, times scales int32[16], each twice
        an int16."""

        def code(b: Any, panel: Any, scales: Any) -> None:
            words = ir.VectorType(I16, 32)
            by_row = load_at(b, scales, words)
            for step in range(16):
                at = 256 * (step // 2) + 64 * (step % 2)
                store_at(b, b.mul(load_at(b, panel, words, at), by_row), panel, at)

        return make(void, [address, address], code)

    def _place(self, b: Any, c: Any, stride: Any, i: int) -> Any:
        return _at(b, c, _times(b, stride, i % self.n_tokens), 64 * (i // self.n_tokens))

    def _load(self, b: Any, c: Any, stride: Any) -> Any:
        return join(b, [load_at(b, self._place(b, c, stride, i), _FLOATS) for i in range(self.n)])

    def _store(self, b: Any, tile: Any, c: Any, stride: Any) -> None:
        for i, v in enumerate(split(b, tile)):
            store_at(b, v, self._place(b, c, stride, i))

    def _add_scaled(self, b: Any, total: Any, acc: Any, scales: Any) -> Any:
        by_row = [load_at(b, scales, _INTS, 64 * v) for v in range(self.vectors)]
        pairs = zip(split(b, total), split(b, acc), strict=True)
        return join(b, [b.add(t, b.mul(a, by_row[i // self.n_tokens])) for i, (t, a) in enumerate(pairs)])

    def _fma_ints(self, negative: bool) -> Any:
        def code(b: Any, f: Any, acc: Any, d_rows: Any, d_tokens: Any) -> Any:
            f, acc = split(b, f), split(b, acc)
            rows = [load_at(b, d_rows, _FLOATS, 64 * v) for v in range(self.vectors)]
            for t in range(self.n_tokens):
                token = splat(b, load_at(b, d_tokens, F32, t * self.token_bytes), 16)
                for v in range(self.vectors):
                    i = v * self.n_tokens + t
                    d = b.fmul(rows[v], token)
                    f[i] = emit.fma_f32(b, b.sitofp(acc[i], _FLOATS), b.fneg(d) if negative else d, f[i])
            return join(b, f)

        return code

    def _fma_outer(self, b: Any, f: Any, rows: Any, tokens: Any) -> Any:
        f = split(b, f)
        by_row = [load_at(b, rows, _FLOATS, 64 * v) for v in range(self.vectors)]
        for t in range(self.n_tokens):
            token = splat(b, load_at(b, tokens, F32, t * self.token_bytes), 16)
            for v in range(self.vectors):
                i = v * self.n_tokens + t
                f[i] = emit.fma_f32(b, by_row[v], token, f[i])
        return join(b, f)


def make_is_last(tile: WeightTile) -> Any:
    """is_last(left): whether tiles of `fewer` tokens, from here on, multiply less in vain than whole ones."""
    from gemmafile.kernels import simd

    whole, few = tile.n_tokens, tile.fewer

    @simd.device
    def is_last(left):
        return left <= few or whole < left <= 2 * few

    return is_last


class DotTile:
    """4 weight rows x `tokens`, 16 lanes along K each. kind: f32, f16 (times float32), bf16 (times bfloat16).

    A step takes the addresses of its four weight rows: the last rows of a matrix may be one row, given four times.
    """

    ROWS = 4

    def __init__(self, tokens: int, kind: str):
        n = self.ROWS * tokens
        tile = types.UniTuple(vec("f32", 16), n)
        weights = {"f32": _FLOATS, "f16": ir.VectorType(I16, 16), "bf16": ir.VectorType(I16, 32)}[kind]
        inputs = weights if kind == "bf16" else _FLOATS

        def dot(b: Any, w: Any, x: Any, acc: Any) -> Any:
            return emit.dot_bf16(b, acc, w, x) if kind == "bf16" else emit.fma_f32(b, w, x, acc)

        def products(b: Any, acc: Any, w: list[Any], x: list[Any]) -> Any:
            acc = split(b, acc)
            for t in range(tokens):
                for i in range(self.ROWS):
                    k = t * self.ROWS + i
                    acc[k] = dot(b, w[i], x[t], acc[k])
            return join(b, acc)

        def widen(b: Any, v: Any) -> Any:
            return emit.half_to_f32(b, v) if kind == "f16" else v

        def step(b: Any, acc: Any, w0: Any, w1: Any, w2: Any, w3: Any, x: Any, x_stride: Any) -> Any:
            ws = [widen(b, load_at(b, w, weights)) for w in (w0, w1, w2, w3)]
            xs = [load_at(b, _at(b, x, _times(b, x_stride, t)), inputs) for t in range(tokens)]
            return products(b, acc, ws, xs)

        def step_part(b: Any, acc: Any, w0: Any, w1: Any, w2: Any, w3: Any, x: Any, x_stride: Any, left: Any) -> Any:
            ws = [widen(b, emit.load_part(b, w, weights, left)) for w in (w0, w1, w2, w3)]
            xs = [emit.load_part(b, _at(b, x, _times(b, x_stride, t)), inputs, left) for t in range(tokens)]
            return products(b, acc, ws, xs)

        def finish(b: Any, acc: Any, c: Any, stride: Any, first: Any) -> None:
            acc = split(b, acc)
            for t in range(tokens):
                sums = emit.tree_sum_rows(b, acc[t * self.ROWS : (t + 1) * self.ROWS])
                at = _at(b, c, _times(b, stride, t))
                added = b.fadd(load_at(b, at, sums.type), sums)
                store_at(b, b.select(b.icmp_signed("!=", first, ir.Constant(I64, 0)), sums, added), at)

        self.zero = make(tile, [], lambda b: join(b, [emit.splat_constant(_FLOATS, 0.0)] * n))
        self.step = make(tile, [tile, *[address] * 6], step)
        """step(acc, w0, w1, w2, w3, x, x_stride): the next 16 (bf16: 32) columns"""
        self.step_part = make(tile, [tile, *[address] * 6, types.intp], step_part)
        """the same for the last `left` columns of a row, not reading past them"""
        self.finish = make(void, [tile, address, address, types.int64], finish)
        """finish(acc, c, stride, first): c[token][row] = tree sums, added to what is there unless first"""
