"""The command itself: help at once, every error one line and its exit code, pipes that close, ctrl-c."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

import gemmafile
from gemmafile.cli.main import COMMANDS
from gemmafile.files.gguf_writer import write_gguf
from tests.cli.conftest import Runner
from tests.tiny import write_small

ROOT = Path(__file__).resolve().parent.parent.parent
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gemmafile", *map(str, words)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **options.pop("env", {})}
    return subprocess.Popen(command, text=True, env=environ, **{**pipes, **options})


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["perplexity", "-h"], ["run", "-m", "x", "-n", "1", "-h"]]
)
def test_help_is_instant_and_loads_nothing_heavy(words: list[str]) -> None:
    """0.03 to 0.06 s on an idle machine; the bound leaves room for a busy one."""
    program = (
        "import sys; from gemmafile.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'numpy', 'numba', 'llvmlite', 'jinja2', 'rich', 'platformdirs'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else code)"
    )
    times = []
    for _ in range(3):
        start_s = time.perf_counter()
        line = [sys.executable, "-c", program, *words]
        done = subprocess.run(line, check=False, capture_output=True, text=True, cwd=ROOT / "src")
        times.append(time.perf_counter() - start_s)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: gemmafile")
        assert done.stderr == ""
    assert min(times) < 0.5


def test_importing_the_package_loads_nothing() -> None:
    program = "import sys, gemmafile; print(sorted({'numpy', 'dataclasses', 'gemmafile.settings'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT / "src", check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_the_packages(command: Runner) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert gemmafile.__version__ == version
    assert command("--version").out == command("version").out == f"gemmafile {version}\n"


def test_help_lists_every_command(command: Runner) -> None:
    done = command()
    assert done.code == 0
    assert done.out == command("--help").out
    for name in COMMANDS:
        assert f"  {name} " in done.out


def test_an_unknown_command_names_the_nearest(command: Runner) -> None:
    done = command("rnu", "model.gguf")
    assert done.code == 2
    assert done.err == "gemmafile: there is no command 'rnu' (did you mean run?); gemmafile --help lists them\n"


def test_commands_on_argparse_report_as_the_others_do(command: Runner, tiny_path: Path) -> None:
    assert command("inspect", tiny_path).out.startswith("file")
    done = command("inspect")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    done = command("inspect", tiny_path, "--jsn")
    assert (done.code, done.out) == (2, "")
    assert "--jsn (did you mean --json?)" in done.err


def bad_files(folder: Path) -> dict[str, Path]:
    """A file for each way of not being a model."""
    (folder / "picture.png").write_bytes(PNG)
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "cut.gguf").write_bytes(write_small(folder / "whole.gguf").read_bytes()[:5000])
    write_gguf(folder / "bert.gguf", {"general.architecture": "bert"}, [])
    write_gguf(folder / "no-keys.gguf", {"general.architecture": "gemma2"}, [])
    (folder / "two\nlines.gguf").write_bytes(PNG)
    names = (
        "picture.png",
        "empty.gguf",
        "cut.gguf",
        "bert.gguf",
        "no-keys.gguf",
        "missing.gguf",
        "two\nlines.gguf",
        ".",
    )
    return {name: folder / name for name in names}


EXPECTED = {
    "picture.png": "PNG", "empty.gguf": "empty", "cut.gguf": "cut.gguf", "bert.gguf": "'bert'", "no-keys.gguf": "",
    "missing.gguf": "no such file", "two\nlines.gguf": "PNG", ".": "directory",
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("verb", [["run"], [], ["perplexity", "-f", os.devnull]])
def test_a_file_that_is_no_model_is_one_line(command: Runner, tmp_path: Path, name: str, verb: list[str]) -> None:
    path = bad_files(tmp_path)[name]
    done = command(*verb, *(["-m", path] if not verb else [path]), *(["-p", "hi"] if "perplexity" not in verb else []))
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("gemmafile: ")
    assert done.err.count("\n") == 1
    assert EXPECTED[name] in done.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-p", "hi"], 2),  # no model
        (["-p", "hi", "-m"], 2),
        (["-m", "MODEL", "--nonsense"], 2),
        (["-m", "MODEL", "-c", "-5", "-p", "x"], 2),
        (["-m", "MODEL", "-t", "5000", "-p", "x"], 2),
        (["-m", "MODEL", "--top-p", "7", "-p", "x"], 2),
        (["-m", "MODEL", "--logit-bias", "999999+1", "-p", "x"], 2),
        (["-m", "MODEL", "--override-kv", "nonsense", "-p", "x"], 2),
        (["-m", "MODEL", "--rope-scale", "0", "-p", "x"], 2),
        (["-m", "MODEL", "--gpu", "nvidia", "-p", "x"], 1),
        (["-m", "MODEL", "--gpu", "amd", "-p", "x"], 1),
        (["-m", "MODEL", "--gpu", "metal", "-p", "x"], 1),
        (["-m", "MODEL", "-f", "missing.txt"], 1),
        (["-m", "MODEL", "-f", "."], 1),
        (["-m", "MODEL", "-ngl", "many", "-p", "x"], 2),
        (["-m", "MODEL", "-p", "x", "--chat-template-file", "missing.jinja", "-cnv"], 1),
        (["perplexity", "MODEL"], 2),
        (["perplexity", "MODEL", "-f", "missing.txt"], 1),
        (["perplexity", "MODEL", "-f", os.devnull, "-c", "0"], 2),
        (["perplexity", "MODEL", "-f", os.devnull, "--chunks", "0"], 2),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(command: Runner, tiny_path: Path, words: list[str], code: int) -> None:
    backend = [] if "perplexity" in words else ["--backend", "reference"]
    done = command(*[tiny_path if word == "MODEL" else word for word in words], *backend)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("gemmafile: ")
    assert done.err.count("\n") == 1


def test_a_bug_is_one_line_and_a_traceback_only_when_asked(
    command: Runner, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr("gemmafile.cli.run.make_plan", fail)
    done = command("-m", tiny_path, "-p", "x")
    assert done.code == 70
    assert "this is a bug in gemmafile: ZeroDivisionError: by accident" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in command("-m", tiny_path, "-p", "x", "-v").err
    monkeypatch.setenv("GEMMAFILE_DEBUG", "1")
    assert "Traceback" in command("-m", tiny_path, "-p", "x").err


def test_no_memory_is_no_bug(command: Runner, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("gemmafile.cli.run.make_plan", fail)
    done = command("-m", tiny_path, "-p", "x")
    assert (done.code, done.err) == (1, "gemmafile: out of memory: give a smaller context (-c), or a smaller model\n")


LONG = ("--backend", "reference", "-c", 4096, "--ignore-eos", "-p", "the", "--temp", 0)


def test_a_reader_that_goes_away_ends_the_run_quietly(tiny_path: Path) -> None:
    process = start("run", tiny_path, *LONG)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(3) == "the"
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert [line for line in process.stderr if "4096" not in line] == []
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line(tiny_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("run", tiny_path, "--backend", "reference", "-p", "the", "-n", 2, "-c", 64, stdout=full)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "gemmafile: reading or writing: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams_are_empty_ones(tiny_path: Path, closed: str) -> None:
    words = f"{sys.executable} -m gemmafile run {tiny_path} --backend reference -c 64 -n 2 -p the {closed}"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(["sh", "-c", words], check=False, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the") or closed == ">&-"


def test_where_stderr_is_full_the_exit_code_says_it_alone(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("run", tmp_path / "missing.gguf", stderr=full)
        assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 1


def test_ctrl_c_ends_a_completion(tiny_path: Path) -> None:
    process = start("run", tiny_path, *LONG)
    assert process.stdout is not None
    process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
