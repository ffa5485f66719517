"""Mixtures for a size: the choice itself, what is measured, and the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.errors import BadSettings
from gemmafile.files.formats import format_by_name
from gemmafile.files.gguf import open_gguf
from gemmafile.kernels import compile
from gemmafile.model_api import Model
from gemmafile.quantize.sensitivity import (
    PROBE,
    ChangedFile,
    Choice,
    Sensitivity,
    divergence,
    measure_sensitivities,
    worth_having,
)
from gemmafile.quantize.target import choose_mix, parse_size
from gemmafile.settings import ContextSettings
from tools.make_tiny import PRESETS, make_tiny, write_tiny

TEXT = Path(__file__).resolve().parent.parent / "models" / "text.txt"

if compile.why_not():
    pytest.skip(f"no compiled kernels: {compile.why_not()}", allow_module_level=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(PRESETS["gemma2"], n_layers=2, query_std=0.6)
    return write_tiny(make_tiny(config, seed=5), tmp_path_factory.mktemp("model") / "model.gguf")


def choice(n_bytes: int, loss: float, name: str = "Q4_K") -> Choice:
    return Choice(format_by_name(name), n_bytes, loss)


def test_only_the_lower_hull_is_worth_having() -> None:
    given = [choice(10, 8.0), choice(20, 7.0), choice(30, 6.9), choice(40, 1.0), choice(40, 2.0), choice(50, 1.5)]
    assert [(c.n_bytes, c.loss) for c in worth_having(given)] == [(10, 8.0), (40, 1.0)]
    assert [(c.n_bytes, c.loss) for c in worth_having([choice(10, 8), choice(20, 4), choice(40, 1)])] == [
        (10, 8), (20, 4), (40, 1),
    ]  # fmt: skip


def test_the_choice_is_the_best_there_is(model: Path) -> None:
    """Against all combinations, for sizes at which a step of the hull ends."""
    rng = np.random.default_rng(1)
    with open_gguf(model) as file:
        names = [name for name in file.tensors if name.endswith(("attn_q.weight", "ffn_up.weight"))]
        kept = sum(t.n_bytes for t in file.tensors.values() if t.name not in names)
        measured = []
        for name in names:
            sizes, losses = np.cumsum(rng.integers(1, 9, 4)), np.sort(rng.random(4))[::-1]
            choices = worth_having([choice(int(s), float(x)) for s, x in zip(sizes, losses, strict=True)])
            measured.append(Sensitivity(name, 1, 0.1, tuple(choices)))
        combinations = np.array(np.meshgrid(*[range(len(m.choices)) for m in measured])).reshape(len(measured), -1).T
        totals = [
            (sum(m.choices[i].n_bytes for m, i in zip(measured, picks, strict=True)),
             sum(m.choices[i].loss for m, i in zip(measured, picks, strict=True)))
            for picks in combinations
        ]  # fmt: skip
        for target in {size for size, _ in totals}:
            mix = choose_mix(file, measured, kept + target)
            assert mix.n_bytes <= kept + target
            best = min(loss for size, loss in totals if size <= mix.n_bytes - kept)
            assert mix.loss <= best * 1.15 + 1e-9
        with pytest.raises(BadSettings, match="are too few"):
            choose_mix(file, measured, kept)


@pytest.mark.parametrize(
    ("word", "n_bytes"), [("16GB", 16 * 10**9), ("900M", 9 * 10**8), ("1.5GiB", 3 * 2**29), ("12345", 12345)]
)
def test_sizes(word: str, n_bytes: int) -> None:
    assert parse_size(word) == n_bytes


@pytest.mark.parametrize("word", ["", "GB", "-3", "4 bits", "1e9"])
def test_what_is_no_size(word: str) -> None:
    with pytest.raises(BadSettings, match="expected a size"):
        parse_size(word)


def test_divergence_by_hand() -> None:
    base, other = np.log(np.array([[0.5, 0.5]], np.float32)), np.log(np.array([[0.25, 0.75]], np.float32))
    assert divergence(base + 3, other)[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-5)
    assert abs(divergence(base, base)[0]) < 1e-7


def test_a_probe_is_the_divergence_of_a_file_made_so(model: Path, tmp_path: Path) -> None:
    """One matrix in the probe's format, in memory and in a file: the same logits, and the loss that was measured."""
    ids = list(range(3, 60))
    settings = ContextSettings(context=64)
    with Model(model, settings) as exact:
        found = {one.name: one for one in measure_sensitivities(exact, [ids], settings)}
        base = exact.logits(ids)
    assert len(found) == 15
    name = "blk.1.ffn_down.weight"
    with Model(model) as other:
        assert isinstance(ChangedFile(other.file, {}).data(name), np.ndarray)
    out = tmp_path / "one.gguf"
    words = ["--tensor-type", f"^{name}={PROBE}", "--tensor-type", ".=F32", str(model), str(out), "Q8_0"]
    assert main(["quantize", "--quiet", *words]) == 0
    with Model(out, settings) as one:
        made = one.logits(ids)
    assert found[name].probed == pytest.approx(divergence(base[8:], made[8:]).mean(), rel=1e-4)
    for one_found in found.values():
        assert one_found.probed > 0
        losses = [c.loss for c in one_found.choices]
        assert losses == sorted(losses, reverse=True)


def test_a_file_of_the_size_asked_for(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--calibration", str(TEXT), "--calibration-tokens", "96"]
    losses = []
    for bits in (3.5, 6.0):
        out = tmp_path / f"{bits}.gguf"
        assert main(["quantize", str(model), str(out), "--target-bpw", str(bits), *words]) == 0
        printed = capfd.readouterr().out
        assert "token_embd.weight" in printed
        with open_gguf(out) as file:
            metadata = file.metadata
            n_bytes = sum(t.n_bytes for t in file.tensors.values())
            assert 0.9 * bits < 8 * n_bytes / sum(t.n_weights for t in file.tensors.values()) <= bits
            names = metadata.get_strings("gemmafile.mix.tensors").to_list()
            formats = metadata.get_strings("gemmafile.mix.formats").to_list()
            assert {name: file.tensors[name].format.name for name in names} == dict(zip(names, formats, strict=True))
            assert len(metadata.get_array("gemmafile.mix.probed_kld")) == len(names)
            losses.append(metadata.get_float("gemmafile.mix.expected_kld"))
        with Model.open(out, context=64) as made:
            assert np.isfinite(made.logits([1, 2, 3])).all()
    assert losses[1] < losses[0]
    out = tmp_path / "size.gguf"
    assert main(["quantize", "--quiet", str(model), str(out), "--target-size", "1.5MB", *words]) == 0
    assert 1.2e6 < out.stat().st_size <= 1.5e6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["IN", "OUT", "--target-bpw", "4"], "--calibration FILE"),
        (["IN", "OUT", "Q4_K_M", "--target-bpw", "4", "--calibration", "TEXT"], "no TYPE"),
        (["IN", "OUT", "--target-bpw", "4", "--target-size", "1G", "--calibration", "TEXT"], "which one?"),
        (["IN", "OUT", "--target-bpw", "0.5", "--calibration", "TEXT", "--calibration-tokens", "40"], "are too few"),
        (["IN", "OUT", "--target-size", "x", "--calibration", "TEXT"], "expected a size"),
        (["IN", "OUT", "--target-bpw", "4", "--calibration", "TEXT", "--calibration-tokens", "3"], "expected 32"),
    ],
)
def test_what_cannot_be_is_said(
    words: list[str], message: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"IN": str(model), "OUT": str(tmp_path / "out.gguf"), "TEXT": str(TEXT)}
    assert main(["quantize", "--quiet", *(places.get(word, word) for word in words)]) != 0
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
