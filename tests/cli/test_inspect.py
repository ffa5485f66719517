"""`gemmafile inspect`: text for people, one JSON document for programs, and a stdout that may go away."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.cli import inspect
from gemmafile.errors import BadFile
from gemmafile.files.gguf_writer import Typed, write_gguf, write_split

METADATA = {
    "general.architecture": "gemma2",
    "general.name": "Tiny",
    "general.license": "gemma",
    "general.license.link": "https://ai.google.dev/gemma/terms",
    "gemma2.block_count": 2,
    "gemma2.attention.layer_norm_rms_epsilon": 1e-6,
    "a.bool": True,
    "bad.floats": [1.5, float("nan"), float("-inf")],
    "bad.float": float("inf"),
    "big": Typed(2**64 - 1, "uint64"),
    "tokenizer.ggml.tokens": [f"<{i}>" for i in range(1000)],
    "not.utf8": [b"ok", b"\xff\xfe"],
    "nested": [[1, 2], ["x"]],
    "escape": "\x1b[2Jcleared\n\u202egnp",
    "tokenizer.chat_template": "{% for m in messages %}\n{{ m.content }}\x1b[31m{% endfor %}",
}
TENSORS = [
    ("token_embd.weight", "Q8_0", (1000, 64), bytes(1000 * 68)),
    ("blk.0.attn_norm.weight", "F32", (64,), bytes(256)),
    ("blk.1.attn_norm.weight", "F32", (64,), bytes(256)),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", METADATA, TENSORS)
    return tmp_path / "tiny.gguf"


def run(*args: object) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.main(parser.parse_args(list(map(str, args))))


def run_json(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    assert run(path, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document: dict[str, Any] = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    return document


def test_json_is_one_document_with_everything(path: Path, capsys: pytest.CaptureFixture[str]):
    document = run_json(capsys, path)
    assert document["architecture"] == "gemma2"
    assert document["n_parameters"] == 64_128
    assert document["n_bytes"] == path.stat().st_size
    assert document["bits_per_weight"] == pytest.approx(8 * (68_000 + 512) / 64_128, abs=1e-3)
    assert document["licence"]["id"] == "gemma"
    assert document["licence"]["notice"] == inspect.GEMMA_NOTICE
    assert document["chat_template"] == METADATA["tokenizer.chat_template"]
    assert document["formats"] == [
        {"format": "Q8_0", "n_tensors": 1, "n_weights": 64_000, "n_bytes": 68_000, "bits_per_weight": 8.5},
        {"format": "F32", "n_tensors": 2, "n_weights": 128, "n_bytes": 512, "bits_per_weight": 32.0},
    ]
    tensor = document["tensors"][0]
    assert (tensor["name"], tensor["shape"], tensor["format"]) == ("token_embd.weight", [1000, 64], "Q8_0")
    assert path.read_bytes()[tensor["offset"] :].startswith(bytes(68_000))
    assert len(document["tensors"]) == 3


def test_json_values_are_finite_and_arrays_are_counted(path: Path, capsys: pytest.CaptureFixture[str]):
    fields = run_json(capsys, path)["metadata"]
    assert list(fields) == list(METADATA)
    assert fields["gemma2.block_count"] == {"type": "uint32", "value": 2}
    assert fields["big"] == {"type": "uint64", "value": 2**64 - 1}
    assert fields["bad.float"] == {"type": "float32", "value": "inf"}
    assert fields["bad.floats"] == {"type": "array of float32", "count": 3, "first": [1.5, "nan", "-inf"]}
    tokens = fields["tokenizer.ggml.tokens"]
    assert (tokens["count"], tokens["first"]) == (1000, [f"<{i}>" for i in range(inspect.SHOWN_ITEMS_JSON)])
    assert fields["not.utf8"]["first"] == ["ok", "\\xff\\xfe"]
    assert fields["nested"]["first"] == [{"count": 2, "first": [1, 2]}, {"count": 1, "first": ["x"]}]


def test_text_shows_the_model_and_keeps_the_terminal_safe(path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(path) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "architecture gemma2",
        "parameters 64.1 K (64,128), 8.55 bits each",
        "licence gemma · https://ai.google.dev/gemma/terms",
        f"notice {inspect.GEMMA_NOTICE}",
        "gemma2.attention.layer_norm_rms_epsilon float32 1e-06",
        "a.bool bool true",
        "tokenizer.ggml.tokens array of string 1000: '<0>', '<1>', '<2>', '<3>', ...",
        "nested array of array 2: [2: 1, 2], [1: 'x']",
        "escape string \\x1b[2Jcleared\\n\\u202egnp",
        "Q8_0 1 64,000 68,000 8.5",
        "{{ m.content }}\\x1b[31m{% endfor %}",
    ):
        assert line in lines
    assert any(line.startswith("token_embd.weight 1000 x 64 Q8_0 68,000 ") for line in lines)
    assert all(line.isprintable() for line in text.splitlines())


def test_long_values_are_shortened_in_text_and_whole_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_gguf(tmp_path / "a.gguf", {"long": "x" * 5000}, [])
    run(tmp_path / "a.gguf")
    assert max(map(len, capsys.readouterr().out.replace(str(tmp_path), "").splitlines())) < 120
    assert run_json(capsys, tmp_path / "a.gguf")["metadata"]["long"]["value"] == "x" * 5000


def test_a_bare_file_has_nothing_to_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_gguf(tmp_path / "a.gguf", {"general.architecture": 5}, [])
    document = run_json(capsys, tmp_path / "a.gguf")
    assert (document["architecture"], document["bits_per_weight"], document["licence"]["notice"]) == (None, None, None)
    assert run(tmp_path / "a.gguf") == 0
    assert "architecture  (not in the file)" in capsys.readouterr().out


def test_only_a_gemma_carries_the_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for architecture, notice in (("gemma", True), ("gemma3", True), ("llama", False)):
        write_gguf(tmp_path / "a.gguf", {"general.architecture": architecture}, [])
        assert (run_json(capsys, tmp_path / "a.gguf")["licence"]["notice"] is not None) == notice


def test_a_split_model_is_described_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    paths = write_split(tmp_path / "tiny", METADATA, TENSORS, 2)
    document = run_json(capsys, paths[0])
    assert document["parts"] == [str(path) for path in paths]
    assert [tensor["file"] for tensor in document["tensors"]] == [str(paths[0])] * 2 + [str(paths[1])]
    run(paths[0])
    assert "GGUF 3, 2 parts" in capsys.readouterr().out


def test_no_model_is_an_error_and_stdout_stays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(BadFile, match="is a PNG image"):
        run(tmp_path / "a.png")
    assert capsys.readouterr().out == ""


def test_an_output_without_unicode_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_gguf(tmp_path / "a.gguf", {"general.name": "Kätzchen 🐈", "n": np.float32(1)}, [])
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run(tmp_path / "a.gguf") == 0
    assert run(tmp_path / "a.gguf", "--json") == 0
    stdout.seek(0)
    text = stdout.read()
    assert "K\\xe4tzchen \\U0001f408" in text
    assert json.loads(text[text.index("{") :])["name"] == "Kätzchen 🐈"


PROGRAM = """
import argparse, sys
from gemmafile.cli import inspect
from gemmafile.errors import GemmafileError
parser = argparse.ArgumentParser()
inspect.add_arguments(parser)
try:
    sys.exit(inspect.main(parser.parse_args()))
except GemmafileError as error:
    sys.exit(f"gemmafile: {error}")
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def start(stdout: Any, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, args)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path):
    big = {f"key.{i}": "x" * 1000 for i in range(1000)}  # more than a pipe holds
    write_gguf(tmp_path / "a.gguf", big, [])
    process = start(subprocess.PIPE, tmp_path / "a.gguf", "--json")
    assert process.stdout is not None
    assert process.stdout.read(1) == "{"
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(20)) == ("", 0)
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(path: Path):
    with open("/dev/full", "w") as full:
        process = start(full, path)
        _, stderr = process.communicate(timeout=20)
    assert (stderr, process.returncode) == ("gemmafile: stdout: cannot be written: No space left on device\n", 1)


def test_a_closed_stdout_is_no_error(path: Path):
    command = ["sh", "-c", f'exec "{sys.executable}" -c "$0" "$1" >&-', PROGRAM, str(path)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=20, check=False, env=ENVIRONMENT)
    assert (done.stderr, done.returncode) == ("", 0)
