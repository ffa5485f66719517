"""Compiled products against their NumPy twins, bit for bit: every format, odd sizes, few and many tokens, threads."""

from __future__ import annotations

import numpy as np
import pytest

from gemmafile.kernels import amx
from gemmafile.kernels.formats_on import FORMAT_MODULES, format_module
from gemmafile.kernels.products import PRODUCTS
from gemmafile.kernels.single import run_product
from tests.kernels.random_blocks import random_rows

FORMATS = list(FORMAT_MODULES)
ROWS = (4, 37, 66)


def product(name: str, kind: str, x: np.ndarray, rows: np.ndarray, n_threads: int = 1) -> np.ndarray:
    p = PRODUCTS[name]
    packing = {"matmul_unit": p.packing_unit, "batch_unit": p.packing_batch}.get(kind, p.packing)
    return run_product(getattr(p, kind), packing, x, rows, n_threads)


def kinds_of_many(name: str) -> list[str]:
    """The kernels for several and for many tokens that this machine has."""
    units = [kind for kind in ("matmul_unit", "batch_unit") if getattr(PRODUCTS[name], kind)]
    return ["matmul", *(units if amx.is_ready() else [])]


def columns_of(name: str) -> tuple[int, ...]:
    """Lengths of rows: whole and broken tiles, quads and chunks."""
    return {256: (256, 768, 1280), 32: (32, 64, 96, 160, 576)}.get(format_module(name).BLOCK, (5, 16, 37, 1030, 2100))


def activations(rng: np.random.Generator, n_tokens: int, n_columns: int) -> np.ndarray:
    """Rows of very different sizes."""
    x = rng.standard_normal((n_tokens, n_columns)) * np.exp(2 * rng.standard_normal((n_tokens, 1)))
    return x.astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["matvec", "matmul"])
def test_a_compiled_product_is_its_numpy_twin(name: str, kind: str) -> None:
    rng = np.random.default_rng(FORMATS.index(name))
    for n_columns in columns_of(name):
        for n_rows, n_tokens in zip(ROWS, (1, 3, 13), strict=True):
            rows, x = random_rows(name, rng, n_rows, n_columns), activations(rng, n_tokens, n_columns)
            got, wanted = product(name, kind, x, rows), format_module(name).multiply(x, rows)
            np.testing.assert_array_equal(got, wanted, f"{n_rows} rows, {n_columns} columns, {n_tokens} tokens")


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    rng = np.random.default_rng(7)
    n_columns = 2 * max(columns_of(name)[:3])
    rows, x = random_rows(name, rng, 45, n_columns), activations(rng, 8, n_columns)
    together = product(name, "matmul", x, rows)
    for t in range(len(x)):
        np.testing.assert_array_equal(product(name, "matvec", x[t : t + 1], rows)[0], together[t])
    for n in (2, 3, 4):
        np.testing.assert_array_equal(product(name, "matvec", x[:n], rows), together[:n])


@pytest.mark.parametrize("name", FORMATS)
def test_threads_do_not_change_the_answer(name: str) -> None:
    rng = np.random.default_rng(8)
    n_columns = columns_of(name)[-1]
    rows, x = random_rows(name, rng, 333, n_columns), activations(rng, 7, n_columns)
    for kind in ("matvec", *kinds_of_many(name)):
        alone = product(name, kind, x[:3] if kind == "matvec" else x, rows)
        for n_threads in (2, 5):
            many = product(name, kind, x[:3] if kind == "matvec" else x, rows, n_threads)
            np.testing.assert_array_equal(alone, many)


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_are_weights(name: str) -> None:
    """Random bytes: scales that are huge, tiny, infinite or not a number. The same numbers come out, and NaN where
    the twin has NaN."""
    rng = np.random.default_rng(9)
    module, n_columns = format_module(name), columns_of(name)[1]
    rows = rng.integers(0, 256, (200, n_columns // module.BLOCK * module.BYTES), np.uint8)
    x = activations(rng, 5, n_columns)
    wanted = module.multiply(x, rows)
    assert np.isnan(wanted).any()
    assert np.isfinite(wanted).any()
    for kind in ("matvec", *kinds_of_many(name)):
        np.testing.assert_array_equal(product(name, kind, x, rows), wanted)


@pytest.mark.parametrize("name", [name for name in FORMATS if format_module(name).ACTIVATIONS])
def test_activations_of_zero_infinity_and_nan(name: str) -> None:
    rng = np.random.default_rng(10)
    n_columns = columns_of(name)[-1]
    rows, x = random_rows(name, rng, 40, n_columns), activations(rng, 6, n_columns)
    x[0] = 0
    x[1, 3], x[2, 5], x[3, -1] = np.inf, np.nan, -np.inf
    x[4] *= np.float32(1e-40)
    wanted = format_module(name).multiply(x, rows)
    assert np.isnan(wanted[1:4]).all()
    assert np.isfinite(wanted[[0, 4, 5]]).all()
    for kind in ("matvec", *kinds_of_many(name)):
        np.testing.assert_array_equal(product(name, kind, x, rows), wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_past_the_weights_is_read(name: str) -> None:
    """The matrix ends at the end of a map whose next page may not be touched."""
    import ctypes
    import mmap

    rng = np.random.default_rng(11)
    n_columns = columns_of(name)[2]
    rows, x = random_rows(name, rng, 5, n_columns), activations(rng, 4, n_columns)
    size = -(-rows.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    guarded = mmap.mmap(-1, size + mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(guarded))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    at_the_end = np.frombuffer(guarded, np.uint8, size)[size - rows.nbytes :].reshape(rows.shape)
    at_the_end[:] = rows
    for kind in ("matvec", *kinds_of_many(name)):
        np.testing.assert_array_equal(product(name, kind, x, at_the_end), format_module(name).multiply(x, rows))


@pytest.mark.parametrize("name", [name for name in FORMATS if PRODUCTS[name].matmul_unit])
def test_the_matrix_unit_gives_the_same_bits(name: str) -> None:
    if not amx.is_ready():
        pytest.skip("no matrix unit (AMX) that works on this machine")
    rng = np.random.default_rng(12)
    for n_columns in columns_of(name):
        sizes = {"matmul_unit": ((4, 1), (37, 13), (131, 33), (300, 70)),
                 "batch_unit": ((4, 1), (37, 4), (131, 16), (300, 21), (64, 32))}  # fmt: skip
        for kind in kinds_of_many(name)[1:]:
            for n_rows, n_tokens in sizes[kind]:
                rows, x = random_rows(name, rng, n_rows, n_columns), activations(rng, n_tokens, n_columns)
                got, wanted = product(name, kind, x, rows), format_module(name).multiply(x, rows)
                np.testing.assert_array_equal(got, wanted, f"{kind}: {n_rows} rows of {n_columns}, {n_tokens} tokens")
