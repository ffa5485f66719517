"""Q2_K: 256 weights in 84 bytes, 16 sub-blocks of 16
    byte 0-15   sub-scales s in the low halves, sub-minima m in the high halves
    byte 16-79  q          2 bits each   weight[i] = scale * s[i // 16] * q[i] - min_scale * m[i // 16]
                q[128h + 32k + i], h = 0, 1, k = 0 ... 3, i = 0 ... 31, is bits 2k and 2k + 1 of byte 16 + 32h + i
    byte 80-81  scale      float16
    byte 82-83  min_scale  float16

Activations are int8 in blocks of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, split_blocks

BLOCK, BYTES = 256, 84
ACTIVATIONS = 256

_SHIFTS = np.array([[0], [2], [4], [6]], np.uint8)


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 84] -> float32[..., n * 256]"""
    blocks = split_blocks(data, BYTES)
    scales, minima = _read_sub_scales(blocks)
    scale = read_half(blocks, 80)[..., None] * scales.astype(np.float32)
    minimum = read_half(blocks, 82)[..., None] * minima.astype(np.float32)
    weights = read_two_bits(blocks[..., 16:80])
    return (scale[..., None] * weights - minimum[..., None]).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 84] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    scales, minima = _read_sub_scales(blocks)
    weights = scales.astype(np.int16)[..., None] * read_two_bits(blocks[..., 16:80])
    return Integers(weights.reshape(*blocks.shape[:-1], BLOCK), read_half(blocks, 80), minima, read_half(blocks, 82))


def read_two_bits(data: np.ndarray) -> np.ndarray:
    """uint8[..., 64] -> uint8[..., 16, 16]: of 32 bytes bits 0 and 1, then 2 and 3, ...; then of the other 32."""
    shape = data.shape[:-1]
    return (data.reshape(*shape, 2, 1, 32) >> _SHIFTS & 3).reshape(*shape, 16, 16)


def _read_sub_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s, m uint8[..., 16] of each block."""
    return blocks[..., :16] & 15, blocks[..., :16] >> 4


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 256]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 256 * 84]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`. s * q is at most 45: the kernels take it for the weight, without sub-scales."""
    from numba.core import types

    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.superblock_streams import Stream
    from gemmafile.kernels.superblocks import SuperBlock, build_kernels, sub_words

    load_16, splat_16, as_bytes = simd.load_u8x16, simd.splatter("u8", 16), simd.u16_as_u8x64
    two_bits, scale_words = two_bit_reader(16), sub_words()
    minima = emit.make(emit.vec("i32", 16), [emit.vec("u8", 16)], _minima_code)

    @simd.device
    def chunk(p, j):
        s = load_16(p) & splat_16(types.uint8(15))
        return as_bytes(two_bits(p, j) * scale_words(j, s))  # two bytes times one s: neither product passes 255

    @simd.device
    def sub_minima(p):
        return minima(load_16(p))

    return build_kernels(
        SuperBlock(BYTES, 80, chunk, sub_minima, min_scale=82, sub_minima=16, largest=45),
        Stream(BYTES, _stream_chunks, _stream_facts, 16, STREAM_ORDER, largest=3),
    )


STREAM_ORDER = tuple(8 * h + 2 * k + i for k in range(4) for h in range(2) for i in range(2))
"""Of the pieces of 16 weights: bits 0 and 1 of all 64 bytes, then bits 2 and 3, and so on."""


def _stream_chunks(b: Any, p: Any) -> list[Any]:
    """`Stream.chunks`"""
    return two_bit_chunks(b, p, 16)


def two_bit_chunks(b: Any, p: Any, offset: int) -> list[Any]:
    """Of the 64 bytes at p + offset bits 0 and 1, then 2 and 3, and so on."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import masked, shifted

    q = emit.load_at(b, p, ir.VectorType(emit.I8, 64), offset)
    return [masked(b, shifted(b, q, [2 * k]), 3) for k in range(4)]


def _stream_facts(b: Any, at: Any) -> Any:
    """`Stream.facts`"""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import Facts, SubScales, load_rows, masked, shifted

    both = load_rows(b, at, 0)
    wide = b.zext(masked(b, shifted(b, both, [4]), 15), ir.VectorType(emit.I16, 64))
    d, min_scale = emit.load_half_pairs(b, at, 80)
    minima = [emit.half(b, wide, h) for h in range(2)]
    return Facts(SubScales(masked(b, both, 15)), d, min_scale, minima)


def two_bit_reader(offset: int) -> Any:
    """two_bits(p, j): u16x32, the weights 64 j ... 64 j + 63 of the 64 bytes at p + offset."""
    from numba.core import types

    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.superblocks import shift_parts

    load_32, join, as_words, splat = simd.load_u8x32, simd.join_u8x32, simd.u8_as_u16x32, simd.splatter("u16", 32)
    second_by_2 = emit.make(emit.vec("u16", 32), [emit.vec("u16", 32)], shift_parts(0, 2))

    @simd.device
    def two_bits(p, j):
        q = load_32(p + offset + 32 * (j >> 1))
        return (second_by_2(as_words(join(q, q))) >> (4 * (j & 1))) & splat(types.uint16(0x0303))

    return two_bits


def _minima_code(b: Any, both: Any) -> Any:
    """The high halves of 16 bytes as 16 int16 in the first 8 lanes of an i32x16."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    high = b.lshr(both, emit.splat_constant(both.type, 4))
    pairs = b.bitcast(b.zext(high, ir.VectorType(emit.I16, 16)), ir.VectorType(emit.I32, 8))
    return emit.shuffle(b, pairs, emit.splat_constant(pairs.type, 0), range(16))
