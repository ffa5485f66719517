"""The README is run: its commands, its Python, its make targets, its files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.make_tiny import PRESETS, make_tiny, write_tiny

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines() if line.strip()]
GEMMAFILE_COMMANDS = [line for line in COMMANDS if line.startswith("gemmafile ")]
PROGRAMS = [text for language, text in BLOCKS if language == "python"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip


def test_there_is_something_to_check() -> None:
    assert GEMMAFILE_COMMANDS
    assert PROGRAMS


@pytest.mark.parametrize("line", GEMMAFILE_COMMANDS, ids=lambda line: line.partition("#")[0].strip())
def test_commands_run(line: str, smollm2_path: Path, tmp_path: Path) -> None:
    files = {"model.gguf": str(smollm2_path), "small.gguf": str(tmp_path / "small.gguf")}
    if "original.gguf" in line:  # not quantised yet
        files["original.gguf"] = str(write_tiny(make_tiny(PRESETS["gemma2"], 1), tmp_path / "original.gguf"))
    words = [files.get(word, word) for word in shlex.split(line, comments=True)[1:]]
    done = run([sys.executable, "-m", "gemmafile", *words])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if "-p" in words:
        assert done.stdout.strip()


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run(program: str, smollm2_path: Path, tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text(
        "import warnings\nwarnings.simplefilter('error')\n" + program.replace("model.gguf", str(smollm2_path))
    )
    done = run([sys.executable, str(script)])
    assert done.returncode == 0, done.stderr


def test_make_targets_exist() -> None:
    named = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= named <= rules


def test_files_exist() -> None:
    for name in re.findall(r"`((?:docs|tools|tests|src)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


@pytest.mark.skipif(os.name != "posix", reason="the scripts are for a POSIX shell")
@pytest.mark.parametrize("script", ["tools/setup_venv.sh", "tools/demo.sh"])
def test_scripts_are_plain_sh(script: str) -> None:
    assert run(["sh", "-n", script]).returncode == 0
