"""Other engines timed on the same file: llama.cpp by its own llama-bench, or by the xllamacpp wheel.

Each runs in a process of its own, and once for each of its settings: what helps it on one model may hurt it on
another, or end it. That one died is an answer too, told with its last words.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gemmafile.errors import BadSettings, GemmafileError, nearest
from gemmafile.kernels.compile import child_environment

TIMEOUT_S = 1800
RIVALS = ("llamacpp",)


class RivalFailed(GemmafileError):
    """A rival ended without an answer; says how."""


@dataclass(frozen=True)
class Task:
    """What a rival is to time: `prompt` tokens read and `predict` tokens made behind `depth` positions; 0: neither."""

    prompt: int
    predict: int
    depth: int
    threads: int


class Rival(Protocol):
    """An engine and its settings, each a name such as "repack 1"."""

    name: str
    where: str

    @property
    def settings(self) -> Sequence[str]: ...

    def run(self, model: Path, task: Task, setting: str) -> dict[str, float]:
        """Tokens a second by kind, "prefill" and "decode". Raises RivalFailed."""


class LlamaBench:
    """llama-bench: one repetition a call, so that calls can take turns with ours."""

    name = "llama.cpp"

    def __init__(self, program: Path):
        self.where = str(program)
        has_repack = "--repack" in _run([self.where, "--help"])
        self.settings = ("repack 1", "repack 0") if has_repack else ("defaults",)

    def run(self, model: Path, task: Task, setting: str) -> dict[str, float]:
        sizes = {"-p": task.prompt, "-n": task.predict, "-d": task.depth, "-t": task.threads, "-r": 1}
        words = [self.where, "-m", str(model), "-o", "json", *(str(word) for pair in sizes.items() for word in pair)]
        if setting.startswith("repack "):
            words += ["--repack", setting.removeprefix("repack ")]
        return _read_tests(_run(words))


class Wheel:
    """llama.cpp in the xllamacpp wheel, by the timings of its server (`llamacpp_wheel.py`)."""

    name = "llama.cpp (xllamacpp)"
    settings = ("repack 1", "repack 0")

    def __init__(self) -> None:
        self.where = "xllamacpp"

    def run(self, model: Path, task: Task, setting: str) -> dict[str, float]:
        words = [str(model), task.prompt, task.predict, task.depth, task.threads, setting.removeprefix("repack ")]
        out = _run([sys.executable, "-m", "gemmafile.bench.llamacpp_wheel", *map(str, words)])
        rates: dict[str, float] = _as_json(out.strip().rpartition("\n")[2])
        return rates


def find_rival(word: str) -> Rival:
    """The engine that --vs names, "llamacpp" or "llamacpp=PATH". Raises BadSettings if it is not here."""
    name, _, path = word.partition("=")
    if name not in RIVALS:
        raise BadSettings(f"--vs is {word!r}, expected llamacpp or llamacpp=PATH{nearest(name, RIVALS)}")
    program = _given_program(Path(path)) if path else _installed_program()
    if program is not None:
        return LlamaBench(program)
    if importlib.util.find_spec("xllamacpp") is not None:
        return Wheel()
    raise BadSettings(
        "--vs llamacpp: there is no llama-bench in .llamacpp/bin or on the PATH and no xllamacpp package; "
        "give its path (--vs llamacpp=PATH)"
    )


def _given_program(path: Path) -> Path:
    for program in (path, path / "llama-bench", path / "bin" / "llama-bench"):
        if program.is_file() and os.access(program, os.X_OK):
            return program.absolute()
    raise BadSettings(f"--vs llamacpp: {path} is no program and holds no llama-bench")


def _installed_program() -> Path | None:
    """llama-bench in $GEMMAFILE_LLAMACPP or .llamacpp, as tools/build_llamacpp.py leaves it, or on the PATH."""
    built = Path(os.environ.get("GEMMAFILE_LLAMACPP") or ".llamacpp") / "bin" / "llama-bench"
    found = str(built) if os.access(built, os.X_OK) else shutil.which("llama-bench")
    return Path(found).absolute() if found else None


def _run(words: list[str]) -> str:
    """stdout of a program. Raises RivalFailed, with the end of what it said on stderr."""
    try:
        done = subprocess.run(
            words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=TIMEOUT_S, env=child_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RivalFailed(f"{words[0]} was not done after {TIMEOUT_S} s") from None
    except OSError as error:
        raise RivalFailed(f"{words[0]} cannot be run: {error.strerror or error}") from None
    if done.returncode:
        last_words = (done.stderr.strip() or "nothing on stderr").rpartition("\n")[2]
        raise RivalFailed(f"{_how_it_ended(done.returncode)}: {last_words}")
    return done.stdout


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise RivalFailed(f"its answer is no JSON: {text[:80]!r}") from None


def _read_tests(text: str) -> dict[str, float]:
    """The rates in the JSON of llama-bench: a list of tests, each of them a prompt or a generation."""
    tests = _as_json(text)
    try:
        return {("prefill" if test["n_prompt"] else "decode"): float(test["avg_ts"]) for test in tests}
    except (KeyError, TypeError, ValueError) as error:
        raise RivalFailed(f"its answer is not that of llama-bench: {error!r} in {text[:80]!r}") from None
