"""Divergence from a base: its file, which is llama.cpp's, and the figures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from gemmafile.errors import BadFile
from gemmafile.measure.divergence import BaseWriter, Divergence, Summary, open_base, pack_rows, row_numbers
from tests.cli.conftest import Runner
from tests.oracles import llamacpp
from tests.tiny import write_small

TEXT = Path(__file__).resolve().parent.parent / "models" / "text.txt"
WORDS = ("-c", 64, "--chunks", 5, "-ctk", "f32", "-ctv", "f32")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def draw(n: int, n_vocab: int, seed: int, std: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, n_vocab)) * std).astype(np.float32)


@pytest.mark.parametrize("n_vocab", [7, 8, 400])
def test_rows_keep_log_probabilities_to_16_bits(n_vocab: int) -> None:
    logits = draw(5, n_vocab, 1, 4.0)
    logits[0, 2] = 60  # all others are more than 16 below
    rows = pack_rows(logits)
    assert rows.shape == (5, row_numbers(n_vocab))
    scale, lowest = np.ascontiguousarray(rows[:, :4]).view("<f4").T[:, :, None]
    kept = scale * rows[:, 4 : 4 + n_vocab] + lowest
    exact = log_softmax(logits)
    exact = np.maximum(exact, exact.max(axis=1, keepdims=True) - 16)
    np.testing.assert_allclose(kept, exact, atol=16 / 65535)


def test_equal_logits_have_a_row_too() -> None:
    rows = pack_rows(np.full((1, 6), 3.5, np.float32))
    assert not rows[0, 4:].any()
    assert np.ascontiguousarray(rows[0, :4]).view("<f4").tolist() == pytest.approx([0, -np.log(6)])


def measured(n: int = 300, n_vocab: int = 50, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base, ids = draw(n, n_vocab, 2), np.random.default_rng(3).integers(0, n_vocab, n)
    return base, base + draw(n, n_vocab, 4, noise), ids


def summary_of(base: np.ndarray, logits: np.ndarray, ids: np.ndarray) -> Summary:
    found = Divergence()
    found.add(logits, pack_rows(base), ids.tolist())
    return found.summary()


def test_figures_are_those_of_the_definition() -> None:
    base, logits, ids = measured()
    p, q = log_softmax(base), log_softmax(logits)
    rows = np.arange(len(ids))
    s = summary_of(base, logits, ids)
    kld = (np.exp(p) * (p - q)).sum(axis=1)
    np.testing.assert_allclose(s.kld, kld, atol=2e-4)
    assert s.divergence().value == pytest.approx(kld.mean(), abs=5e-5)
    assert s.divergence().error == pytest.approx(kld.std() / np.sqrt(len(ids) - 1), rel=1e-2)
    assert s.perplexity().value == pytest.approx(np.exp(-q[rows, ids].mean()), rel=1e-5)
    assert s.log_ratio().value == pytest.approx((p - q)[rows, ids].mean(), abs=1e-4)
    assert s.top_agreement().value == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean(), abs=0.01)
    differences = np.exp(q[rows, ids]) - np.exp(p[rows, ids])
    assert s.p_diff_rms().value == pytest.approx(np.sqrt((differences**2).mean()), rel=1e-3)


def test_a_model_does_not_diverge_from_itself() -> None:
    base, _, ids = measured()
    s = summary_of(base, base, ids)
    assert abs(s.divergence().value) < 1e-4
    assert s.top_agreement().value > 0.99
    assert abs(s.log_ratio().value) < 1e-4


def test_the_base_and_the_model_end_to_end(command: Runner, tmp_path: Path) -> None:
    model, base = write_small(tmp_path / "small.gguf", "llama", embedding_dim=64), tmp_path / "base"
    done = command("perplexity", model, "-f", TEXT, *WORDS, "--kl-divergence-base", base)
    assert done.code == 0
    perplexity = re.search(r"PPL = (\d+\.\d+)", done.out)
    assert perplexity is not None
    same = command("perplexity", model, "--kl-divergence", "--kl-divergence-base", base, *WORDS[4:])
    assert same.code == 0
    again = re.search(r"Mean PPL\(Q\) +: +(\d+\.\d+)", same.out)
    assert again is not None
    assert float(again[1]) == pytest.approx(float(perplexity[1]), abs=6e-5)
    assert re.search(r"Mean    KLD: +-?0\.0000\d\d ", same.out)
    assert same.out.count(" ± ") > 30
    two = command("perplexity", model, "--kl-divergence", "--kl-divergence-base", base, "--chunks", 2, *WORDS[4:])
    assert "====" not in two.out  # 62 tokens are too few for percentiles


@pytest.mark.oracle
def test_llama_cpp_reads_our_base_and_we_read_theirs(command: Runner, tmp_path: Path) -> None:
    judge = llamacpp.find()
    if judge is None:
        pytest.skip("no native llama.cpp (tools/build_llamacpp.py)")
    model = write_small(tmp_path / "small.gguf", "llama", embedding_dim=64)
    other = write_small(tmp_path / "other.gguf", "llama", embedding_dim=64, feed_forward_dim=64)
    flags = ["-c", "64", "-b", "64", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", "1"]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert command("perplexity", model, "-f", TEXT, *WORDS, "--kl-divergence-base", ours).code == 0
    text = ["-f", str(TEXT), "--chunks", "5"]
    judge.run("llama-perplexity", "-m", str(model), *text, *flags, "--kl-divergence-base", str(theirs))
    assert ours.stat().st_size == theirs.stat().st_size
    a, b = open_base(ours), open_base(theirs)
    np.testing.assert_array_equal(a.chunks, b.chunks)
    assert np.abs(a.rows[..., 4:].astype(int) - b.rows[..., 4:]).max() <= 2
    for base in (ours, theirs):
        words = ["--kl-divergence", "--kl-divergence-base", str(base)]
        mine = command("perplexity", other, *words, *WORDS[4:]).out
        judged = judge.run("llama-perplexity", "-m", str(other), *words, *flags)
        for label in ("Mean PPL(Q) ", "Mean    KLD", "Median  KLD", "RMS Δp", "Same top p", "Maximum KLD"):
            pair = [re.search(rf"{re.escape(label)}[^:]*: +(-?\d+\.\d+)", out) for out in (mine, judged)]
            assert pair[0] is not None, label
            assert pair[1] is not None, label
            assert float(pair[0][1]) == pytest.approx(float(pair[1][1]), rel=1e-3, abs=1e-5), label


def test_damaged_bases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "base"
    with BaseWriter(path, [[1, 2, 3, 4, 5, 6]] * 2, 8) as base:
        base.add(draw(4, 8, 1))
    whole = path.read_bytes()
    assert open_base(path).rows.shape == (2, 2, 12)
    for content, message in (
        (b"", "cannot be read"), (b"GGUF" + whole, "no file of log-probabilities"), (whole[:-1], "was cut off"),
        (whole[:30], "was cut off"), (whole[:8] + bytes(12) + whole[20:], "says it has 0 chunks"),
        (whole[:20] + b"\xff\xff\xff\x7f" + whole[24:], "outside 0 to 7"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(BadFile, match=message):
            open_base(path)


def test_what_cannot_be_is_said(command: Runner, tmp_path: Path) -> None:
    model = write_small(tmp_path / "small.gguf")
    with BaseWriter(tmp_path / "base", [[1, 2, 3, 4]], 8) as base:
        base.add(draw(1, 8, 1))
    for words, message in (
        (["--kl-divergence"], "give its file"),
        (["--kl-divergence", "--kl-divergence-base", tmp_path / "base"], "has probabilities of 8 tokens"),
    ):
        done = command("perplexity", model, *words)
        assert done.code == 2
        assert message in done.err
