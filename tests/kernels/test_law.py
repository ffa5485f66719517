"""The table of docs/numerics.md read aloud: one number at a time, in exact scalars, compared bit for bit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gemmafile.kernels.activations import round_bf16
from gemmafile.kernels.float32 import exp, tanh
from gemmafile.kernels.formats_on import FORMAT_MODULES, format_module
from gemmafile.kernels.reference import attend, gate, norm, rotate, soft_cap
from gemmafile.model.config import Rope
from tests.kernels.exact_floats import exact_fma, exact_tree
from tests.kernels.random_blocks import HALVES, random_rows

F = np.float32
QUANTISED = [name for name in FORMAT_MODULES if format_module(name).ACTIVATIONS]

EXP_COEFFICIENTS = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def law_of_exp_parts(x: np.float32) -> tuple[int, np.float32]:
    n = F(round(x * F(1.44269504)))
    r = exact_fma(n, F(2.12194440e-4), exact_fma(n, F(-0.693359375), x))
    p = F(1.9875691500e-4)
    for coefficient in EXP_COEFFICIENTS:
        p = exact_fma(p, r, F(coefficient))
    return int(n), exact_fma(p, r * r, r)


def law_of_exp(x: np.float32) -> np.float32:
    if x < F(-87.33):
        return F(0)
    n, e = law_of_exp_parts(min(x, F(88.72)))
    return np.ldexp(e + F(1), n)


def law_of_tanh(x: np.float32) -> np.float32:
    n, e = law_of_exp_parts(max(F(-30), min(F(30), x + x)))
    power = F(2.0**n)
    m = exact_fma(power, e, power - F(1))
    return m / (m + F(2))


def test_exp_and_tanh() -> None:
    x = np.random.default_rng(1).uniform(-90, 90, 300).astype(F)
    np.testing.assert_array_equal(exp(x), [law_of_exp(number) for number in x])
    for y in (x / F(4), x / F(16), x / F(1e6)):
        np.testing.assert_array_equal(tanh(y), [law_of_tanh(number) for number in y])


@pytest.mark.parametrize("n", [8, 16, 100])
def test_norm(n: int) -> None:
    rng = np.random.default_rng(n)
    x, w = rng.standard_normal((4, n), F), rng.standard_normal(n, F)
    for row, got in zip(x, norm(x, w, 1e-6), strict=True):
        acc = [F(0)] * 16
        for k in range(n):
            acc[k % 16] = exact_fma(row[k], row[k], acc[k % 16])
        r = F(1) / np.sqrt(exact_tree(acc) / F(n) + F(1e-6))
        np.testing.assert_array_equal(got, [(row[k] * r) * w[k] for k in range(n)])


def test_rotate() -> None:
    rng = np.random.default_rng(2)
    x, cos, sin = rng.standard_normal((3, 8), F), rng.standard_normal((3, 4), F), rng.standard_normal((3, 4), F)
    for t, got in enumerate(rotate(x, cos, sin, Rope(1e4, 1.0, 8, False), 8)):
        for j in range(4):
            x1, x2 = x[t, j], x[t, j + 4]
            assert got[j] == exact_fma(x1, cos[t, j], -(x2 * sin[t, j]))
            assert got[j + 4] == exact_fma(x2, cos[t, j], x1 * sin[t, j])


def test_gates_and_cap() -> None:
    rng = np.random.default_rng(3)
    x, up = (3 * rng.standard_normal((1, 200))).astype(F), rng.standard_normal((1, 200), F)
    gelu, silu, cap = gate(x, up, "gelu")[0], gate(x, up, "silu")[0], soft_cap(x, 3.0)[0]
    for k, (number, other) in enumerate(zip(x[0], up[0], strict=True)):
        u = (number * exact_fma(number * number, F(0.044715), F(1))) * F(-1.5957691216057308)
        assert gelu[k] == (number / (F(1) + law_of_exp(u))) * other
        assert silu[k] == (number / (F(1) + law_of_exp(-number))) * other
        assert cap[k] == F(3) * law_of_tanh(number * F(1 / 3))


def law_of_attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, scale: float, window: int, softcap: float
) -> list[np.float32]:
    """q float32[D], keys, values float32[S, D]: one row of one head."""
    lowest = max(0, position - window + 1) if window else 0
    total: tuple[np.float32, np.float32, list[np.float32]] | None = None
    for first in range(lowest // 256 * 256, position + 1, 256):
        seen = [p for p in range(first, first + 256) if lowest <= p <= position]
        scores = {p: _score(q, keys[p], scale, softcap) for p in seen}
        m, lanes, acc = max(F(-1e30), *scores.values()), [F(0)] * 16, [F(0)] * len(q)
        for p, s in scores.items():
            w = law_of_exp(s - m)
            lanes[p % 16] = lanes[p % 16] + w
            acc = [exact_fma(w, v, number) for v, number in zip(values[p], acc, strict=True)]
        segment = m, exact_tree(lanes), acc
        total = segment if total is None else _law_of_joining(*total, *segment)
    assert total is not None
    return [number * (F(1) / total[1]) for number in total[2]]


def _law_of_joining(
    m: np.float32, total: np.float32, acc: list[np.float32],
    m2: np.float32, total2: np.float32, acc2: list[np.float32],
) -> tuple[np.float32, np.float32, list[np.float32]]:  # fmt: skip
    """Two segments, the later one second."""
    both = max(m, m2)
    old, new = law_of_exp(m - both), law_of_exp(m2 - both)
    return (
        both,
        exact_fma(total2, new, total * old),
        [exact_fma(b, new, a * old) for a, b in zip(acc, acc2, strict=True)],
    )


def _score(q: np.ndarray, k: np.ndarray, scale: float, softcap: float) -> np.float32:
    s = F(0)
    for d in range(len(q)):
        s = exact_fma(q[d], k[d], s)
    s = s * F(scale)
    return F(softcap) * law_of_tanh(s * F(1 / softcap)) if softcap else s


@pytest.mark.parametrize("window, softcap", [(0, 0.0), (300, 2.5), (20, 0.0)])
def test_attention(window: int, softcap: float) -> None:
    """Rows at the start of a segment; without a window they see two of them whole."""
    op = SimpleNamespace(n_heads=2, n_kv_heads=1, head_dim=8, scale=0.37, window=window, softcap=softcap, layer=0)
    rng, positions = np.random.default_rng(4), np.arange(511, 514)
    q = 3 * rng.standard_normal((3, 2, 8), F)
    keys, values = rng.standard_normal((1, 640, 8), F), rng.standard_normal((1, 640, 8), F)
    got = attend(op, q, keys, values, positions)  # type: ignore[arg-type]
    for t, head in np.ndindex(3, 2):
        expected = law_of_attention(q[t, head], keys[0], values[0], int(positions[t]), 0.37, window, softcap)
        np.testing.assert_array_equal(got[t, head], expected)


def law_of_blocks(name: str, x: np.ndarray, row: np.ndarray) -> np.float32:
    """One number of a product with int8 activations: x float32[K], row uint8[row bytes]."""
    module = format_module(name)
    q, d = module.quantize_activations(x[None])
    f = F(0)
    for b, block in enumerate(row.reshape(-1, module.BYTES)):
        w = module.integers(block)  # type: ignore[attr-defined]
        q_b, d_a = q[0, b * module.BLOCK : (b + 1) * module.BLOCK].astype(int), d[0, b]
        f = exact_fma(F(w.weights[0].astype(int) @ q_b), w.scale[0] * d_a, f)
        if w.minima is not None:
            sums = q_b.reshape(len(w.minima[0]), -1).sum(axis=1)
            f = exact_fma(F(w.minima[0].astype(int) @ sums), -(w.min_scale[0] * d_a), f)
        if w.offset is not None:
            f = exact_fma(w.offset[0], d_a * F(q_b.sum()), f)
    return f


def law_of_floats(name: str, x: np.ndarray, row: np.ndarray) -> np.float32:
    """One number of a product with float32 or float16 weights: 16 chains for each 1024 columns."""
    w, y = format_module(name).dequantize(row), None
    for first in range(0, len(x), 1024):
        acc = [F(0)] * 16
        for k in range(first, min(first + 1024, len(x))):
            acc[k % 16] = exact_fma(w[k], x[k], acc[k % 16])
        y = exact_tree(acc) if y is None else y + exact_tree(acc)
    assert y is not None
    return y


def law_of_bf16(name: str, x: np.ndarray, row: np.ndarray) -> np.float32:
    """The same with bfloat16 weights: 16 chains of pairs, the odd number first, for each 256 columns; lane by lane."""
    module = format_module(name)
    w, x, y = module.dequantize(row), module.dequantize(round_bf16(x).view(np.uint8)), F(0)
    for first in range(0, len(x), 256):
        for lane in range(16):
            chain = F(0)
            for j, odd in np.ndindex(8, 2):
                k = first + 32 * j + 2 * lane + 1 - odd
                chain = exact_fma(w[k], x[k], chain) if k < len(x) else chain
            y = y + chain
    return y


@pytest.mark.parametrize("name", FORMAT_MODULES)
def test_products(name: str) -> None:
    """The float formats have a last chunk and a last step that are not full."""
    law, n_columns = (law_of_blocks, 2048) if name in QUANTISED else (law_of_floats, 2104)
    law = law_of_bf16 if name == "BF16" else law
    rng = np.random.default_rng(9)
    rows, x = random_rows(name, rng, 2, n_columns), rng.standard_normal((3, n_columns), F)
    expected = [[law(name, x[t], row) for row in rows] for t in range(3)]
    np.testing.assert_array_equal(format_module(name).multiply(x, rows), expected)


@pytest.mark.parametrize("name", QUANTISED)
def test_the_largest_sums_are_exact(name: str) -> None:
    """All bits of the weights set, or all sub-scales at their largest: sums far over 2^24 in the K-quants."""
    rng = np.random.default_rng(10)
    rows = np.full_like(random_rows(name, rng, 2, 512), 0x7F)
    rows[1] = 0xFF
    blocks = rows.reshape(2, -1, format_module(name).BYTES)
    if name == "Q6_K":
        blocks[0, :, :192] = rng.integers(0xF8, 0x100, (512 // 256, 192), np.uint8)
    for byte in HALVES[name]:
        blocks[..., byte : byte + 2] = np.array([0.5], "<f2").view(np.uint8)
    x = rng.uniform(0.9, 1, (20, 512)).astype(F)
    expected = [[law_of_blocks(name, x[t], row) for row in rows] for t in range(20)]
    np.testing.assert_array_equal(format_module(name).multiply(x, rows), expected)
