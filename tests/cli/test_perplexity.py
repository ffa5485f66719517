"""`gemmafile perplexity`: llama.cpp's numbers, by its method."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from gemmafile import Model
from gemmafile.measure.perplexity import Score, negative_log_likelihoods
from tests.cli.conftest import Runner
from tests.kernels.test_replay import write as quantised
from tests.oracles import llamacpp
from tests.tiny import write_small

TEXT = Path(__file__).resolve().parent.parent / "models" / "text.txt"
EXACT = ("-ctk", "f32", "-ctv", "f32")

GOLDEN = {
    ("llama", 64): ([986.1983, 956.1936, 958.4429, 999.9178, 1018.3193], 73.79200),
    ("llama", 33): ([1092.0887, 1246.4480, 1213.0173, 1207.5883, 1167.8569], 123.58373),
    ("gemma2", 64): ([957.6559, 1002.3686, 942.9134, 1001.3020, 1007.9988], 85.15291),
    ("gemma2", 33): ([723.7703, 1107.7955, 1160.7976, 1221.5829, 1108.5931], 120.98885),
}
"""Perplexity after each of 5 chunks, and its uncertainty, by llama.cpp (release b11549) for `write_small` models:
llama-perplexity -m MODEL -f tests/models/text.txt -c N --chunks 5 -fa off -ctk f32 -ctv f32 --no-repack -t 1"""

TOLERANCE = {"llama": 1e-6, "gemma2": 2e-4}
"""Relative. llama.cpp reads Gemma's GELU from a table of float16."""


def parse(out: str) -> tuple[list[float], float, float]:
    """Running values, the final one, its uncertainty."""
    line, final = out.splitlines()[:2]
    running = re.findall(r"\[(\d+)\](\d+\.\d{4}),", line)
    assert [int(number) for number, _ in running] == list(range(1, len(running) + 1))
    assert "".join(f"[{number}]{value}," for number, value in running) == line
    last = re.fullmatch(r"Final estimate: PPL = (\d+\.\d{4}) \+/- (\d+\.\d{5})", final)
    assert last is not None
    return [float(value) for _, value in running], float(last[1]), float(last[2])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("architecture", "n_context"), GOLDEN)
def test_numbers_are_llama_cpps(
    command: Runner, tmp_path: Path, architecture: str, n_context: int, backend: str
) -> None:
    path = write_small(tmp_path / "small.gguf", architecture)
    done = command("perplexity", path, "-f", TEXT, "-c", n_context, "--chunks", 5, "--backend", backend, *EXACT)
    assert done.code == 0
    running, final, uncertainty = parse(done.out)
    expected, expected_uncertainty = GOLDEN[architecture, n_context]
    assert running == pytest.approx(expected, rel=TOLERANCE[architecture])
    assert final == running[-1]
    assert uncertainty == pytest.approx(expected_uncertainty, rel=TOLERANCE[architecture])


@pytest.mark.oracle
def test_numbers_are_llama_cpps_on_a_real_model(command: Runner, smollm2_path: Path) -> None:
    """Both round activations to int8, each in its way: the two agree to a percent."""
    judge = llamacpp.find()
    if judge is None:
        pytest.skip("no native llama.cpp (tools/build_llamacpp.py)")
    words = ["-f", str(TEXT), "-c", "256", "--chunks", "4"]
    theirs = judge.run("llama-perplexity", "-m", str(smollm2_path), *words)
    found = re.search(r"(\[1\].*,)\s*\n", theirs)
    assert found is not None, theirs
    running, _, _ = parse(command("perplexity", smollm2_path, *words).out)
    assert running == pytest.approx([float(x) for x in re.findall(r"\](\d+\.\d+),", found[1])], rel=0.01)


def test_it_is_the_mean_over_second_halves(command: Runner, tiny_path: Path) -> None:
    """The definition, from whole logits: BOS in place of each chunk's first token, rows n // 2 to n - 2 scored."""
    n = 50
    values: list[float] = []
    with Model.open(tiny_path, backend="reference", context=n, cache_type_k="f32", cache_type_v="f32") as model:
        ids = model.tokenize(TEXT.read_text().removesuffix("\n"))
        for start in (0, n):
            chunk = ids[start : start + n]
            logits = model.logits([2, *chunk[1:]]).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            values += [-logprobs[j, chunk[j + 1]] for j in range(n // 2, n - 1)]
    done = command("perplexity", tiny_path, "-f", TEXT, "-c", n, "--chunks", 2, "--backend", "reference", *EXACT)
    _, final, uncertainty = parse(done.out)
    assert final == pytest.approx(math.exp(np.mean(values)), abs=1e-3)
    expected = np.std(values) / math.sqrt(len(values) - 1) * math.exp(np.mean(values))
    assert uncertainty == pytest.approx(expected, rel=1e-5)


def test_activations_are_rounded_as_llama_cpp_does_by_default(command: Runner, tmp_path: Path) -> None:
    """And `run` rounds finer: what a file is measured with is said, and either is to be had."""
    path = quantised(tmp_path, "gemma2", "Q8_0", n_layers=2)
    words = ("perplexity", path, "-f", TEXT, "-c", 64, "--chunks", 2, "-v")
    plain, int8, fine = (command(*words, *more) for more in ((), ("--activations", "int8"), ("--activations", "fine")))
    assert (plain.code, plain.out) == (0, int8.out)
    assert fine.out != plain.out
    assert "rounded to 8 bits" in plain.err
    assert "rounded to 8 bits" not in fine.err


@pytest.mark.parametrize("flags", [("-ub", 7), ("-t", 1), ("-t", 2), ("-b", 16)])
def test_how_it_is_computed_changes_no_digit(command: Runner, tiny_path: Path, flags: tuple[object, ...]) -> None:
    words = ("perplexity", tiny_path, "-f", TEXT, "-c", 300, "--chunks", 2)
    assert command(*words, *flags).out == command(*words).out


def test_the_default_chunk_is_512_tokens(command: Runner, tiny_path: Path) -> None:
    done = command("perplexity", tiny_path, "-f", TEXT, "--chunks", 1, "-v")
    assert done.code == 0
    assert "1 chunks of 512" in done.err
    assert done.out == command("perplexity", "-m", tiny_path, "-f", TEXT, "--chunks", 1, "-c", 512).out


def test_a_text_too_short_is_said_with_what_it_takes(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the man said the man said")
    done = command("perplexity", tiny_path, "-f", tmp_path / "short.txt", "-c", 64)
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"gemmafile: the text has \d+ tokens, and a context of 64 needs 128: .*-c \d+\)\n", done.err)
    n = int(done.err.split()[4])
    assert command("perplexity", tiny_path, "-f", tmp_path / "short.txt", "-c", n // 2).code == 0


def test_no_context_is_proposed_for_a_text_that_none_fits(command: Runner, tiny_path: Path) -> None:
    done = command("perplexity", tiny_path, "-f", os.devnull)
    assert done.code == 1
    assert done.err.endswith("give a longer text\n")


def test_a_model_that_cannot_be_worse_has_no_finite_perplexity() -> None:
    score = Score(n=2, nll=2e4, nll_squared=2e8)
    assert score.perplexity == math.inf
    assert math.isnan(Score(n=2, nll=math.nan, nll_squared=math.nan).perplexity)


def test_text_from_stdin(tiny_path: Path) -> None:
    from tests.cli.test_main import start

    process = start("perplexity", tiny_path, "-f", "-", "-c", 32, "--chunks", 1, stdin=-1)
    out, err = process.communicate(TEXT.read_text(), timeout=60)
    assert process.returncode == 0, err
    assert parse(out)


def test_likelihoods_of_extreme_logits() -> None:
    logits = np.array([[0.0, 0.0], [1e4, -1e4], [-1e4, 1e4]], np.float32)
    assert negative_log_likelihoods(logits, [0, 0, 0]).tolist() == [math.log(2), 0.0, 2e4]
