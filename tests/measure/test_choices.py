"""Multiple choices: files, scores by their definition, and llama-perplexity's lines."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from gemmafile.errors import GemmafileError
from gemmafile.measure.choices import (
    Tally,
    Task,
    read_hellaswag,
    read_multiple_choice,
    read_winogrande,
    score_task,
)
from gemmafile.model_api import Model
from tests.cli.conftest import Runner
from tests.oracles import llamacpp
from tests.tiny import write_small

ENDINGS = ["picks up the gate.", "sings a long song to it", "paints", "leaves the wood in the rain, and goes home"]
HELLASWAG = "".join(
    f"Mending {i}: A man looks at gate number {i}. He\n{i % 4}\n"
    + "".join(f"{ending} {i}\n" for ending in (*ENDINGS[i % 2 :], *ENDINGS[: i % 2]))
    for i in range(9)
)
WINOGRANDE = "".join(
    f'{i},"The post, number {i}, did not fit the hole because the _ was too wide that day.",post,hole,{i % 2 + 1}\n'
    for i in range(7)
)


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


def answers(values: list[str], right: int) -> bytes:
    labels = [int(i == right) for i in range(len(values))]
    return struct.pack("<I", len(values)) + b"".join(map(text, values)) + struct.pack(f"<{len(values)}i", *labels)


def multiple_choice() -> bytes:
    tasks = [
        text(f"What is done with hinge {i}?") + answers(ENDINGS[: 2 + i % 3], i % 2) + answers([], 0) for i in range(6)
    ]
    at = np.cumsum([4 + 4 * len(tasks), *map(len, tasks[:-1])])
    return struct.pack(f"<I{len(tasks)}I", len(tasks), *at.tolist()) + b"".join(tasks)


def test_tasks_are_read() -> None:
    tasks = read_hellaswag(HELLASWAG)
    assert len(tasks) == 9
    assert {task.texts[0].split(":")[0] for task in tasks} == {f"Mending {i}" for i in range(9)}
    assert all(len(task.texts) == 4 for task in tasks)
    (task, *_) = read_winogrande(WINOGRANDE)
    assert task.texts[1].startswith("The post, number 0, did not fit the hole because the hole was too wide")
    assert task.right == {0}
    assert task.scored_after is not None
    assert task.scored_after[0].endswith("because the post")
    tasks = read_multiple_choice(multiple_choice())
    assert [len(task.texts) for task in tasks] == [2, 3, 4, 2, 3, 4]
    assert tasks[1].right == {1}
    assert len(read_multiple_choice(multiple_choice(), 4)) == 4
    assert len(read_hellaswag(HELLASWAG, 3)) == 3
    assert read_hellaswag(HELLASWAG, 3) == read_hellaswag(HELLASWAG)[:3]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_scores_are_mean_log_likelihoods(architecture: str, tmp_path: Path) -> None:
    path = write_small(tmp_path / "small.gguf", architecture)
    task = Task(("the gate is open now", "the gate is shut", "the post"), frozenset([0]))
    with Model.open(path, context=128) as model:
        scores = score_task(model, task)
        sequences = [model.tokenize(t) for t in task.texts]
        n = next(i for i in range(99) if len({ids[i] for ids in sequences}) > 1)
        for ids, score in zip(sequences, scores, strict=True):
            logits = model.logits(ids).astype(np.float64)
            logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            first = max(n, 1)
            expected = np.mean([logp[j - 1, ids[j]] for j in range(first, len(ids))])
            assert score == pytest.approx(expected, abs=1e-4)


def test_a_text_that_is_the_beginning_of_another_is_no_answer(tmp_path: Path) -> None:
    with Model.open(write_small(tmp_path / "small.gguf"), context=64) as model:
        assert score_task(model, Task(("the gate", "the gate is open"), frozenset([0])))[0] == -np.inf


def test_intervals() -> None:
    tally = Tally(10, 7, 40)
    low, high = tally.interval()
    assert (low, high) == pytest.approx((0.39678, 0.89221), abs=1e-4)  # Wilson's, from tables
    assert Tally(1, 1, 4).interval()[1] == pytest.approx(1.0)


def test_commands(command: Runner, tmp_path: Path) -> None:
    model = write_small(tmp_path / "small.gguf", "llama")
    (tmp_path / "h").write_text(HELLASWAG)
    (tmp_path / "w").write_text(WINOGRANDE)
    (tmp_path / "m").write_bytes(multiple_choice())
    done = command("perplexity", model, "--hellaswag", "-f", tmp_path / "h", "--hellaswag-tasks", 5)
    assert (done.code, len(done.out.splitlines())) == (0, 6)
    done = command("perplexity", model, "--winogrande", "-f", tmp_path / "w")
    assert done.out.splitlines()[-1].startswith("Final Winogrande score(7 tasks): ")
    done = command("perplexity", model, "--multiple-choice", "-bf", tmp_path / "m")
    assert re.search(r"Final result: \d+\.\d{4} \+/- \d+\.\d{4}\nRandom chance: 33\.3333", done.out)


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("--hellaswag", b"one\ntwo\n", "six lines a task"),
        ("--hellaswag", b"one\n7\na\nb\nc\nd\n", "expected the number of the right ending"),
        ("--hellaswag", b"", "six lines a task"),
        ("--winogrande", b"1,no gap here,a,b,1\n", "row 1: expected"),
        ("--winogrande", b"\n", "no task"),
        ("--multiple-choice", b"\x01\x00", "is damaged"),
        ("--multiple-choice", struct.pack("<II", 1, 8) + text("Q") + struct.pack("<I", 999), "has 999 answers"),
        ("--multiple-choice", multiple_choice()[:-40], "is damaged"),
    ],
)
def test_damaged_files(flag: str, content: bytes, message: str, command: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    done = command("perplexity", write_small(tmp_path / "small.gguf"), flag, "-f", tmp_path / "file")
    assert done.code == 1
    assert message in done.err
    with pytest.raises(GemmafileError):
        read_multiple_choice(b"")


@pytest.mark.oracle
def test_lines_are_llama_cpps(command: Runner, tmp_path: Path) -> None:
    judge = llamacpp.find()
    if judge is None:
        pytest.skip("no native llama.cpp (tools/build_llamacpp.py)")
    model = write_small(tmp_path / "small.gguf", "llama")
    (tmp_path / "h").write_text(HELLASWAG)
    (tmp_path / "w").write_text(WINOGRANDE + "\n\n")  # llama.cpp leaves out the last line
    (tmp_path / "m").write_bytes(multiple_choice())
    exact = ["-ctk", "f32", "-ctv", "f32", "-c", "512"]
    for words in (
        ["--hellaswag", "-f", "h", "--hellaswag-tasks", "7"], ["--winogrande", "-f", "w"],
        ["--winogrande", "-f", "w", "--winogrande-tasks", "4"], ["--multiple-choice", "-bf", "m"],
        ["--multiple-choice", "-bf", "m", "--multiple-choice-tasks", "3"],
    ):  # fmt: skip
        words = [str(tmp_path / word) if word in "hwm" else word for word in words]
        ours = command("perplexity", model, *words, *exact).out
        line = re.compile(r"^(\d+)\t(.*)$", re.MULTILINE)
        judged = ["-m", str(model), *words, *exact, "-fa", "off", "-np", "8", "-t", "1"]
        for _ in range(5):  # its log is written by a thread: the last lines may be missing, on a busy machine most
            theirs = judge.run("llama-perplexity", *judged)
            pairs = list(zip(line.findall(ours), line.findall(theirs), strict=False))
            if len(pairs) >= 3:
                break
        assert len(pairs) >= 3, theirs
        for (number, mine), (other_number, other) in pairs:
            assert number == other_number
            assert [float(x) for x in re.findall(r"-?\d+\.?\d*", mine)] == pytest.approx(
                [float(x) for x in re.findall(r"-?\d+\.?\d*", other)], abs=2e-4
            )
