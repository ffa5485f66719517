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
    from gemmafile.kernels.superblock_streams import Stream
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

    return build_kernels(
        SuperBlock(BYTES, 0, chunk, scales, sub_scales=8, offset=CODEBOOK_OFFSET),
        Stream(BYTES, _stream_chunks, _stream_facts, 8, _STREAM_ORDER, offset=CODEBOOK_OFFSET),
    )


_STREAM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
"""Of the pieces of 16 weights: the low halves of 64 bytes, then their high halves, of the same sub-blocks."""


def _stream_chunks(b: Any, p: Any) -> list[Any]:
    """`Stream.chunks`"""
    from gemmafile.kernels import emit
    from gemmafile.kernels.q4_k import nibble_chunks

    codebook = (CODEBOOK + CODEBOOK_OFFSET).tolist()
    return [emit.look_up(b, codebook, q) for q in nibble_chunks(b, p, 8)]


def _stream_facts(b: Any, at: Any) -> Any:
    """`Stream.facts`: of bytes 0 to 15 of each row, 8 sub-scales a row."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import Facts, SubScales, halves_of_rows, load_rows

    rows = load_rows(b, at, 0)
    words = ir.VectorType(emit.I16, 32)

    def spread(*places: int) -> Any:
        """These bytes of every row, each of them as often as makes 16."""
        lanes = [16 * row + place for row in range(4) for place in places for _ in range(16 // len(places))]
        return b.bitcast(emit.shuffle(b, rows, rows, lanes), words)

    def part(v: Any, by: list[int], mask: int) -> Any:
        """Words shifted right by one of the numbers each, in turn (left, where it is negative), and masked."""
        right = [max(0, by[i % len(by)]) for i in range(32)]
        left = [max(0, -by[i % len(by)]) for i in range(32)]
        moved = b.shl(b.lshr(v, emit.constant(words, right)), emit.constant(words, left))
        return b.and_(moved, emit.splat_constant(words, mask))

    # Of a word of two copies of a byte the one takes sub-scale 2 j, the other 2 j + 1. Bytes 8 to 15 are not used.
    low = spread(4, 5, 6, 7, 4, 5, 6, 7)
    low = b.or_(part(low, [0], 0x000F), part(low, [4], 0x0F00))
    high = spread(2, 3, 2, 3)
    high = b.or_(part(high, [-4, 0], 0x0030), part(high, [-2, 2], 0x3000))
    scales = b.sub(b.bitcast(b.or_(low, high), rows.type), emit.splat_constant(rows.type, 32))
    (d,) = halves_of_rows(b, rows, 0)
    return Facts(SubScales(scales, signed=True), d)


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
