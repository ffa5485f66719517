"""The short way of choosing gives what the long way gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemmafile.engine.sampler import Sampler
from gemmafile.engine.shortlist import likeliest_pairs
from gemmafile.kernels.backend import PEAK_GROUP
from gemmafile.settings import SamplingSettings
from tests.engine.crowd import open_preset

N = 40 * PEAK_GROUP


def peaks_of(logits: np.ndarray) -> np.ndarray:
    groups = logits.reshape(-1, PEAK_GROUP)
    return np.where(np.isfinite(groups).all(axis=1), groups.max(axis=1), np.float32(np.nan))


def rows(kind: str) -> np.ndarray:
    noise = np.random.default_rng(3).standard_normal((20, N)).astype(np.float32) * 3
    return {"wide": noise, "tied": np.round(noise), "flat": noise * 0, "steps": np.floor(noise * 4) / 4}[kind]


@pytest.mark.parametrize("kind", ["wide", "tied", "flat", "steps"])
def test_the_likeliest_are_found_by_peaks(kind: str) -> None:
    for row in rows(kind):
        order = sorted(range(N), key=lambda i: (-row[i], i))
        for n in (1, 2, 39, 40, 100):
            expected = [(float(row[i]), i) for i in order[:n]]
            assert likeliest_pairs(row, n, peaks_of(row)) == likeliest_pairs(row, n, None) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 5, "top_p": 0.5, "min_keep": 3},
        {"samplers": ("top_k", "temperature", "min_p"), "temperature": 2.5},
        {"ignore_eos": True, "logit_bias": {5: 40.0, 6: 1.0, 7: -9.0}},
        {"temperature": 0.0, "logit_bias": {5: -np.inf, 9: 3.0}},
        {"top_k": 128, "top_p": 1.0, "min_p": 0.0},
    ],
)
@pytest.mark.parametrize("kind", ["wide", "tied"])
def test_the_short_way_chooses_as_the_long(settings: dict[str, object], kind: str) -> None:
    samplers = [Sampler(SamplingSettings(seed=5, **settings), N, eog_ids=[3]) for _ in range(3)]  # type: ignore[arg-type]
    assert samplers[0]._short is not None
    samplers[2]._short = None
    for row in rows(kind):
        before = row.copy()
        for _ in range(10):
            tokens = [
                sampler.sample(row, peaks).token_id
                for sampler, peaks in zip(samplers, (peaks_of(row), None, None), strict=True)
            ]
            assert len(set(tokens)) == 1
        np.testing.assert_array_equal(row, before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_unusable_numbers_are_said_as_ever(value: float) -> None:
    row = rows("wide")[0].copy()
    row[777] = value
    assert likeliest_pairs(row, 5, peaks_of(row)) is None
    assert likeliest_pairs(row, 1, peaks_of(row)) is None
    with pytest.raises(Exception, match="no usable numbers"):
        Sampler(SamplingSettings(), N).sample(row, peaks_of(row))


def test_a_backends_peaks_are_those_of_its_logits(tmp_path: Path) -> None:
    engine = open_preset(tmp_path, "gemma2", sizes={"n_vocab": 5 * PEAK_GROUP}, threads=2)
    logits = engine.forward(engine.new_sequence(), [5, 6, 7, 8], want="all")
    found = engine.backend.peaks(4)
    assert found is not None
    np.testing.assert_array_equal(found, peaks_of(logits.reshape(-1)).reshape(4, -1))
    engine.forward(engine.new_sequence(), [5], trace=lambda name, value: None)
    assert engine.backend.peaks(1) is None, "a traced pass has none"
    engine.close()
