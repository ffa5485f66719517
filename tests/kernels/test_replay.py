"""The compiled replay against the reference, bit for bit, and the law of rows on whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemmafile.engine.engine import Engine
from gemmafile.files.open import open_model
from gemmafile.kernels.formats_on import FORMAT_MODULES, format_module
from gemmafile.model.batch import Batch
from gemmafile.settings import ContextSettings
from tests.kernels.random_blocks import random_rows
from tools.make_tiny import PRESETS, make_tiny, tiny_tokens, write_tiny

F32 = {"cache_type_k": "f32", "cache_type_v": "f32"}


def write(folder: Path, preset: str, name: str = "F32", **sizes: int) -> Path:
    """A tiny model with its matrices in a format (in random blocks of it, of the size of the real weights)."""
    config = replace(PRESETS[preset], **sizes)
    rng = np.random.default_rng(3)

    def encode(tensor: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        if name == "F32" or array.shape[1] % format_module(name).BLOCK:
            return "F32", array
        return name, random_rows(name, rng, *array.shape, std=float(array.std()))

    return write_tiny(make_tiny(config, 5), folder / f"{preset}-{name}.gguf", encode)


@contextmanager
def opened(path: Path, **settings: object) -> Iterator[Engine]:
    with open_model(path) as file:
        engine = Engine(file, ContextSettings(**{"context": 400, **F32, **settings}), say=lambda line: None)
        try:
            yield engine
        finally:
            engine.close()


def logits(path: Path, ids: list[int], **settings: object) -> np.ndarray:
    with opened(path, **settings) as engine:
        return engine.forward(engine.new_sequence(), ids, want="all").copy()


def tokens(preset: str, n: int) -> list[int]:
    return [int(i) for i in tiny_tokens(PRESETS[preset], 2, n)]


@pytest.mark.parametrize("preset", PRESETS)
def test_cpu_is_reference_to_the_bit(tmp_path: Path, preset: str) -> None:
    path, ids = write(tmp_path, preset), tokens(preset, 45)
    np.testing.assert_array_equal(logits(path, ids, threads=2), logits(path, ids, backend="reference"))


@pytest.mark.parametrize("name", FORMAT_MODULES)
def test_cpu_is_reference_in_every_format(tmp_path: Path, name: str) -> None:
    path, ids = write(tmp_path, "gemma2", name, n_layers=2), tokens("gemma2", 40)
    wanted = logits(path, ids, backend="reference")
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(logits(path, ids, threads=2), wanted)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_cpu_is_reference_with_every_cache(tmp_path: Path, kind: str) -> None:
    path, ids = write(tmp_path, "gemma2-odd"), tokens("gemma2-odd", 150)
    for other in ("f16", kind):
        settings = {"cache_type_k": kind, "cache_type_v": other}
        np.testing.assert_array_equal(
            logits(path, ids, threads=2, **settings), logits(path, ids, backend="reference", **settings)
        )


@pytest.mark.parametrize(
    ("preset", "name"), [("gemma2", "F32"), ("gemma2", "Q6_K"), ("gemma3", "Q4_0"), ("llama", "BF16")]
)
def test_prefill_chunks_and_threads_give_the_same_bits(tmp_path: Path, preset: str, name: str) -> None:
    path, ids = write(tmp_path, preset, name, n_context=400), tokens(preset, 140)
    whole = logits(path, ids, threads=1)
    for settings in ({"threads": 2}, {"threads": 3, "ubatch": 1}, {"ubatch": 7}, {"ubatch": 64, "batch": 33}):
        np.testing.assert_array_equal(logits(path, ids, **settings), whole, str(settings))


def test_a_batch_of_strangers_gives_each_what_it_gets_alone(tmp_path: Path) -> None:
    """Rows of three sequences, at different places, in one pass; pages in any order."""
    path = write(tmp_path, "gemma2", "Q4_K", n_context=600)
    with opened(path, context=600) as engine:
        alone, parts, sequences = [], [], []
        for i, n in enumerate((150, 3, 31)):
            ids = tokens("gemma2", n + 10 * i)[10 * i :]
            sequence = engine.new_sequence()
            engine.forward(sequence, ids[: n // 2], want="none")
            parts.append((ids[n // 2 :], n // 2))
            sequences.append(sequence)
            other = engine.new_sequence()
            alone.append(engine.forward(other, ids, want="all")[n // 2 :].copy())
            other.truncate(0)
        for sequence, (ids, _) in zip(sequences, parts, strict=True):
            sequence.extend(ids)
        tables = np.zeros((3, max(len(s.table) for s in sequences)), np.int32)
        for row, sequence in zip(tables, sequences, strict=True):
            row[: len(sequence.table)] = sequence.table
        counts = [len(ids) for ids, _ in parts]
        batch = Batch(
            token_ids=np.array([i for ids, _ in parts for i in ids], np.int32),
            positions=np.concatenate([np.arange(first, first + len(ids)) for ids, first in parts]).astype(np.int32),
            sequences=np.repeat(np.arange(3), counts).astype(np.int32),
            page_tables=tables,
            outputs=np.arange(sum(counts), dtype=np.int32),
        )
        np.testing.assert_array_equal(engine.backend.run(batch), np.concatenate(alone))


def test_rows_whose_logits_are_not_wanted_are_still_remembered(tmp_path: Path) -> None:
    path, ids = write(tmp_path, "gemma3"), tokens("gemma3", 30)
    with opened(path) as engine:
        sequence = engine.new_sequence()
        assert engine.forward(sequence, ids[:-1], want="none").shape == (0, engine.config.n_vocab)
        last = engine.forward(sequence, ids[-1:])[0].copy()
    np.testing.assert_array_equal(last, logits(path, ids)[-1])


def test_a_trace_names_every_value_in_order(tmp_path: Path) -> None:
    path, ids = write(tmp_path, "gemma2"), tokens("gemma2", 9)
    traces = {}
    for backend in ("cpu", "reference"):
        seen: list[tuple[str, np.ndarray]] = []
        with opened(path, backend=backend) as engine:
            engine.forward(
                engine.new_sequence(), ids, want="all", trace=lambda n, a, seen=seen: seen.append((n, a.copy()))
            )
        traces[backend] = seen
    assert [name for name, _ in traces["cpu"]] == [name for name, _ in traces["reference"]]
    for (name, got), (_, wanted) in zip(traces["cpu"], traces["reference"], strict=True):
        np.testing.assert_array_equal(got, wanted, name)
    assert {"embedding", "blk.0.attn_norm", "blk.3.ffn_down", "logits"} <= {name for name, _ in traces["cpu"]}


def test_memory_stays_near_the_file_and_the_cache(tmp_path: Path) -> None:
    """The arena holds a few rows' worth of values, however many layers there are."""
    from gemmafile.kernels.arena import plan
    from gemmafile.model.record import record

    few, many = write(tmp_path, "gemma2", n_layers=2), write(tmp_path, "llama", n_layers=12)
    sizes = []
    for path in (few, many):
        with opened(path) as engine:
            sizes.append(sum(plan(record(engine.config, engine.weights))[1]) / engine.config.feed_forward_dim)
    assert max(sizes) < 2 * min(sizes)
