"""Damaged models, run: one clear error or an answer, never a crash, a hang or a great appetite."""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemmafile import Model
from gemmafile.errors import GemmafileError
from tests.files.mutate import mutants
from tests.kernels.random_blocks import random_rows
from tests.tiny import SIZES
from tools.make_tiny import PRESETS, make_tiny, write_tiny

MAX_S = 2.0
MAX_GROWTH_KB = 1 << 20
"""Of the whole process, over all mutants."""


def small_model(path: Path, preset: str, name: str) -> bytes:
    config = replace(PRESETS[preset], **{**SIZES, "n_kv_heads": 2, "n_vocab": 320})
    rng = np.random.default_rng(1)

    def encode(tensor: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        return name, random_rows(name, rng, *array.shape, std=float(array.std()))

    return write_tiny(make_tiny(config, 1), path, encode).read_bytes()


def attempt(path: Path) -> tuple[GemmafileError | None, float]:
    """The error, if any, of two tokens generated; and the seconds they took."""
    start = time.monotonic()
    error = None
    try:
        with Model.open(path, threads=1) as model:
            model.generate("Hi there", max_tokens=2, seed=1)
    except GemmafileError as e:
        error = e
    return error, time.monotonic() - start


@pytest.mark.parametrize(("preset", "name"), [("gemma2", "Q4_0"), ("gemma3", "F32"), ("llama", "Q8_0")])
def test_a_damaged_model_is_refused_or_answers(tmp_path: Path, preset: str, name: str, full: bool) -> None:
    sound = small_model(tmp_path / "sound.gguf", preset, name)
    path = tmp_path / "mutant.gguf"
    with Model.open(tmp_path / "sound.gguf", threads=1) as model:  # its kernels are compiled now
        model.generate("Hi there", max_tokens=2, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = answered = 0
    for what, data in mutants(sound, 3334 if full else 100, seed=len(name)):
        path.write_bytes(data)
        error, took_s = attempt(path)
        if took_s >= MAX_S:  # with a cold cache, a format that the mutant alone has was compiled
            error, took_s = attempt(path)
        assert took_s < MAX_S, what
        if error is None:
            answered += 1
        else:
            refused += 1
            assert "\n" not in str(error), what
            assert len(str(error)) < 1000, what
            assert error.exit_code, what
    assert refused > 10
    assert answered > 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KB
