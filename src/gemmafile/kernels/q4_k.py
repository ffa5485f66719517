"""Q4_K: 256 weights in 144 bytes, 8 sub-blocks of 32
    byte 0-1     scale      float16
    byte 2-3     min_scale  float16
    byte 4-15    sub-scales and sub-minima, 6 bits each; s and m of sub-block j:
                 j < 4    s = low 6 bits of byte 4 + j       m = low 6 bits of byte 8 + j
                 j >= 4   s = low half of byte 8 + j, and above it the top 2 bits of byte j
                          m = high half of byte 8 + j, and above it the top 2 bits of byte 4 + j
    byte 16-143  q          4 bits each   weight[i] = scale * s * q[i] - min_scale * m
                 byte 16 + 32g + i holds q[64g + i] in its low half and q[64g + 32 + i] in its high half

Activations are int8 in blocks of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks

BLOCK, BYTES = 256, 144
ACTIVATIONS = 256


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 144] -> float32[..., n * 256]"""
    blocks = split_blocks(data, BYTES)
    scales, minima = read_sub_scales(blocks)
    scale = read_half(blocks, 0)[..., None] * scales.astype(np.float32)
    minimum = read_half(blocks, 2)[..., None] * minima.astype(np.float32)
    return (scale[..., None] * _read_weights(blocks) - minimum[..., None]).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 144] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    scales, minima = read_sub_scales(blocks)
    weights = (scales.astype(np.int16)[..., None] * _read_weights(blocks)).reshape(*blocks.shape[:-1], BLOCK)
    return Integers(weights, read_half(blocks, 0), minima, read_half(blocks, 2))


def read_sub_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s, m uint8[..., 8] of each block."""
    s, m, rest = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    return (
        np.concatenate((s & 63, rest & 15 | s >> 6 << 4), axis=-1),
        np.concatenate((m & 63, rest >> 4 | m >> 6 << 4), axis=-1),
    )


def _read_weights(blocks: np.ndarray) -> np.ndarray:
    """q uint8[..., 8, 32] of each block."""
    pairs = blocks[..., 16:].reshape(*blocks.shape[:-1], 4, 32)
    return read_nibbles(pairs).reshape(*blocks.shape[:-1], 8, 32)


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 256]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 256 * 144]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`."""
    from numba.core import types

    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.superblock_streams import Stream
    from gemmafile.kernels.superblocks import SuperBlock, build_kernels, shift_parts

    load_32, join, splat = simd.load_u8x32, simd.join_u8x32, simd.splat_u8x64
    as_words, as_bytes = simd.u8_as_u16x32, simd.u16_as_u8x64
    second_by_4 = emit.make(emit.vec("u16", 32), [emit.vec("u16", 32)], shift_parts(0, 4))

    @simd.device
    def chunk(p, j):
        q = load_32(p + 16 + 32 * j)
        return as_bytes(second_by_4(as_words(join(q, q)))) & splat(types.uint8(15))

    return build_kernels(
        SuperBlock(BYTES, 0, chunk, sub_scale_reader(4), sub_scales=8, min_scale=2, sub_minima=8, largest=15),
        Stream(BYTES, _stream_chunks, stream_facts, 8, STREAM_ORDER, largest=15),
    )


STREAM_ORDER = (0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)
"""Of the pieces of 16 weights, where 64 bytes' low halves come before their high halves."""


def _stream_chunks(b: Any, p: Any) -> list[Any]:
    """`Stream.chunks`"""
    return nibble_chunks(b, p, 16)


def nibble_chunks(b: Any, p: Any, offset: int) -> list[Any]:
    """The low and the high halves of the first 64 bytes at p + offset, then those of the last."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import masked, shifted

    both = [emit.load_at(b, p, ir.VectorType(emit.I8, 64), offset + 64 * i) for i in range(2)]
    return [masked(b, shifted(b, q, [by]), 15) for q in both for by in (0, 4)]


def stream_facts(b: Any, at: Any) -> Any:
    """`Stream.facts`: bytes 0 to 15 of each row; sub-scales and sub-minima are put together for all rows at once."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import Facts, SubScales, halves_of_rows, load_rows, masked

    rows = load_rows(b, at, 0)
    ints = b.bitcast(rows, ir.VectorType(emit.I32, 16))

    def moved(v: Any, *by: int) -> Any:
        """Integers shifted right, by one number for each of a row's four."""
        return b.lshr(v, emit.constant(v.type, [by[i % 4] for i in range(16)]))

    # Of a row's integers s[0:4] and m[0:4] are 1 and 2, their top bits those of s[4:8] and m[4:8]; 3 has the rest.
    first = masked(b, rows, 63)
    rest = emit.shuffle(b, ints, ints, [4 * row + i for row in range(4) for i in (0, 3, 3, 0)])
    rest = masked(b, b.bitcast(moved(rest, 0, 0, 4, 0), rows.type), 15)
    top = masked(b, b.bitcast(moved(ints, 2, 2, 2, 2), rows.type), 48)
    last = b.or_(rest, top)
    # s[0:4], s[4:8], m[0:4], m[4:8] of each row.
    places = [16 * row + i for row in range(4) for i in (*range(4, 8), *range(68, 72), *range(8, 12), *range(72, 76))]
    both = emit.shuffle(b, first, last, places)
    minima = emit.shuffle(b, both, both, [16 * row + 8 + i for row in range(4) for i in range(8)])
    d, min_scale = halves_of_rows(b, rows, 0, 2)
    return Facts(SubScales(both), d, min_scale, [b.zext(minima, ir.VectorType(emit.I16, 32))])


def sub_scale_reader(offset: int) -> Any:
    """scales(p): the 12 bytes at p + offset as i32x16: 8 sub-scales, 8 sub-minima as pairs of int16, zeros."""
    from numba.core import types

    from gemmafile.kernels import emit, simd

    u64, load_u64, load_u32 = types.uint64, simd.load_u64, simd.load_u32

    def code(b: Any, scales: Any, minima: Any) -> Any:
        import llvmlite.ir as ir

        bytes_ = ir.VectorType(emit.I8, 8)
        wide = b.zext(b.bitcast(scales, bytes_), ir.VectorType(emit.I32, 8))
        pairs = b.bitcast(b.zext(b.bitcast(minima, bytes_), ir.VectorType(emit.I16, 8)), ir.VectorType(emit.I32, 4))
        pairs = emit.shuffle(b, pairs, emit.splat_constant(pairs.type, 0), [0, 1, 2, 3, 4, 4, 4, 4])
        return emit.shuffle(b, wide, pairs, range(16))

    place = emit.make(emit.vec("i32", 16), [u64, u64], code)

    @simd.device
    def scales(p):
        first, last = load_u64(p + offset), u64(load_u32(p + offset + 8))
        low, high = first & u64(0xFFFFFFFF), first >> u64(32)
        upper_scales = (last & u64(0x0F0F0F0F)) | ((low >> u64(2)) & u64(0x30303030))
        upper_minima = ((last >> u64(4)) & u64(0x0F0F0F0F)) | ((high >> u64(2)) & u64(0x30303030))
        return place(
            (low & u64(0x3F3F3F3F)) | (upper_scales << u64(32)), (high & u64(0x3F3F3F3F)) | (upper_minima << u64(32))
        )

    return scales
