"""Attention's kernels against the reference, bit for bit, whatever the threads, the tiles and the parts."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gemmafile.kernels import attention as a
from gemmafile.kernels import attention_store as t
from gemmafile.kernels.attention_tasks import AttentionTasks
from gemmafile.kernels.cache import CACHE_TYPES, KVCache, page_bytes, quantize_q8_0
from gemmafile.kernels.compile import kernel_addresses
from gemmafile.kernels.ops import POSITIONS, ROW_TABLES, SCRATCH, SCRATCH_BYTES, float_bits
from gemmafile.kernels.reference import ReferenceReplay
from gemmafile.kernels.single import Single, address, aligned
from gemmafile.model.batch import PAGE, Batch
from tests.kernels.test_kept_code import run


@dataclass
class Case:
    """One layer and one pass: `runs` are (positions before, rows) of each sequence."""

    head_dim: int = 64
    n_kv: int = 1
    group: int = 2
    kinds: tuple[str, str] = ("f16", "f16")
    window: int = 0
    softcap: float = 0.0
    runs: tuple[tuple[int, int], ...] = ((0, 1),)
    seed: int = 0
    config: Any = field(init=False)
    batch: Batch = field(init=False)

    def __post_init__(self) -> None:
        n_heads = self.n_kv * self.group
        self.config = SimpleNamespace(n_layers=1, n_kv_heads=self.n_kv, n_heads=n_heads, head_dim=self.head_dim)
        counts = [-(-(depth + n) // PAGE) for depth, n in self.runs]
        rng = np.random.default_rng(self.seed)
        pages, tables = rng.permutation(sum(counts)), np.zeros((len(counts), max(counts)), np.int32)
        for i, n in enumerate(counts):
            tables[i, :n], pages = pages[:n], pages[n:]
        self.n_pages = sum(counts)
        rows = [(i, p) for i, (depth, n) in enumerate(self.runs) for p in range(depth, depth + n)]
        sequences, positions = np.array(rows, np.int32).T.copy()
        self.batch = Batch(np.zeros(len(rows), np.int32), positions, sequences, tables, np.zeros(0, np.int32))
        size = (len(rows), n_heads * self.head_dim)
        self.q = 2 * rng.standard_normal(size, np.float32)
        self.k, self.v = (rng.standard_normal((len(rows), self.n_kv * self.head_dim), np.float32) for _ in range(2))
        self.op = SimpleNamespace(
            layer=0, n_heads=n_heads, n_kv_heads=self.n_kv, head_dim=self.head_dim, scale=0.3,
            window=self.window, softcap=self.softcap,
        )  # fmt: skip

    def cache(self) -> KVCache:
        """What the sequences have before the pass; beyond it, numbers that nobody may see."""
        cache, rng = KVCache(self.config, self.n_pages, *self.kinds), np.random.default_rng(self.seed + 1)
        for table, (depth, n) in zip(self.batch.page_tables, self.runs, strict=True):
            end = -(-(depth + n) // PAGE) * PAGE
            k, v = (rng.standard_normal((end, self.n_kv, self.head_dim), np.float32) for _ in range(2))
            k[depth + n :] = v[depth + n :] = np.inf
            with np.errstate(all="ignore"):
                cache.store(0, table, np.arange(end), k, v)
        return cache

    def expected(self) -> tuple[np.ndarray, KVCache]:
        cache = self.cache()
        with np.errstate(all="ignore"):
            replay: Any = SimpleNamespace(_cache=cache)
            out = ReferenceReplay._attend(replay, self.op, [self.q, self.k, self.v], self.batch)
        return out, cache

    def compiled(self, n_threads: int) -> tuple[np.ndarray, KVCache, int]:
        """(result, cache, number of tasks)"""
        cache, batch = self.cache(), self.batch
        n = batch.n_rows
        tasks = AttentionTasks(cache, [self.window], n + 64)
        tiles = tasks.kernels(n)
        addresses = kernel_addresses(tiles.values())
        tasks.set_kernels({at: addresses[name] for at, name in tiles.items()})
        tables = np.ascontiguousarray(batch.page_tables)
        row_tables = tables.ctypes.data + tables.strides[0] * batch.sequences.astype(np.int64)
        tasks.fill(batch, row_tables, n_threads)
        single = Single(n, n_threads)
        size = a.scratch_bytes(self.group, cache.width)
        scratch, out = aligned(size * n_threads), aligned(4 * self.q.size).view(np.float32).reshape(self.q.shape)
        single.keep = [scratch, out, row_tables, tables, tasks]
        for at, value in ((SCRATCH, address(scratch)), (SCRATCH_BYTES, size), (POSITIONS, address(batch.positions)),
                          (ROW_TABLES, address(row_tables))):  # fmt: skip
            single.shared[at // 8] = value
        stores = (self.k, cache.keys[0], self.kinds[0], 1), (self.v, cache.values[0], self.kinds[1], 0)
        for x, target, kind, is_keys in stores:
            single.add(f"attention_store.{kind}", {
                t.X: address(x), t.X_STRIDE: x.strides[0], t.TARGET: address(target), t.PAGE_BYTES: target.strides[0],
                t.HEAD_BYTES: target.strides[1], t.BLOCK_BYTES: target.strides[2], t.N_KV: self.n_kv,
                t.HEAD_DIM: self.head_dim, t.WIDTH: cache.width, t.IS_KEYS: is_keys,
            })  # fmt: skip
        single.add("attention.attend", {
            a.KEYS: address(cache.keys[0]), a.VALUES: address(cache.values[0]), a.Q: address(self.q),
            a.Q_STRIDE: self.q.strides[0], a.OUT: address(out), a.OUT_STRIDE: out.strides[0],
            a.SCALE: float_bits(0.3), a.WINDOW: self.window, a.CAP: float_bits(self.softcap),
            a.INVERSE_CAP: float_bits(float(np.float32(1 / self.softcap)) if self.softcap else 0.0),
            a.TASKS: tasks.lists[self.window], a.SHAPE: tasks.shape,
        })  # fmt: skip
        single.bind()
        for _ in range(2):  # counters are as they were before
            single.run()
        single.team.close()
        return out, cache, int(tasks._headers[self.window][0]) * self.n_kv


CASES = {
    "one row, deep": Case(runs=((1500, 1),)),
    "one row at a segment's edge": Case(runs=((255, 1), (256, 1), (511, 1), (512, 1))),
    "one row, three heads": Case(n_kv=3, group=3, runs=((700, 1),), softcap=2.0),
    "eight heads of 256": Case(head_dim=256, group=8, runs=((600, 1),), softcap=5.0),
    "nine heads": Case(group=9, runs=((300, 1),)),
    "no group, 80": Case(head_dim=80, n_kv=2, group=1, runs=((400, 5), (10, 7))),
    "128, over a segment": Case(head_dim=128, n_kv=2, runs=((230, 60),)),
    "256, five heads": Case(head_dim=256, group=5, runs=((250, 11),)),
    "window of 1": Case(window=1, runs=((250, 20), (600, 1))),
    "window of 64": Case(window=64, n_kv=2, runs=((700, 40), (3, 9))),
    "window of 300": Case(window=300, group=3, runs=((800, 33), (250, 50), (900, 1))),
    "window of 600 that parts begin in": Case(window=600, group=4, runs=((1200, 1), (1300, 2))),
    "many rows": Case(group=1, runs=((0, 210),)),
    "tiny heads": Case(head_dim=2, n_kv=2, group=7, runs=((300, 30),)),
    "forty heads": Case(head_dim=16, group=40, runs=((270, 4),)),
    "a hundred heads": Case(head_dim=8, group=100, runs=((270, 2),)),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_reference_to_the_bit(name: str) -> None:
    case = CASES[name]
    expected, memory = case.expected()
    assert np.isfinite(expected).all()
    for n_threads in (1, 2, 5):
        out, cache, _ = case.compiled(n_threads)
        np.testing.assert_array_equal(out, expected, f"{n_threads} threads")
        np.testing.assert_array_equal(cache.keys[0], memory.keys[0])
        np.testing.assert_array_equal(cache.values[0], memory.values[0])


@pytest.mark.parametrize("kind_v", CACHE_TYPES)
@pytest.mark.parametrize("kind_k", CACHE_TYPES)
def test_every_mixture_of_caches(kind_k: str, kind_v: str) -> None:
    """A few rows, which read numbers as they are stored, and many, which widen them first; 80 is no multiple of 64."""
    kinds = (kind_k, kind_v)
    for case in (Case(80, 2, 3, kinds, runs=((520, 1),)), Case(80, 1, 2, kinds, window=200, runs=((300, 70),))):
        expected, memory = case.expected()
        assert np.isfinite(expected).all()
        for n_threads in (1, 3):
            out, cache, _ = case.compiled(n_threads)
            np.testing.assert_array_equal(out, expected)
            np.testing.assert_array_equal(cache.keys[0], memory.keys[0])
            np.testing.assert_array_equal(cache.values[0], memory.values[0])


def test_a_deep_row_is_work_for_all_threads_and_a_window_bounds_it() -> None:
    deep = Case(runs=((2000, 1),))
    assert deep.compiled(1)[2] == 1
    assert deep.compiled(4)[2] == 8
    assert Case(runs=((2000, 1),), window=300).compiled(4)[2] == 2
    assert Case(runs=((100, 1),)).compiled(4)[2] == 1
    assert Case(runs=tuple((2000, 1) for _ in range(40))).compiled(2)[2] == 40


def test_parts_that_there_is_no_room_for_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(runs=((600, 20),))
    expected, _ = case.expected()
    whole = case.compiled(1)[2]
    assert case.compiled(5)[2] > whole
    before = AttentionTasks.fill

    def fill(self: AttentionTasks, *arguments: Any) -> None:
        self._most_parts = 59
        before(self, *arguments)

    monkeypatch.setattr(AttentionTasks, "fill", fill)
    out, _, n_tasks = case.compiled(5)
    assert n_tasks == whole
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_infinite_and_missing_numbers_come_through(kind: str) -> None:
    """What a row does see shows: an infinite key, a NaN value, weights of 0."""
    case = Case(kinds=(kind, kind), runs=((300, 9),))
    case.k[3, :8], case.v[5, 7] = np.inf, np.nan
    expected, _ = case.expected()
    assert np.isfinite(expected[:3]).all()
    assert np.isnan(expected[3:]).any(axis=1).all()
    for n_threads in (1, 4):
        np.testing.assert_array_equal(case.compiled(n_threads)[0], expected)


@pytest.mark.parametrize("window", [1, 3, 40])
@pytest.mark.parametrize("group", [1, 4])
def test_what_a_window_has_left_behind_is_gone(window: int, group: int) -> None:
    """Rows that still see an infinite value stand in one tile with rows that no longer do."""
    case = Case(group=group, runs=((300, 60),), window=window)
    case.v[11] = np.inf
    expected, _ = case.expected()
    assert list(np.flatnonzero(~np.isfinite(expected).all(axis=1))) == list(range(11, min(60, 11 + window)))
    for n_threads in (1, 4):
        np.testing.assert_array_equal(case.compiled(n_threads)[0], expected)


def test_an_older_cpu_gives_the_same_bits(tmp_path: Path) -> None:
    """AVX2 code, which a newer CPU runs too: other tiles of registers, narrower vectors."""
    code = """
import numpy as np
from tests.kernels.test_attention import CASES, Case
cases = [Case(80, 1, 3, ("f16", "q8_0"), runs=((300, 1), (250, 17))), Case(group=5, runs=((70, 1),))]
for case in cases:
    expected, memory = case.expected()
    out, cache, _ = case.compiled(2)
    assert np.array_equal(out, expected)
    assert np.array_equal(cache.values[0], memory.values[0])
print("same")
"""
    features = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
    assert run(code, tmp_path, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=features).split() == ["same"]


def test_q8_0_by_hand() -> None:
    x = np.zeros((5, 64), np.float32)
    x[0, :3], x[0, 40] = [1.27, -0.635, 0.004], -2.54
    x[1, 0] = 1e-9  # its scale is 0 as a float16
    x[2, 1], x[3, 2] = np.inf, np.nan
    x[4, :2] = [6e-5, -6e-5]  # scale rounded down to a subnormal
    with np.errstate(all="ignore"):
        q, scales = quantize_q8_0(x)
    scale = np.float16(np.float32(1.27) / np.float32(127))
    assert scales[0, 0] == scale
    assert list(q[0, :4]) == [127, -63 if 0.635 / float(scale) < 63.5 else -64, 0, 0]
    assert q[0, 40] == -127
    assert not q[1:4].any()
    assert (scales[1] == 0).all()
    assert scales[2, 0] == np.inf
    assert np.isnan(scales[3, 0])
    assert 0 < scales[4, 0] < 1e-6
    np.testing.assert_allclose(q[4, :2] * float(scales[4, 0]), x[4, :2], atol=float(scales[4, 0]))


def test_bytes_of_a_page() -> None:
    config: Any = SimpleNamespace(n_layers=3, n_kv_heads=2, n_heads=4, head_dim=80)
    numbers = 3 * 2 * 128 * 128
    assert page_bytes(config, "f16", "f32") == numbers * 6
    assert page_bytes(config, "q8_0", "q8_0") == numbers * 2 + numbers // 32 * 4
    cache = KVCache(config, 5, "q8_0", "bf16")
    assert sum(array.nbytes for array in (*cache.keys, *cache.values)) == 5 * cache.page_bytes


@pytest.mark.parametrize("kinds", [("f16", "f16"), ("q8_0", "f32")])
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
def test_dropped_pages_are_zeros_that_take_no_memory(kinds: tuple[str, str]) -> None:
    config: Any = SimpleNamespace(n_layers=2, n_kv_heads=3, n_heads=3, head_dim=64)
    cache = KVCache(config, 400, *kinds)

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / (1 << 20)

    for array in (*cache.keys, *cache.values):
        array[:] = 1
    full = resident_mib()
    cache.drop_pages(7, 380)
    expected = 380 * cache.page_bytes / (1 << 20)
    assert expected > 10
    assert full - resident_mib() > 0.9 * expected
    for array in (*cache.keys, *cache.values):
        assert not array[7:387].any()
        assert array[:7].all()
        assert array[387:].all()
