"""Embeddings are the hidden state that the output matrix multiplies, pooled: in any chunks, beside anyone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gemmafile.engine.engine import Engine
from gemmafile.engine.jobs import Embedding, End, Job
from gemmafile.engine.scheduler import Scheduler
from gemmafile.settings import SamplingSettings
from tests.engine.crowd import Crowd, Table, answer_alone, open_preset


def ids_of(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(4, 400) for _ in range(n)]


def hidden_of(engine: Engine, token_ids: list[int]) -> np.ndarray:
    """float32[T, E]: what a trace of one pass shows after the last norm."""
    seen: dict[str, np.ndarray] = {}
    sequence = engine.new_sequence()
    engine.forward(sequence, token_ids, want="all", trace=lambda name, value: seen.__setitem__(name, value.copy()))
    sequence.truncate(0)
    return seen["output_norm"]


@pytest.mark.parametrize("preset", ["gemma2", "llama"])
def test_pooled_rows_are_the_models(tmp_path: Path, preset: str) -> None:
    whole = open_preset(tmp_path, preset, context=256)
    texts = {i: ids_of(i, n) for i, n in enumerate([1, 40, 17])}
    rows = {i: hidden_of(whole, ids) for i, ids in texts.items()}
    expected = {
        "mean": {i: h.astype(np.float64).cumsum(axis=0)[-1] / len(h) for i, h in rows.items()},
        "cls": {i: h[0] for i, h in rows.items()},
        "last": {i: h[-1] for i, h in rows.items()},
    }
    found: dict[str, list[bytes]] = {}
    for backend in ("cpu", "reference"):
        engine = open_preset(tmp_path, preset, n_sequences=6, context=256, ubatch=16, backend=backend)
        table = Table(engine.config.n_vocab, ())
        everyone = Crowd(Scheduler(engine, table, n_slots=6))
        beside = Job(99, ids_of(9, 20), SamplingSettings(temperature=0.0), n_predict=4)
        everyone.submit(beside)
        for k, pooling in enumerate(expected):
            everyone.submit(*(Job(10 * k + i, ids, pooling=pooling) for i, ids in texts.items()))
        everyone.finish()
        assert everyone.tokens == {99: answer_alone(engine, beside, table)}
        for k, pooling in enumerate(expected):
            for i in texts:
                (values,) = (e.values for e in everyone.events[10 * k + i] if isinstance(e, Embedding))
                found.setdefault(f"{pooling} {i}", []).append(values)
                assert np.frombuffer(values, "<f4").tolist() == expected[pooling][i].astype(np.float32).tolist()
                end = everyone.ends[10 * k + i]
                assert isinstance(end, End)
                assert (end.reason, end.timings.prompt_n, end.timings.predicted_n) == ("stop", len(texts[i]), 0)
        assert engine.pages.n_pages - engine.pages.n_free == everyone.scheduler.prefixes.n_idle, (
            "nothing is kept of them"
        )
        engine.close()
    assert all(cpu == reference for cpu, reference in found.values())
    whole.close()
