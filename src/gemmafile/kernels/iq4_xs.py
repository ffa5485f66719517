"""IQ4_XS: 256 weights in 136 bytes, 8 sub-blocks of 32
    byte 0-1    scale    float16
    byte 2-3    high     a uint16: bits 2j and 2j + 1 are the top bits of s[j]
    byte 4-7    low      a uint32: bits 4j ... 4j + 3 are the low bits of s[j]
    byte 8-135  index    4 bits each     weight[i] = scale * (s[i // 32] - 32) * CODEBOOK[index[i]]
                byte 8 + 16j + i holds index[32j + i] in its low half and index[32j + 16 + i] in its high half

The codebook is IQ4_NL's. Activations are int8 in blocks of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks
from gemmafile.kernels.iq4_nl import CODEBOOK, CODEBOOK_OFFSET

BLOCK, BYTES = 256, 136
ACTIVATIONS = 256

_LOW_SHIFTS, _HIGH_SHIFTS = np.arange(0, 32, 4, dtype=np.uint32), np.arange(0, 16, 2, dtype=np.uint16)


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 136] -> float32[..., n * 256]"""
    blocks = split_blocks(data, BYTES)
    scale = read_half(blocks, 0)[..., None] * _read_sub_scales(blocks)
    return (scale[..., None] * _read_weights(blocks)).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 136] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    weights = _read_sub_scales(blocks).astype(np.int16)[..., None] * _read_weights(blocks)
    return Integers(weights.reshape(*blocks.shape[:-1], BLOCK), read_half(blocks, 0))


def _read_sub_scales(blocks: np.ndarray) -> np.ndarray:
    """s - 32 int8[..., 8] of each block."""
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2") >> _HIGH_SHIFTS & 3
    low = np.ascontiguousarray(blocks[..., 4:8]).view("<u4") >> _LOW_SHIFTS & 15
    return (low | high << 4).astype(np.int8) - np.int8(32)


def _read_weights(blocks: np.ndarray) -> np.ndarray:
    """int16[..., 8, 32] of each block."""
    return CODEBOOK[read_nibbles(blocks[..., 8:].reshape(*blocks.shape[:-1], 8, 16))]


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 256]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 256 * 136]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`."""
    from numba.core import types

    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.superblocks import SuperBlock, build_kernels, shift_parts

    load_32, splat, as_words, as_bytes = simd.load_u8x32, simd.splat_u8x64, simd.u8_as_u16x32, simd.u16_as_u8x64
    # Every 16 bytes twice: their low halves, then their high halves.
    twice = simd.shuffler("u8", 32, [16 * (i // 32) + i % 16 for i in range(64)])
    second_by_4 = emit.make(emit.vec("u16", 32), [emit.vec("u16", 32)], shift_parts(0, 4, 0, 4))
    look_up = simd.table((CODEBOOK + CODEBOOK_OFFSET).tolist())
    scales = emit.make(emit.vec("i32", 16), [emit.address], _sub_scales_code)

    @simd.device
    def chunk(p, j):
        q = load_32(p + 8 + 32 * j)
        return look_up(as_bytes(second_by_4(as_words(twice(q, q)))) & splat(types.uint8(15)))

    return build_kernels(SuperBlock(BYTES, 0, chunk, scales, sub_scales=8, offset=CODEBOOK_OFFSET))


def _sub_scales_code(b: Any, p: Any) -> Any:
    """i32x16: the 8 sub-scales of the super-block at p, then numbers that nobody reads."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    t = ir.VectorType(emit.I32, 16)

    def spread(value: Any, bits: int) -> Any:
        """Lane j: `bits` bits of value from bit j * bits on."""
        shifts = emit.constant(t, [bits * (j % 8) for j in range(16)])
        return b.and_(b.lshr(emit.splat(b, value, 16), shifts), emit.splat_constant(t, (1 << bits) - 1))

    high = spread(b.zext(emit.load_at(b, p, emit.I16, 2), emit.I32), 2)
    low = spread(emit.load_at(b, p, emit.I32, 4), 4)
    return b.sub(b.or_(low, b.shl(high, emit.splat_constant(t, 4))), emit.splat_constant(t, 32))
