"""Other engines timed on the same file: llama.cpp by its own llama-bench, or by the xllamacpp wheel.

Each runs in a process of its own, and once for each of its settings: what helps it on one model may hurt it on
another, or end it. That one died is an answer too, told with its last words.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gemmafile.errors import BadSettings, GemmafileError, nearest
from gemmafile.kernels.compile import child_environment

TIMEOUT_S = 1800
BATCH_PROMPT = 1
"""Tokens that each row of a batch begins with: llama-batched-bench wants one."""

RIVALS = ("llamacpp",)


class RivalFailed(GemmafileError):
    """A rival ended without an answer; says how."""


class Answer(NamedTuple):
    """What a program printed, and how much of its time each of its threads had a core."""

    text: str
    core_share: float


class Rates(NamedTuple):
    """Tokens a second by kind, "prefill" and "decode"; `core_share`  of the whole run, loading the model included."""

    tokens_per_s: dict[str, float]
    core_share: float


@dataclass(frozen=True)
class Task:
    """What a rival is to time: `prompt` tokens read and `predict` tokens made behind `depth` positions; 0: neither."""

    prompt: int
    predict: int
    depth: int
    threads: int


@dataclass(frozen=True)
class BatchTask:
    """`rows` sequences side by side make `steps` tokens each."""

    rows: int
    steps: int
    threads: int


class Rival(Protocol):
    """An engine and its settings, each a name such as "repack 1". `has_batches`  it can be timed on several rows"""

    name: str
    where: str

    @property
    def has_batches(self) -> bool: ...

    @property
    def settings(self) -> Sequence[str]: ...

    def run(self, model: Path, task: Task, setting: str) -> Rates:
        """Raises RivalFailed."""

    def run_batch(self, model: Path, task: BatchTask, setting: str) -> Rates:
        """Tokens of all rows together, as "batch". Raises RivalFailed."""


class LlamaBench:
    """llama-bench: one repetition a call, so that calls can take turns with ours; for batches llama-batched-bench."""

    name = "llama.cpp"

    def __init__(self, program: Path):
        self.where = str(program)
        self._batched = program.with_name("llama-batched-bench")
        self.has_batches = os.access(self._batched, os.X_OK)
        has_repack = "--repack" in _run([self.where, "--help"]).text
        self.settings = ("repack 1", "repack 0") if has_repack else ("defaults",)

    def run(self, model: Path, task: Task, setting: str) -> Rates:
        sizes = {"-p": task.prompt, "-n": task.predict, "-d": task.depth, "-t": task.threads, "-r": 1}
        words = [self.where, "-m", str(model), "-o", "json", *(str(word) for pair in sizes.items() for word in pair)]
        if setting.startswith("repack "):
            words += ["--repack", setting.removeprefix("repack ")]
        answer = _run(words, task.threads)
        return Rates(_read_tests(answer.text), answer.core_share)

    def run_batch(self, model: Path, task: BatchTask, setting: str) -> Rates:
        context = task.rows * (task.steps + BATCH_PROMPT + 1)
        sizes = {
            "-npp": BATCH_PROMPT, "-ntg": task.steps, "-npl": task.rows, "-t": task.threads, "-tb": task.threads,
            "-c": max(context, 512), "--output-format": "jsonl",
        }  # fmt: skip
        words = [str(self._batched), "-m", str(model), *(str(word) for pair in sizes.items() for word in pair)]
        answer = _run([*words, "--no-repack"] if setting == "repack 0" else words, task.threads)
        return Rates({"batch": _read_batch(answer.text)}, answer.core_share)


class Wheel:
    """llama.cpp in the xllamacpp wheel, by the timings of its server (`llamacpp_wheel.py`)."""

    name = "llama.cpp (xllamacpp)"
    settings = ("repack 1", "repack 0")
    has_batches = False

    def __init__(self) -> None:
        self.where = "xllamacpp"

    def run(self, model: Path, task: Task, setting: str) -> Rates:
        words = [str(model), task.prompt, task.predict, task.depth, task.threads, setting.removeprefix("repack ")]
        answer = _run([sys.executable, "-m", "gemmafile.bench.llamacpp_wheel", *map(str, words)], task.threads)
        return Rates(_as_json(answer.text.strip().rpartition("\n")[2]), answer.core_share)

    def run_batch(self, model: Path, task: BatchTask, setting: str) -> Rates:
        raise RivalFailed("its server answers one request at a time")


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


def _run(words: list[str], n_threads: int = 1) -> Answer:
    """Run a program. Raises RivalFailed, with the end of what it said on stderr."""
    clock, processor = time.perf_counter(), _children_s()
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
    return Answer(done.stdout, (_children_s() - processor) / (time.perf_counter() - clock) / n_threads)


def _children_s() -> float:
    """Processor time of the programs that have run and ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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


def _read_batch(text: str) -> float:
    """The rate of making tokens in the JSON line of llama-batched-bench, among whatever else it says."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    try:
        return float(_as_json(lines[-1])["speed_tg"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise RivalFailed(f"its answer is not that of llama-batched-bench: {error!r} in {text[:80]!r}") from None
