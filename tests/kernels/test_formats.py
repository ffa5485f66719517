"""Every format: blocks by hand, blocks by the `gguf` package, activations, products."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from gemmafile.errors import UnsupportedModel
from gemmafile.files.formats import format_by_name
from gemmafile.kernels import blocks, floats, formats_on
from gemmafile.kernels.activations import quantize_int8, round_bf16
from gemmafile.kernels.formats_on import FORMAT_MODULES, check_formats, format_module
from gemmafile.model.weights import LayerWeights, ModelWeights, Weight
from tests.kernels.random_blocks import random_rows

F = np.float32
ALL = list(FORMAT_MODULES)


def half(x: float) -> bytes:
    return np.float16(x).tobytes()


def bytes_of(*parts: bytes | list[int]) -> np.ndarray:
    return np.frombuffer(b"".join(bytes(part) for part in parts), np.uint8)


# --- blocks by hand --------------------------------------------------------------------------------------------------


def test_q8_0_block_by_hand() -> None:
    q = np.arange(-128, 128, 8, dtype=np.int8)
    np.testing.assert_array_equal(format_module("Q8_0").dequantize(bytes_of(half(0.25), q.tobytes())), q * F(0.25))


def test_q4_0_block_by_hand() -> None:
    """The low halves are the first sixteen weights."""
    block = bytes_of(half(2), [i | (15 - i) << 4 for i in range(16)])
    expected = [2 * (i - 8) for i in range(16)] + [2 * (7 - i) for i in range(16)]
    np.testing.assert_array_equal(format_module("Q4_0").dequantize(block), expected)


def test_q4_1_block_by_hand() -> None:
    block = bytes_of(half(0.5), half(-3), [i | (15 - i) << 4 for i in range(16)])
    expected = [0.5 * i - 3 for i in range(16)] + [0.5 * (15 - i) - 3 for i in range(16)]
    np.testing.assert_array_equal(format_module("Q4_1").dequantize(block), expected)


def test_q5_0_block_by_hand() -> None:
    """Bit i of the uint32 is the fifth bit of weight i: here of 0, 17 and 31."""
    block = bytes_of(half(1), [0b1, 0, 0b10, 0b1000_0000], [0x21] * 16)
    expected = np.array([1 - 16] * 16 + [2 - 16] * 16)
    expected[[0, 17, 31]] += 16
    np.testing.assert_array_equal(format_module("Q5_0").dequantize(block), expected)


def test_q4_k_block_by_hand() -> None:
    """Sub-scales 1, 2, 3, 4, 21, 38, 55, 7 and sub-minima 63, 0, 0, 5, 58, 0, 0, 16: six bits in two places."""
    s, m = [1, 2, 3, 4, 21, 38, 55, 7], [63, 0, 0, 5, 58, 0, 0, 16]
    packed = [s[j] | s[j + 4] >> 4 << 6 for j in range(4)] + [m[j] | m[j + 4] >> 4 << 6 for j in range(4)]
    packed += [s[j + 4] & 15 | (m[j + 4] & 15) << 4 for j in range(4)]
    block = bytes_of(half(0.5), half(0.25), packed, [0x93] * 128)
    expected = [0.5 * s[j] * (9 if j % 2 else 3) - 0.25 * m[j] for j in range(8) for _ in range(32)]
    np.testing.assert_array_equal(format_module("Q4_K").dequantize(block), expected)


def test_q6_k_block_by_hand() -> None:
    """q[128h + 32k + i]: all zeros but for one weight in each of the eight groups of 32."""
    low, high, q = np.zeros(128, np.uint8), np.zeros(64, np.uint8), np.zeros(256, int)
    for group, value in enumerate([63, 32, 17, 48, 1, 2, 16, 33]):
        h, k, i = group // 4, group % 4, 3 * group + 2
        low[64 * h + 32 * (k % 2) + i] |= (value & 15) << (4 if k >= 2 else 0)
        high[32 * h + i] |= (value >> 4) << 2 * k
        q[128 * h + 32 * k + i] = value
    s = np.arange(-128, 128, 16, dtype=np.int8)
    block = bytes_of(low.tobytes(), high.tobytes(), s.tobytes(), half(0.125))
    expected = 0.125 * np.repeat(s.astype(int), 16) * (q - 32)
    np.testing.assert_array_equal(format_module("Q6_K").dequantize(block), expected)


def test_q5_1_block_by_hand() -> None:
    """As Q5_0, after a second float16."""
    block = bytes_of(half(0.5), half(-3), [0b1, 0, 0b10, 0b1000_0000], [0x21] * 16)
    expected = np.array([0.5 * 1 - 3] * 16 + [0.5 * 2 - 3] * 16)
    expected[[0, 17, 31]] += 0.5 * 16
    np.testing.assert_array_equal(format_module("Q5_1").dequantize(block), expected)


def test_q5_k_block_by_hand() -> None:
    """Weight 32j + i has its fifth bit in bit j of byte i: here in byte 3 of groups 1 and 6, in byte 31 of group 7."""
    high = np.zeros(32, np.uint8)
    high[3], high[31] = 1 << 1 | 1 << 6, 1 << 7
    block = bytes_of(half(2), half(0.5), [5] * 4 + [7] * 4 + [5 | 7 << 4] * 4, high.tobytes(), [0x93] * 128)
    q = np.array([9 if i // 32 % 2 else 3 for i in range(256)])
    q[[32 + 3, 192 + 3, 224 + 31]] += 16
    np.testing.assert_array_equal(format_module("Q5_K").dequantize(block), 2.0 * 5 * q - 0.5 * 7)


def test_q3_k_block_by_hand() -> None:
    """Sub-scales of six bits in two places; a weight without its high bit is 4 less."""
    s = [0, 1, 2, 3, 17, 33, 63, 32, 48, 16, 15, 31, 47, 62, 4, 5]
    packed = [s[j] & 15 | (s[j + 8] & 15) << 4 for j in range(8)]
    packed += [sum(s[j + 4 * k] >> 4 << 2 * k for k in range(4)) for j in range(4)]
    high = np.zeros(32, np.uint8)
    high[7], high[20] = 1 << 0 | 1 << 5, 1 << 7
    block = bytes_of(high.tobytes(), [0b11_10_01_00] * 64, packed, half(0.25))
    q = np.array([i // 32 % 4 for i in range(256)])
    q[[7, 160 + 7, 224 + 20]] += 4
    expected = 0.25 * (np.repeat(s, 16) - 32) * (q - 4)
    np.testing.assert_array_equal(format_module("Q3_K").dequantize(block), expected)


def test_q2_k_block_by_hand() -> None:
    """A byte of two bits holds weights 32 apart; low halves are sub-scales, high halves sub-minima."""
    sub = [j | (15 - j) << 4 for j in range(16)]
    block = bytes_of(sub, [0b11_10_01_00] * 32 + [0b00_01_10_11] * 32, half(0.5), half(2))
    q = np.repeat([0, 1, 2, 3, 3, 2, 1, 0], 32)
    s = np.repeat(np.arange(16), 16)
    np.testing.assert_array_equal(format_module("Q2_K").dequantize(block), 0.5 * s * q - 2.0 * (15 - s))


CODEBOOK = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


def test_iq4_nl_block_by_hand() -> None:
    block = bytes_of(half(0.5), [i | (15 - i) << 4 for i in range(16)])
    np.testing.assert_array_equal(format_module("IQ4_NL").dequantize(block), np.array(CODEBOOK + CODEBOOK[::-1]) / 2)


def test_iq4_xs_block_by_hand() -> None:
    """Sub-scales of six bits in two places; a sub-block is like a block of IQ4_NL."""
    s = [0, 63, 32, 17, 33, 48, 15, 62]
    high = sum(s[j] >> 4 << 2 * j for j in range(8)).to_bytes(2, "little")
    low = [s[2 * j] & 15 | (s[2 * j + 1] & 15) << 4 for j in range(4)]
    block = bytes_of(half(0.25), high, low, [i | (15 - i) << 4 for i in range(16)] * 8)
    expected = [0.25 * (s[j] - 32) * c for j in range(8) for c in CODEBOOK + CODEBOOK[::-1]]
    np.testing.assert_array_equal(format_module("IQ4_XS").dequantize(block), expected)


def test_floats_by_hand() -> None:
    numbers = [0.0, 1.0, -2.5, 2.0**-14, np.inf]
    for name, bits in (("F32", np.array(numbers, "<f4")), ("F16", np.array(numbers, "<f2"))):
        np.testing.assert_array_equal(format_module(name).dequantize(bits.view(np.uint8)), np.array(numbers, F))
    bits = np.array([0x0000, 0x3F80, 0xC020, 0x3880, 0x7F80], "<u2")
    np.testing.assert_array_equal(format_module("BF16").dequantize(bits.view(np.uint8)), np.array(numbers, F))


@pytest.mark.parametrize("name", ALL)
def test_sizes_are_the_files(name: str) -> None:
    module, fmt = format_module(name), format_by_name(name)
    assert (fmt.weights_per_block, fmt.bytes_per_block) == (module.BLOCK, module.BYTES)


@pytest.mark.parametrize("name", ALL)
def test_leading_axes_and_read_only_rows(name: str) -> None:
    rows = random_rows(name, np.random.default_rng(1), 6, 512)
    rows.flags.writeable = False
    module = format_module(name)
    whole = module.dequantize(rows.reshape(2, 3, -1))
    assert whole.shape == (2, 3, 512)
    assert whole.dtype == F
    np.testing.assert_array_equal(whole[1, 2], module.dequantize(rows[5]))
    assert 0.7 < whole.std() < 1.4


@pytest.mark.oracle
@pytest.mark.parametrize("name", ALL)
def test_dequantize_equals_gguf(name: str) -> None:
    """Any bytes: scales may be infinite, NaN or subnormal."""
    from gguf import GGMLQuantizationType, quants

    module = format_module(name)
    rows = np.random.default_rng(2).integers(0, 256, (1000, 1024 // module.BLOCK * module.BYTES), np.uint8)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected = quants.dequantize(rows, GGMLQuantizationType[name])
        got = module.dequantize(rows)
    np.testing.assert_array_equal(got, expected)


# --- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [32, 256])
def test_int8_activations(block: int) -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((5, 1024)) * 10.0 ** rng.integers(-30, 30, (5, 1))).astype(F)
    q, d = quantize_int8(x, block)
    assert q.shape == x.shape
    assert q.dtype == np.int8
    assert d.shape == (5, 1024 // block)
    by_block, q_by_block = x.reshape(5, -1, block), q.reshape(5, -1, block)
    np.testing.assert_array_equal(d, np.abs(by_block).max(-1) / F(127))
    assert (np.abs(q_by_block).max(-1) == 127).all()
    error = np.abs(by_block - q_by_block * d[..., None].astype(np.float64))
    assert (error <= 0.5001 * d[..., None]).all()


def test_int8_activations_round_half_to_even() -> None:
    x = np.zeros((1, 32), F)
    x[0, :5] = [127, 0.5, 1.5, 2.5, -0.5]
    q, d = quantize_int8(x, 32)
    assert q[0, :5].tolist() == [127, 0, 2, 2, 0]
    assert d.tolist() == [[1.0]]


def test_blocks_without_a_scale() -> None:
    """Zeros, a maximum whose 127 / max is infinite, an infinity, a NaN; the last block is sound."""
    x = np.zeros((1, 160), F)
    x[0, [32, 64, 96, 128]] = [1e-38, np.inf, np.nan, 1]
    q, d = quantize_int8(x, 32)
    np.testing.assert_array_equal(d, np.array([[0, 0, np.nan, np.nan, F(1) / F(127)]], F))
    assert np.flatnonzero(q).tolist() == [128]


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x7F800000, 0x7F800001], np.uint32)
    expected = np.array([0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0x7F80, 0x7FC0], np.uint16)
    np.testing.assert_array_equal(round_bf16(bits.view(F)), expected)


# --- products --------------------------------------------------------------------------------------------------------


def quantised_float64(name: str, x: np.ndarray) -> np.ndarray:
    """What the kernels make of the activations, in float64."""
    module = format_module(name)
    if name == "BF16":
        return format_module("BF16").dequantize(module.quantize_activations(x).view(np.uint8)).astype(np.float64)
    if not module.ACTIVATIONS:
        return x.astype(np.float64)
    q, d = module.quantize_activations(x)
    return (q.reshape(*d.shape, -1) * d[..., None].astype(np.float64)).reshape(x.shape)


@pytest.mark.parametrize("name", ALL)
def test_multiply_equals_float64(name: str) -> None:
    rng = np.random.default_rng(8)
    rows, x = random_rows(name, rng, 37, 2304), rng.standard_normal((5, 2304), F)
    expected = quantised_float64(name, x) @ format_module(name).dequantize(rows).astype(np.float64).T
    np.testing.assert_allclose(format_module(name).multiply(x, rows), expected, rtol=0, atol=1e-6 * np.sqrt(2304) * 20)


def test_bf16_takes_subnormals_as_zero() -> None:
    one, tiny = F(1), F(2.0**-127)
    x = np.zeros((3, 32), F)
    x[:, 0] = [tiny, one, F(2.0**-64)]
    w = np.zeros((1, 32), F)
    w[0, 0] = one
    row = round_bf16(w).view(np.uint8)
    assert format_module("BF16").multiply(x, row)[:, 0].tolist() == [0.0, 1.0, 2.0**-64]
    w[0, 0] = F(2.0**-64)
    assert format_module("BF16").multiply(x, round_bf16(w).view(np.uint8))[:, 0].tolist() == [0.0, 2.0**-64, 0.0]


@pytest.mark.parametrize("name", ALL)
def test_a_row_alone_equals_the_row_in_a_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the other rows nor the chunks of weights change a bit."""
    rng = np.random.default_rng(10)
    rows, x = random_rows(name, rng, 19, 768), rng.standard_normal((7, 768), F)
    together = format_module(name).multiply(x, rows)
    monkeypatch.setattr(blocks, "CHUNK_WEIGHTS", 3 * 768)
    monkeypatch.setattr(floats, "_CHUNK_LANES", 3 * 16)
    alone = np.concatenate([format_module(name).multiply(x[t : t + 1], rows) for t in range(7)])
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("name", ALL)
def test_no_rows(name: str) -> None:
    rows = random_rows(name, np.random.default_rng(11), 4, 256)
    assert format_module(name).multiply(np.empty((0, 256), F), rows).shape == (0, 4)


@pytest.mark.parametrize("name", ALL)
def test_infinite_activations_stay_in_their_row(name: str) -> None:
    rng = np.random.default_rng(12)
    rows, x = random_rows(name, rng, 4, 256), rng.standard_normal((3, 256), F)
    expected = format_module(name).multiply(x, rows)
    x[1, 5] = np.inf
    with_infinity = format_module(name).multiply(x, rows)
    assert not np.isfinite(with_infinity[1]).any()
    np.testing.assert_array_equal(with_infinity[[0, 2]], expected[[0, 2]])


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_format_without_kernels_is_refused_by_name() -> None:
    def weight(name: str, fmt: str, *shape: int) -> Weight:
        return Weight(name, shape, format_by_name(fmt), np.empty(0, np.uint8), 0)

    matrix, vector = weight("m", "Q4_K", 2, 256), weight("v", "F32", 256)
    names = (field.name for field in dataclasses.fields(LayerWeights))
    layer = LayerWeights(**{name: vector if name.endswith("norm") else matrix for name in names})
    weights = ModelWeights(matrix, vector, matrix, [layer])
    check_formats(weights)

    layer.ffn_down = weight("blk.0.ffn_down.weight", "IQ2_XS", 2, 256)
    with pytest.raises(UnsupportedModel, match=r"'blk\.0\.ffn_down\.weight'.* IQ2_XS.*supported: .*Q4_K"):
        check_formats(weights)


def test_every_format_has_the_same_surface() -> None:
    for name, module in FORMAT_MODULES.items():
        for member in ("BLOCK", "BYTES", "ACTIVATIONS", "dequantize", "quantize_activations", "multiply"):
            assert hasattr(module, member), f"{name} lacks {member}"
    assert formats_on.format_module("Q4_K").ACTIVATIONS == 256
