"""compare.py: it names the first tensor that differs, and says so with its exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tools import compare
from tools.make_tiny import PRESETS, make_tiny, write_tiny

NAMES = ("embedding", "blk.0.attn_norm", "blk.0.attn_q", "logits")


def run(wrong: str = "", by: float = 0.0) -> Iterator[tuple[str, np.ndarray]]:
    for seed, name in enumerate(NAMES):
        value = np.random.default_rng(seed).normal(size=(3, 16)).astype(np.float32)
        if wrong and NAMES.index(name) >= NAMES.index(wrong):
            value[1, 2] += by
        yield name, value


def test_equal_runs_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.compare(run(), run(), 1e-6, show_all=False)
    assert "3 tensors compared, all within 1e-06" in capsys.readouterr().out


@pytest.mark.parametrize("by", [0.5, np.nan])
def test_the_first_tensor_that_differs_is_named(by: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert not compare.compare(run("blk.0.attn_norm", by), run(), 1e-3, show_all=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("blk.0.attn_norm: ")
    assert not any(line.startswith("blk.0.attn_q") for line in lines)


def test_logits_alone_can_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert not compare.compare(run("logits", 0.5), run(), 1e-3, show_all=False)
    assert "all within" in capsys.readouterr().out


def test_two_backends_agree_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny(make_tiny(PRESETS["gemma3"], 5), tmp_path / "tiny.gguf")
    monkeypatch.setattr(sys, "argv", ["compare", "cpu", "reference", "--model", str(path), "--tokens", "2,9,77,300"])
    assert compare.main() == 0, capsys.readouterr().out


def test_a_run_that_is_not_possible_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", "gpu", "reference", "--model", "gemma"])
    assert compare.main() == 2
    assert capsys.readouterr().err.startswith("compare: 'gpu' is not one of cpu, reference")
