"""Q5_K: 256 weights in 176 bytes, 8 sub-blocks of 32
    byte 0-1     scale      float16
    byte 2-3     min_scale  float16
    byte 4-15    sub-scales and sub-minima, 6 bits each, as in Q4_K
    byte 16-47   high       1 bit each    weight[i] = scale * s * q[i] - min_scale * m
                 bit j of byte 16 + i is bit 4 of q[32j + i]
    byte 48-175  low        4 bits each
                 byte 48 + 32g + i holds the low bits of q[64g + i] in its low half, of q[64g + 32 + i] in its high half

Activations are int8 in blocks of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks
from gemmafile.kernels.q4_k import STREAM_ORDER, nibble_chunks, read_sub_scales, stream_facts

BLOCK, BYTES = 256, 176
ACTIVATIONS = 256

_BITS = np.arange(8, dtype=np.uint8)[:, None]


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 176] -> float32[..., n * 256]"""
    blocks = split_blocks(data, BYTES)
    scales, minima = read_sub_scales(blocks)
    scale = read_half(blocks, 0)[..., None] * scales.astype(np.float32)
    minimum = read_half(blocks, 2)[..., None] * minima.astype(np.float32)
    return (scale[..., None] * _read_weights(blocks) - minimum[..., None]).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 176] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    scales, minima = read_sub_scales(blocks)
    weights = (scales.astype(np.int16)[..., None] * _read_weights(blocks)).reshape(*blocks.shape[:-1], BLOCK)
    return Integers(weights, read_half(blocks, 0), minima, read_half(blocks, 2))


def _read_weights(blocks: np.ndarray) -> np.ndarray:
    """q uint8[..., 8, 32] of each block."""
    shape = blocks.shape[:-1]
    low = read_nibbles(blocks[..., 48:].reshape(*shape, 4, 32)).reshape(*shape, 8, 32)
    return low | (blocks[..., None, 16:48] >> _BITS & 1) << 4


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 256]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 256 * 176]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`."""
    from numba.core import types

    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.q4_k import sub_scale_reader
    from gemmafile.kernels.superblock_streams import Stream
    from gemmafile.kernels.superblocks import SuperBlock, build_kernels, shift_parts

    load_32, join, splat = simd.load_u8x32, simd.join_u8x32, simd.splat_u8x64
    as_words, as_bytes = simd.u8_as_u16x32, simd.u16_as_u8x64
    second_by_4 = emit.make(emit.vec("u16", 32), [emit.vec("u16", 32)], shift_parts(0, 4))
    second_by_1 = emit.make(emit.vec("u16", 32), [emit.vec("u16", 32)], shift_parts(0, 1))

    @simd.device
    def chunk(p, j):
        low, high = load_32(p + 48 + 32 * j), load_32(p + 16)
        q = as_bytes(second_by_4(as_words(join(low, low)))) & splat(types.uint8(15))
        fifth = as_bytes((second_by_1(as_words(join(high, high))) >> (2 * j)) << 4)
        return q | (fifth & splat(types.uint8(16)))

    return build_kernels(
        SuperBlock(BYTES, 0, chunk, sub_scale_reader(4), sub_scales=8, min_scale=2, sub_minima=8, largest=31),
        Stream(BYTES, _stream_chunks, stream_facts, 8, STREAM_ORDER, largest=31),
    )


def _stream_chunks(b: Any, p: Any) -> list[Any]:
    """`Stream.chunks`: Q4_K's, and the fifth bits."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import masked, shifted

    high = emit.load_at(b, p, ir.VectorType(emit.I8, 32), 16)
    # Bit 4 m + e of the first 32 bytes, bit 4 m + e + 2 of their copy, is the fifth bit of a weight of chunk 2 m + e.
    high = shifted(b, emit.shuffle(b, high, high, range(64)), [0, 2])
    fifths = [masked(b, shifted(b, high, [by]), 16) for by in (-4, -3, 0, 1)]
    return [b.or_(q, fifth) for q, fifth in zip(nibble_chunks(b, p, 48), fifths, strict=True)]
