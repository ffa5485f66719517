"""Q3_K: 256 weights in 110 bytes, 16 sub-blocks of 16
    byte 0-31     high    1 bit each       weight[i] = scale * (s[i // 16] - 32) * (q[i] - 4)
                  bit j of byte i is bit 2 of q[32j + i]
    byte 32-95    low     2 bits each
                  q[128h + 32k + i], h = 0, 1, k = 0 ... 3, i = 0 ... 31, has bits 2k and 2k + 1 of byte 32 + 32h + i
    byte 96-107   sub-scales, 6 bits each; s[j] has
                  low bits: byte 96 + j % 8, the low half for j < 8, else the high half
                  high bits: bits 2 * (j // 4) and above of byte 104 + j % 4
    byte 108-109  scale   float16

Activations are int8 in blocks of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks
from gemmafile.kernels.q2_k import STREAM_ORDER, read_two_bits, two_bit_chunks, two_bit_reader

BLOCK, BYTES = 256, 110
ACTIVATIONS = 256

_BITS = np.arange(8, dtype=np.uint8)[:, None]
_HIGH_SHIFTS = np.array([[0], [2], [4], [6]], np.uint8)


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 110] -> float32[..., n * 256]"""
    blocks = split_blocks(data, BYTES)
    scale = read_half(blocks, 108)[..., None] * _read_sub_scales(blocks)
    return (scale[..., None] * _read_weights(blocks)).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 110] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    weights = _read_sub_scales(blocks).astype(np.int16)[..., None] * _read_weights(blocks)
    return Integers(weights.reshape(*blocks.shape[:-1], BLOCK), read_half(blocks, 108))


def _read_sub_scales(blocks: np.ndarray) -> np.ndarray:
    """s - 32 int8[..., 16] of each block."""
    high = (blocks[..., None, 104:108] >> _HIGH_SHIFTS & 3).reshape(*blocks.shape[:-1], 16)
    return (read_nibbles(blocks[..., 96:104]) | high << 4).astype(np.int8) - np.int8(32)


def _read_weights(blocks: np.ndarray) -> np.ndarray:
    """q - 4 int8[..., 16, 16] of each block."""
    high = (blocks[..., None, :32] >> _BITS & 1).reshape(*blocks.shape[:-1], 16, 16)
    return (read_two_bits(blocks[..., 32:96]) | high << 2).astype(np.int8) - np.int8(4)


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 256]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 256 * 110]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`. (s - 32) * (q - 4) is -124 ... 128: with 127 added it is a byte, which the
    kernels take for the weight, without sub-scales."""
    from numba.core import types

    from gemmafile.kernels import simd
    from gemmafile.kernels.superblock_streams import Stream
    from gemmafile.kernels.superblocks import SuperBlock, build_kernels, by_chunk, sub_words

    load_32, join, as_bytes = simd.load_u8x32, simd.join_u8x32, simd.u16_as_u8x64
    splat_16 = simd.splatter("u8", 16)
    two_bits, scale_words = two_bit_reader(32), sub_words()
    sub_bytes = by_chunk(lambda j: simd.shuffler("u8", 16, [4 * j + i // 16 for i in range(64)]))
    where_high = by_chunk(_make_where_high)
    read_scales, third_bit = _make_scale_reader(), by_chunk(_make_third_bit)
    widen, splat_ints = simd.converter("u8", "i32", 16), simd.splat_i32x16

    @simd.device
    def chunk(p, j):
        s, q, high = read_scales(p), two_bits(p, j), load_32(p)
        # With q = low + 4 * high: (s - 32) * (q - 4) + 127 = s * low - 32 * low + (127 if high else 255 - 4 * s).
        rest = splat_16(types.uint8(255)) - (s << 2)
        product = as_bytes(q * scale_words(j, s)) - as_bytes(q << 5)
        return product + where_high(j, join(high, high), sub_bytes(j, rest, rest))

    @simd.device
    def chunk_apart(p, j):
        high = load_32(p)
        return third_bit(j, as_bytes(two_bits(p, j)), join(high, high))

    @simd.device
    def scales(p):
        return widen(read_scales(p)) - splat_ints(types.int32(32))

    return build_kernels(
        SuperBlock(BYTES, 108, chunk, None, offset=127),
        Stream(BYTES, _stream_chunks, _stream_facts, 16, STREAM_ORDER, offset=4, largest=7),
        SuperBlock(BYTES, 108, chunk_apart, scales, sub_scales=16, offset=4, largest=7),
    )


def _make_third_bit(j: int) -> Any:
    """with_third(q, bits): 4 more where the high bit of weights 64 j and on is set."""
    from gemmafile.kernels import emit

    bytes_ = emit.vec("u8", 64)

    def code(b: Any, q: Any, bits: Any) -> Any:
        masks = emit.constant(bits.type, [1 << 2 * j + i // 32 for i in range(64)])
        is_set = b.icmp_signed("!=", b.and_(bits, masks), emit.splat_constant(bits.type, 0))
        return b.select(is_set, b.or_(q, emit.splat_constant(q.type, 4)), q)

    return emit.make(bytes_, [bytes_, bytes_], code)


def _stream_chunks(b: Any, p: Any) -> list[Any]:
    """`Stream.chunks`"""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import masked, shifted

    high = emit.load_at(b, p, ir.VectorType(emit.I8, 32))
    # Bit k of the first 32 bytes, bit 4 + k of their copy, is bit 2 of a weight of chunk k.
    high = shifted(b, emit.shuffle(b, high, high, range(64)), [0, 4])
    thirds = [masked(b, shifted(b, high, [by]), 4) for by in (-2, -1, 0, 1)]
    return [b.or_(q, third) for q, third in zip(two_bit_chunks(b, p, 32), thirds, strict=True)]


def _stream_facts(b: Any, at: Any) -> Any:
    """`Stream.facts`: bytes 94 to 109 of each row, in which the sub-scales are bytes 2 to 13 and the scale the last."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit
    from gemmafile.kernels.superblock_streams import Facts, SubScales, halves_of_rows, load_rows, masked

    rows = load_rows(b, at, 94)

    def spread(places: list[int], *by: int) -> Any:
        """Bytes of every row, each part of them shifted right by a number."""
        v = emit.shuffle(b, rows, rows, [16 * row + i for row in range(4) for i in places])
        words = b.bitcast(v, ir.VectorType(emit.I16, 32))
        numbers = [by[i % 8 * len(by) // 8] for i in range(32)]
        return b.bitcast(b.lshr(words, emit.constant(words.type, numbers)), v.type)

    low = masked(b, spread([*range(2, 10)] * 2, 0, 4), 15)
    high = masked(b, spread([*range(10, 14)] * 4, 0, 2, 4, 6), 3)
    words = b.bitcast(high, ir.VectorType(emit.I16, 32))
    high = b.bitcast(b.shl(words, emit.splat_constant(words.type, 4)), rows.type)
    scales = b.sub(b.or_(low, high), emit.splat_constant(rows.type, 32))
    (d,) = halves_of_rows(b, rows, 14)
    return Facts(SubScales(scales, signed=True), d)


def _make_where_high(j: int) -> Any:
    """chosen(bits, other) for weights 64 j and on: 127 where the weight's high bit is set, else the other byte."""
    from gemmafile.kernels import emit

    bytes_ = emit.vec("u8", 64)

    def code(b: Any, bits: Any, other: Any) -> Any:
        masks = emit.constant(bits.type, [1 << 2 * j + i // 32 for i in range(64)])
        is_set = b.icmp_signed("!=", b.and_(bits, masks), emit.splat_constant(bits.type, 0))
        return b.select(is_set, emit.splat_constant(bits.type, 127), other)

    return emit.make(bytes_, [bytes_, bytes_], code)


def _make_scale_reader() -> Any:
    """scales(p): u8x16, s of the super-block at p."""
    from numba.core import types

    from gemmafile.kernels import emit, simd

    u64, load_u64, load_u32 = types.uint64, simd.load_u64, simd.load_u32

    def code(b: Any, first: Any, last: Any) -> Any:
        import llvmlite.ir as ir

        two = ir.Constant(ir.VectorType(emit.I64, 2), ir.Undefined)
        for i, part in enumerate((first, last)):
            two = b.insert_element(two, part, ir.Constant(emit.I32, i))
        return b.bitcast(two, ir.VectorType(emit.I8, 16))

    place = emit.make(emit.vec("u8", 16), [u64, u64], code)

    @simd.device
    def scales(p):
        low, high = load_u64(p + 96), u64(load_u32(p + 104))
        high = high | (high << u64(30))  # byte 4 + i: bits 2 and above of byte i
        return place(
            (low & u64(0x0F0F0F0F0F0F0F0F)) | ((high & u64(0x0303030303030303)) << u64(4)),
            ((low >> u64(4)) & u64(0x0F0F0F0F0F0F0F0F)) | (((high >> u64(4)) & u64(0x0303030303030303)) << u64(4)),
        )

    return scales
