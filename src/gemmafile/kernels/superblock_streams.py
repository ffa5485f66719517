"""The walk of `streams.py` over super-blocks: four rows side by side, straight from the file's bytes, lanes along K.

A format unpacks its weights in whatever order takes the fewest instructions: 64 at a time, in pieces of 16 that need
not be neighbours (`Stream.order`); the activations are taken in the same order. What is small, sub-scales and minima,
is read for the four rows at once, 16 bytes of each side by side.

The exact integers I and M and the float steps are the law's (docs/numerics.md), in any order of the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gemmafile.kernels.packing import SUPER_BYTES, SUPER_D, SUPER_MINUS_SUMS, SUPER_SUMS_16, SUPER_SUMS_32
from gemmafile.kernels.streams import AHEAD_BYTES

NATURAL_ORDER = tuple(range(16))
MOST_SUM_16 = 16 * 127
"""Of 16 activations."""


@dataclass(frozen=True)
class Stream:
    """What the walk must know of a format. The functions take an IR builder and addresses, and return LLVM values.

    bytes         of a super-block
    chunks(b, p)  four <64 x i8>, unsigned numbers, the offset still in them: lanes 16 i and on of chunk j are the
                  16 weights of piece order[4 j + i] (piece k: weights 16 k ... 16 k + 15)
    facts(b, at)  of the super-blocks at four addresses
    offset        weights are the numbers of the chunks minus this
    largest       of these numbers
    sub_scales    8 or 16
    """

    bytes: int
    chunks: Callable[[Any, Any], list[Any]]
    facts: Callable[[Any, Sequence[Any]], Facts]
    sub_scales: int
    order: tuple[int, ...] = NATURAL_ORDER
    offset: int = 0
    largest: int = 255

    def sub_block(self, piece: int) -> int:
        return piece * self.sub_scales // 16


@dataclass(frozen=True)
class Facts:
    """Of four rows: `scales` are their sub-scales.

    d, min_scale  <4 x float> · minima  <32 x i16> holding the sub-minima, one row behind the other: one vector for 8
    a row, two for 16
    """

    scales: SubScales | RowScales
    d: Any
    min_scale: Any = None
    minima: Sequence[Any] = ()


@dataclass(frozen=True)
class SubScales:
    """A byte each, signed or not: those of row r from byte 16 r + `first` of <64 x i8> on."""

    bytes: Any
    first: int = 0
    signed: bool = False

    def words(self, b: Any, row: int, places: Sequence[int]) -> Any:
        """<n x i16>: the row's sub-scales of these numbers."""
        return self._wide(b, row, places, 16)

    def ints(self, b: Any, row: int, places: Sequence[int]) -> Any:
        """<n x i32>"""
        return self._wide(b, row, places, 32)

    def _wide(self, b: Any, row: int, places: Sequence[int], bits: int) -> Any:
        """Each byte is put at the low end of its lane among zeros; a signed one at the high end, and shifted down."""
        import llvmlite.ir as ir

        from gemmafile.kernels import emit

        zero, lanes = emit.splat_constant(self.bytes.type, 0), []
        for place in places:
            one, rest = 16 * row + self.first + place, [64] * (bits // 8 - 1)
            lanes += [*rest, one] if self.signed else [one, *rest]
        t = ir.VectorType(ir.IntType(bits), len(places))
        wide = b.bitcast(emit.shuffle(b, self.bytes, zero, lanes), t)
        return b.ashr(wide, emit.splat_constant(t, bits - 8)) if self.signed else wide


@dataclass(frozen=True)
class RowScales:
    """The same of four rows kept apart: signed bytes, <n x i8> each. For sub-scales that lie ready in the file."""

    rows: Sequence[Any]

    def words(self, b: Any, row: int, places: Sequence[int]) -> Any:
        """<n x i16>"""
        return self._wide(b, row, places, 16)

    def ints(self, b: Any, row: int, places: Sequence[int]) -> Any:
        """<n x i32>"""
        return self._wide(b, row, places, 32)

    def _wide(self, b: Any, row: int, places: Sequence[int], bits: int) -> Any:
        import llvmlite.ir as ir

        from gemmafile.kernels import emit

        v = b.sext(self.rows[row], ir.VectorType(ir.IntType(bits), self.rows[row].type.count))
        return emit.shuffle(b, v, v, places)


def load_rows(b: Any, at: Sequence[Any], offset: int) -> Any:
    """The 16 bytes at each of four addresses + offset: <64 x i8>."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    parts = [emit.load_at(b, p, ir.VectorType(emit.I8, 16), offset) for p in at]
    low, high = (emit.shuffle(b, x, y, range(32)) for x, y in (parts[:2], parts[2:]))
    return emit.shuffle(b, low, high, range(64))


def halves_of_rows(b: Any, rows: Any, *places: int) -> list[Any]:
    """The float16 at these bytes of each of the four rows that `load_rows` gave: a <4 x float> for each place."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    words = b.bitcast(rows, ir.VectorType(emit.I16, 32))
    lanes = [8 * row + place // 2 for place in places for row in range(4)]
    floats = emit.half_to_f32(b, emit.shuffle(b, words, words, lanes))
    return [emit.shuffle(b, floats, floats, range(4 * i, 4 * i + 4)) for i in range(len(places))]


def shifted(b: Any, v: Any, by: Sequence[int]) -> Any:
    """Bytes as words, shifted right by the numbers, one for each equal part of them; negative ones shift left."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    if not any(by):
        return v
    t = ir.VectorType(emit.I16, v.type.count // 2)
    numbers = emit.constant(t, [abs(n) for n in by for _ in range(t.count // len(by))])
    words = b.bitcast(v, t)
    return b.bitcast(b.shl(words, numbers) if min(by) < 0 else b.lshr(words, numbers), v.type)


def masked(b: Any, v: Any, mask: int) -> Any:
    """Every byte & mask."""
    from gemmafile.kernels import emit

    return b.and_(v, emit.splat_constant(v.type, mask))


def make_walk(f: Stream, n_tokens: int) -> Any:
    """A walk of `streams.py`. Weights are unpacked once for the n tokens."""
    from numba.core import types

    from gemmafile.kernels import emit, simd, tiles

    bytes_, ahead_bytes, four = f.bytes, AHEAD_BYTES, emit.vec("f32", 4)
    floats = types.UniTuple(four, n_tokens)
    prefetch_block = simd.prefetcher(f.bytes, level=1)
    add_block = emit.make(floats, [floats, *[emit.address] * 5], _add_block_code(f))
    zeros = emit.make(floats, [], lambda b: tiles.join(b, [emit.splat_constant(four.llvm, 0.0)] * n_tokens))
    store = emit.make(emit.void, [floats, *[emit.address] * 5], tiles.store_lanes)

    @simd.device
    def walk(p0, p1, p2, p3, o1, o2, o3, n_blocks, near, leap, a, stride, out, out_stride):
        acc = zeros()
        for block in range(n_blocks):
            ahead = ahead_bytes if block < near else ahead_bytes + leap
            prefetch_block(p0 + ahead)
            prefetch_block(p1 + ahead)
            prefetch_block(p2 + ahead)
            prefetch_block(p3 + ahead)
            acc = add_block(acc, p0, p1, p2, p3, a)
            p0 += bytes_
            p1 += bytes_
            p2 += bytes_
            p3 += bytes_
            a += stride
        store(acc, out, o1, o2, o3, out_stride)

    return walk


def _add_block_code(f: Stream) -> Callable[..., Any]:
    """add_block(acc, p of four rows, a): the law's float steps for a super-block of four rows."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit, tiles

    four, ints = ir.VectorType(emit.F32, 4), ir.VectorType(emit.I32, 16)
    row_sum = _make_words_sum(f) if 4 * 128 * f.largest < 1 << 15 else _make_ints_sum(f)

    def sum_minima(b: Any, minima: Sequence[Any], a: Any, at: int) -> Any:
        """M of the four rows."""
        n = 8 * len(minima)
        sums = emit.load_at(b, a, ir.VectorType(emit.I16, n), at + (SUPER_SUMS_16 if n == 16 else SUPER_SUMS_32))
        beside = emit.shuffle(b, sums, sums, [i % n for i in range(32)])
        lanes = [emit.dot_words(b, emit.splat_constant(ints, 0), v, beside) for v in minima]
        if n == 16:  # eight lanes a row: fold them to four
            parts = [[i // 4 * 8 + 4 * h + i % 4 for i in range(16)] for h in range(2)]
            lanes = [b.add(*(emit.shuffle(b, lanes[0], lanes[1], part) for part in parts))]
        return emit.sum_fours(b, lanes[0])

    def code(b: Any, acc: Any, *arguments: Any) -> Any:
        acc, at, a = tiles.split(b, acc), arguments[:4], arguments[4]
        facts = f.facts(b, at)
        chunks = [f.chunks(b, p) for p in at]
        for token in range(len(acc)):
            here = token * SUPER_BYTES
            d = emit.splat(b, emit.load_at(b, a, emit.F32, here + SUPER_D), 4)
            total = emit.sum_rows(b, [row_sum(b, chunks[row], facts.scales, row, a, here) for row in range(4)])
            acc[token] = emit.fma_f32(b, b.sitofp(total, four), b.fmul(facts.d, d), acc[token])
            if facts.minima:
                least, by = sum_minima(b, facts.minima, a, here), b.fneg(b.fmul(facts.min_scale, d))
                acc[token] = emit.fma_f32(b, b.sitofp(least, four), by, acc[token])
        return tiles.join(b, acc)

    return code


def _dot(f: Stream, b: Any, acc: Any, chunks: Sequence[Any], j: int, a: Any, at: int) -> Any:
    """acc + chunk j times its activations: lanes 4 i and on are of piece order[4 j + i]."""
    from gemmafile.kernels import emit

    activations = _load_pieces(b, a, at, f.order[4 * j : 4 * j + 4])
    return emit.dot_bytes(b, acc, chunks[j], activations, below_128=f.largest < 128)


def _load_pieces(b: Any, a: Any, at: int, pieces: Sequence[int]) -> Any:
    """The 16 activations of each of four pieces, in as few loads as their neighbourhood allows."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    def load(first: int, n: int) -> Any:
        return emit.load_at(b, a, ir.VectorType(emit.I8, 16 * n), at + 16 * first)

    def run(pieces: Sequence[int]) -> bool:
        return list(pieces) == list(range(pieces[0], pieces[0] + len(pieces)))

    if run(pieces):
        return load(pieces[0], 4)
    if run(pieces[:2]) and run(pieces[2:]):
        return emit.shuffle(b, load(pieces[0], 2), load(pieces[2], 2), range(64))
    # All within 128 neighbours: two loads, and their parts put in order.
    first = min(pieces) // 4 * 4
    lanes = [16 * (piece - first) + i for piece in pieces for i in range(16)]
    return emit.shuffle(b, load(first, 4), load(first + 4, 4), lanes)


def _make_words_sum(f: Stream) -> Callable[..., Any]:
    """row_sum(b, chunks, scales, row, a, at): 16 lanes whose sum is I, where four products fit in 16 bits: a
    multiplication by words then takes two chunks at a time."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    ints, words = ir.VectorType(emit.I32, 16), ir.VectorType(emit.I16, 16)
    zero = emit.splat_constant(ints, 0)
    # Word i of a pair of chunks that were packed: four lanes of the one, four of the other, and so on.
    places = [[f.sub_block(f.order[4 * (j + i // 4 % 2) + i // 8]) for i in range(32)] for j in (0, 2)]
    of_16 = [f.sub_block(piece) for piece in range(16)]

    def start(b: Any, scales: SubScales | RowScales, row: int, a: Any, at: int) -> Any:
        """Minus the offset's share."""
        if not f.offset:
            return zero
        if f.offset * MOST_SUM_16 < 1 << 15:
            minus = emit.splat_constant(words, -f.offset)
            sums = b.mul(emit.load_at(b, a, words, at + SUPER_SUMS_16), minus)
            none = emit.splat_constant(ir.VectorType(emit.I32, 8), 0)
            return emit.shuffle(b, emit.dot_words(b, none, scales.words(b, row, of_16), sums), none, range(16))
        sums = b.mul(emit.load_at(b, a, ints, at + SUPER_MINUS_SUMS), emit.splat_constant(ints, f.offset))
        return b.mul(sums, scales.ints(b, row, of_16))

    def row_sum(b: Any, chunks: Sequence[Any], scales: SubScales | RowScales, row: int, a: Any, at: int) -> Any:
        total = start(b, scales, row, a, at)
        for j in (0, 2):
            x, y = (_dot(f, b, zero, chunks, i, a, at) for i in (j, j + 1))
            total = emit.add_scaled_words(b, total, x, y, scales.words(b, row, places[j // 2]))
        return total

    return row_sum


def _make_ints_sum(f: Stream) -> Callable[..., Any]:
    """The same for larger numbers. Chunks whose lanes are of the same sub-blocks are summed before they are scaled."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    ints = ir.VectorType(emit.I32, 16)
    zero = emit.splat_constant(ints, 0)
    groups: dict[tuple[int, ...], list[int]] = {}
    for j in range(4):
        groups.setdefault(tuple(f.sub_block(f.order[4 * j + lane // 4]) for lane in range(16)), []).append(j)

    def row_sum(b: Any, chunks: Sequence[Any], scales: SubScales | RowScales, row: int, a: Any, at: int) -> Any:
        minus_sums = emit.load_at(b, a, ints, at + SUPER_MINUS_SUMS)
        parts = []
        for places, members in groups.items():
            # Of every four lanes the first ones begin with the offset's share, one for each chunk.
            own = [[16] * (4 - len(members)) for _ in range(4)]
            lanes = [
                lane for i in range(4) for lane in (*(f.order[4 * j + i] for j in members), *own[i])
            ]  # fmt: skip
            acc = emit.shuffle(b, minus_sums, zero, lanes)
            acc = b.mul(acc, emit.splat_constant(ints, f.offset)) if f.offset else zero
            for j in members:
                acc = _dot(f, b, acc, chunks, j, a, at)
            parts.append(b.mul(acc, scales.ints(b, row, places)))
        while len(parts) > 1:
            parts = [b.add(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return row_sum
