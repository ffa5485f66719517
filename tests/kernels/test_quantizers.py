"""The quantisers: the bytes llama.cpp makes, and the laws that hold for every format."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from gemmafile.errors import BackendUnavailable
from gemmafile.files.formats import format_by_name
from gemmafile.kernels import compile
from gemmafile.kernels.activations import round_bf16
from gemmafile.kernels.formats_on import format_module
from gemmafile.kernels.quantizers import NEEDS_ROW_MEANS, QUANTIZERS, quantizer_name, rows
from gemmafile.kernels.quantizers.rows import prepare, quantize_rows

ALL = list(QUANTIZERS)
N_ROWS, N_COLUMNS = 37, 768

GOLDEN = {
    "Q8_0": "a54fe291d521e90a",
    "Q5_1": "aad5feb294cba600",
    "Q5_0": "10d9553c956f9700",
    "Q4_1": "2478637b0e0e5756",
    "Q4_0": "07cee3a90b831eda",
    "Q2_K": "a1079f32abddcc9e",
    "Q4_K": "5a9fbcce607a5433",
    "Q5_K": "5af6d9d842047d2f",
    "Q3_K": "341cde13ada6cf9f",
    "Q6_K": "e3c265134bcf4e04",
    "IQ4_NL": "58f7e5c41a40044a",
    "IQ4_XS": "02455ec8e7950441",
}
"""SHA-256 of what the blocks stand for that llama.cpp (release b11549) makes of `weights()`: ggml_quantize_chunk, no
importance. Not of the blocks: where a scale is zero, the numbers it multiplies are anybody's."""

ERRORS = {
    "Q8_0": (1.329, 10.214),
    "Q5_1": (9.301, 54.319),
    "Q5_0": (10.738, 69.771),
    "Q4_1": (19.267, 113.651),
    "Q4_0": (21.524, 141.402),
    "Q2_K": (73.119, 409.313),
    "Q4_K": (17.555, 115.327),
    "Q5_K": (8.821, 58.42),
    "Q3_K": (38.197, 245.584),
    "Q6_K": (4.504, 29.967),
    "IQ4_NL": (19.445, 132.04),
    "IQ4_XS": (19.552, 146.952),
}
"""Root of the mean square error of the same blocks, in thousandths of the weights' standard deviation; and of
those with `importance()`, the errors multiplied by it."""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if compile.why_not():
        pytest.skip(f"no compiled kernels: {compile.why_not()}")
    prepare([*ALL, "F16", "BF16"], True)


def weights(seed: int = 7, n_rows: int = N_ROWS) -> np.ndarray:
    """float32[rows, 768] from raw bits: nearly normal, rows of many sizes, some flat, one-sided or nearly empty."""
    raw = np.random.PCG64(seed).random_raw(n_rows * N_COLUMNS)
    x = raw.astype("<u8").view("<i2").reshape(-1, 4).sum(axis=1, dtype=np.int32).astype(np.float32)
    x = x.reshape(n_rows, N_COLUMNS) * np.float32(2.0**-22)
    x *= np.float32(2.0) ** (np.arange(n_rows, dtype=np.float32) % 5 - 2)[:, None]
    x[4], x[5, ::3], x[6, :512] = np.abs(x[4]), 0, np.float32(0.5)
    x[7, 100:] *= np.float32(1e-20)
    return x


def importance() -> np.ndarray:
    raw = np.random.PCG64(8).random_raw(N_COLUMNS)
    return (np.float32(2) ** (raw % np.uint64(9)).astype(np.float32)).astype(np.float32)


def error(x: np.ndarray, blocks: np.ndarray, name: str, w: np.ndarray | float = 1.0) -> float:
    d = format_module(name).dequantize(blocks).astype(np.float64) - x
    return float(np.sqrt((w * d * d).mean()) / x.std() * 1000)


def digest(blocks: np.ndarray, name: str) -> str:
    """16 hex digits of the weights that blocks stand for; both zeros are the same."""
    return hashlib.sha256((format_module(name).dequantize(blocks) + np.float32(0)).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", ALL)
def test_blocks_are_llama_cpps(name: str) -> None:
    blocks, is_finite = quantize_rows(weights(), name)
    assert is_finite
    assert digest(blocks, name) == GOLDEN[name]


@pytest.mark.parametrize("name", ALL)
def test_errors_are_no_larger(name: str) -> None:
    x, w = weights(), importance()
    plain, weighted = ERRORS[name]
    assert error(x, quantize_rows(x, name)[0], name) == pytest.approx(plain, rel=1e-3)
    ours = error(x, quantize_rows(x, name, w)[0], name, w)
    assert 0.9 * weighted <= ours <= 1.005 * weighted


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_does_not_depend_on_its_neighbours(name: str, weighted: bool) -> None:
    """Nor on the lane it lies in, and nothing is written behind the last block."""
    x, w = weights(), importance() if weighted else None
    whole = quantize_rows(x, name, w)[0]
    for first, last in ((0, 1), (5, 22), (36, 37), (1, 37)):
        np.testing.assert_array_equal(quantize_rows(x[first:last], name, w)[0], whole[first:last])


@pytest.mark.parametrize("name", ALL)
def test_rows_of_one_block(name: str) -> None:
    block = format_by_name(name).weights_per_block
    x = weights()
    whole = quantize_rows(x, name)[0].reshape(-1, format_by_name(name).bytes_per_block)
    np.testing.assert_array_equal(quantize_rows(x.reshape(-1, block), name)[0], whole)


@pytest.mark.parametrize("name", ALL)
def test_halves_are_read_as_the_floats_they_are(name: str) -> None:
    x = weights()
    for half in (x.astype("<f2"), round_bf16(x)):
        wide = half.astype(np.float32) if half.dtype != np.uint16 else (half.astype(np.uint32) << 16).view(np.float32)
        for w in (None, importance()):
            np.testing.assert_array_equal(quantize_rows(half, name, w)[0], quantize_rows(wide, name, w)[0])


@pytest.mark.parametrize("name", ["F16", "BF16", *ALL])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinity_or_nan_is_told(name: str, bad: float) -> None:
    x = weights()
    for row, column in ((0, 0), (36, 767), (20, 300)):
        y = x.copy()
        y[row, column] = bad
        assert not quantize_rows(y, name)[1]
    assert quantize_rows(x, name)[1]


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_floats_are_rounded_as_numpy_rounds_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is too large for the format is told."""
    x = weights()
    x[3, :4] = [1e-7, -65519.0, 6e-8, 0.0]
    compiled, huge = quantize_rows(x, name), np.full((1, 16), 3.4e38, np.float32)
    assert not quantize_rows(huge, name)[1]
    monkeypatch.setattr(rows, "_floats_ready", set())
    np.testing.assert_array_equal(compiled[0], quantize_rows(x, name)[0])
    assert not quantize_rows(huge, name)[1]


@pytest.mark.parametrize("name", ALL)
def test_zeros_stay_zeros(name: str) -> None:
    x = np.zeros((3, N_COLUMNS), np.float32)
    for w in (None, importance(), np.zeros(N_COLUMNS, np.float32)):
        assert not format_module(name).dequantize(quantize_rows(x, name, w)[0]).any()


@pytest.mark.parametrize("name", ALL)
def test_no_importance_at_all_still_gives_numbers(name: str) -> None:
    """Zeros in the matrix: whatever comes out, it is finite."""
    x = weights()
    w = importance()
    w[:300] = 0
    assert np.isfinite(format_module(name).dequantize(quantize_rows(x, name, w)[0])).all()
    assert np.isfinite(format_module(name).dequantize(quantize_rows(x, name, 0 * w)[0])).all()


def test_q8_0_by_hand() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = [127, -127, 0.5, -0.5, 2.5]
    block = quantize_rows(x, "Q8_0")[0][0]
    assert block[:2].view("<f2")[0] == 1
    assert block[2:7].view(np.int8).tolist() == [127, -127, 1, -1, 3]


def test_q4_0_by_hand() -> None:
    """The weight farthest from zero is -8 steps, whatever its sign; halves go up."""
    x = np.zeros((1, 32), np.float32)
    x[0, :4], x[0, 16] = [4, -3.5, 0.25, -0.25], 1
    block = quantize_rows(x, "Q4_0")[0][0]
    assert block[:2].view("<f2")[0] == -0.5
    assert [b & 15 for b in block[2:6].tolist()] == [0, 15, 8, 9]
    assert block[2] >> 4 == 6


def test_columns_of_importance_draw_the_error_away() -> None:
    x = weights()
    for name in sorted(QUANTIZERS.keys() - {"Q8_0"}):
        w = np.ones(N_COLUMNS, np.float32)
        w[::4] = 1000
        plain, weighted = (format_module(name).dequantize(quantize_rows(x, name, i)[0]) - x for i in (None, w))
        assert np.square(weighted[:, ::4]).sum() < 0.9 * np.square(plain[:, ::4]).sum(), name


def test_names() -> None:
    assert quantizer_name("Q8_0", True) == quantizer_name("Q8_0", False)
    assert {quantizer_name(name, True) for name in NEEDS_ROW_MEANS}.isdisjoint({quantizer_name(n, False) for n in ALL})


def test_without_a_compiler_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "_has_numba", lambda: False)
    monkeypatch.setattr(compile, "_load", lambda name: False)
    monkeypatch.setattr(compile, "_addresses", {})
    with pytest.raises(BackendUnavailable, match="needs compiled kernels: .*Numba is not installed"):
        prepare(["Q4_K"], False)
