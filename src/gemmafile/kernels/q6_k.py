"""Q6_K: 256 weights in 210 bytes, 16 sub-blocks of 16
    byte 0-127    low     4 bits each
    byte 128-191  high    2 bits each
    byte 192-207  s       int8[16], sub-scales
    byte 208-209  scale   float16         weight[i] = scale * s[i // 16] * (q[i] - 32)
    q[128h + 32k + i], h = 0, 1, k = 0 ... 3, i = 0 ... 31, has
                  low bits: byte 64h + 32 * (k % 2) + i, the low half for k < 2, else the high half
                  high bits: bits 2k and 2k + 1 of byte 128 + 32h + i

Activations are int8 in blocks of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks

BLOCK, BYTES = 256, 210
ACTIVATIONS = 256

_HIGH_SHIFTS = np.array([[0], [2], [4], [6]], np.uint8)


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 210] -> float32[..., n * 256]"""
    blocks = split_blocks(data, BYTES)
    scale = read_half(blocks, 208)[..., None] * _read_sub_scales(blocks)
    return (scale[..., None] * _read_weights(blocks)).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 210] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    weights = _read_sub_scales(blocks).astype(np.int16)[..., None] * _read_weights(blocks)
    return Integers(weights.reshape(*blocks.shape[:-1], BLOCK), read_half(blocks, 208))


def _read_sub_scales(blocks: np.ndarray) -> np.ndarray:
    """s int8[..., 16] of each block."""
    return blocks[..., 192:208].view(np.int8)


def _read_weights(blocks: np.ndarray) -> np.ndarray:
    """q - 32 int8[..., 16, 16] of each block."""
    shape = blocks.shape[:-1]
    low = read_nibbles(blocks[..., :128].reshape(*shape, 2, 64)).reshape(*shape, 2, 4, 32)
    high = blocks[..., 128:192].reshape(*shape, 2, 1, 32) >> _HIGH_SHIFTS & 3
    return ((low | high << 4).astype(np.int8) - np.int8(32)).reshape(*shape, 16, 16)


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 256]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 256 * 210]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`."""
    from numba.core import types

    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.superblock_streams import Stream
    from gemmafile.kernels.superblocks import SuperBlock, build_kernels, shift_parts

    load_64, load_32, join, splat = simd.load_u8x64, simd.load_u8x32, simd.join_u8x32, simd.splat_u8x64
    as_words, as_bytes = simd.u8_as_u16x32, simd.u16_as_u8x64
    load_scales, widen = simd.load_i8x16, simd.converter("i8", "i32", 16)
    # The two 32-byte copies of the high bits are shifted by different amounts, to bits 4 and 5.
    words = emit.vec("u16", 32)
    left_by_4_and_2 = emit.make(words, [words], shift_parts(-4, -2))
    right_by_0_and_2 = emit.make(words, [words], shift_parts(0, 2))

    @simd.device
    def chunk(p, j):
        low, high = load_64(p + 64 * (j >> 1)), load_32(p + 128 + 32 * (j >> 1))
        two = as_words(join(high, high))
        if j & 1:
            low, two = as_bytes(as_words(low) >> 4), right_by_0_and_2(two)
        else:
            two = left_by_4_and_2(two)
        return (low & splat(types.uint8(15))) | (as_bytes(two) & splat(types.uint8(0x30)))

    @simd.device
    def scales(p):
        return widen(load_scales(p + 192))

    return build_kernels(
        SuperBlock(BYTES, 208, chunk, scales, sub_scales=16, offset=32, largest=63),
        Stream(BYTES, _stream_chunks, _stream_facts, 16, offset=32, largest=63),
    )


def _stream_chunks(b: Any, p: Any) -> list[Any]:
    """`Stream.chunks`"""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import masked, shifted

    chunks = []
    for h in range(2):
        low = emit.load_at(b, p, ir.VectorType(emit.I8, 64), 64 * h)
        high = emit.load_at(b, p, ir.VectorType(emit.I8, 32), 128 + 32 * h)
        two = emit.shuffle(b, high, high, range(64))
        for by, to_4 in ((0, (-4, -2)), (4, (0, 2))):
            bits = masked(b, shifted(b, two, to_4), 0x30)
            chunks.append(b.or_(masked(b, shifted(b, low, [by]), 15), bits))
    return chunks


def _stream_facts(b: Any, at: Any) -> Any:
    """`Stream.facts`"""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import Facts, RowScales

    scales = [emit.load_at(b, p, ir.VectorType(emit.I8, 16), 192) for p in at]
    return Facts(RowScales(scales), emit.load_halves(b, at, 208))
