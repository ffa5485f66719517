"""Rounds: everything is measured once in each, in turn, because a shared machine changes from minute to minute.

A round has, for each number of threads: the machine's limits, then at each depth our runs and each rival's, then the
batches. `Measured` is what comes out; `report.py` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from gemmafile.bench import machine
from gemmafile.bench.machine import Limits, Machine
from gemmafile.bench.rivals import BatchTask, Rates, Rival, RivalFailed, Task
from gemmafile.bench.runs import Runs, Trial, context_needed
from gemmafile.bench.work import Work, count_work, weight_names
from gemmafile.engine.engine import Engine
from gemmafile.errors import BackendUnavailable
from gemmafile.files.gguf import ModelFile
from gemmafile.files.open import open_model
from gemmafile.files.placement import free_memory_bytes, huge_share
from gemmafile.kernels.compile import why_not
from gemmafile.model.record import record
from gemmafile.settings import ContextSettings

WARM_UP_TOKENS = 64
"""Enough to take the kernels for many rows, which may have to be compiled."""
MOST_ANONYMOUS = 4
"""One part in so many of the free memory is taken for reading it, at most."""


@dataclass(frozen=True)
class Plan:
    """What to measure. `prompt`, `predict`  tokens to read and to make; 0: not timed · `rows`  sizes of batches ·
    `mmap`, `huge_pages`  where the model lies (settings.ContextSettings)"""

    threads: tuple[int, ...]
    prompt: int = 512
    predict: int = 128
    depths: tuple[int, ...] = (0,)
    rows: tuple[int, ...] = ()
    repetitions: int = 3
    mmap: bool = True
    huge_pages: str = "auto"

    def trials(self, threads: int, depth: int | None = None) -> list[Trial]:
        """The trials of one number of threads, at one depth; without a depth, the batches."""
        if depth is None:
            return [Trial("batch", self.predict, threads, rows=rows) for rows in self.rows if self.predict]
        sizes = {"prefill": self.prompt, "decode": self.predict}
        return [Trial(kind, n, threads, depth) for kind, n in sizes.items() if n]

    def all_trials(self) -> list[Trial]:
        return [trial for t in self.threads for depth in (*self.depths, None) for trial in self.trials(t, depth)]


@dataclass
class Result:
    """Tokens a second of one trial, a number each round: ours, and the rival's by its settings.

    `core_shares`, `rival_shares`  how much of the time each thread had a core
    """

    trial: Trial
    work: Work
    ours: list[float] = field(default_factory=list)
    core_shares: list[float] = field(default_factory=list)
    rival: dict[str, list[float]] = field(default_factory=dict)
    rival_shares: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Measured:
    """All that came out.

    `limits`      the best that was seen, by threads · `reads` every rate at which the weights were read, 10^9 bytes/s
    `huge_share`  of the weights, how much lies in huge pages · `failures` what became of a rival's setting that failed
    """

    path: Path
    plan: Plan
    weight_bytes: int
    limits: dict[int, Limits]
    results: dict[Trial, Result]
    rival: Rival | None = None
    failures: dict[str, str] = field(default_factory=dict)
    reads: dict[int, list[float]] = field(default_factory=dict)
    huge_share: float | None = None


def measure(path: Path, plan: Plan, rival: Rival | None, say: Callable[[str], None]) -> Measured:
    """Measure a model. `say` gets a line before each part of a round.

    Raises BadFile or UnsupportedModel for the file, BackendUnavailable where kernels cannot be compiled.
    """
    reason = why_not()
    if reason is not None:
        raise BackendUnavailable(f"bench measures the compiled kernels: {reason}")
    with ExitStack() as stack:
        where = ContextSettings(mmap=plan.mmap, huge_pages=plan.huge_pages)
        file = stack.enter_context(open_model(path, where, say))
        bench = Bench(file, plan, rival, say, stack)
        for number in range(plan.repetitions):
            for n_threads in plan.threads:
                say(f"round {number + 1} of {plan.repetitions}, {n_threads} threads")
                bench.run_round(n_threads)
        return bench.measured


class Bench:
    """Everything opened and warm. What `stack` is given is closed by it."""

    def __init__(self, file: ModelFile, plan: Plan, rival: Rival | None, say: Callable[[str], None], stack: ExitStack):
        self.plan, self.path, self.file, self.say = plan, Path(file.path), file, say
        context = context_needed(plan.all_trials())
        engines = {t: Engine(file, ContextSettings(threads=t, context=context), say) for t in plan.threads}
        engine = engines[plan.threads[0]]
        tape = record(engine.config, engine.weights)
        segments = machine.mapped_segments(file, weight_names(tape))
        anonymous = machine.anonymous_memory(
            min(machine.ANONYMOUS_BYTES, free_memory_bytes() // MOST_ANONYMOUS or machine.ANONYMOUS_BYTES)
        )
        self.runs, self.machines = {}, {}
        for t, engine in engines.items():
            stack.callback(engine.close)
            if plan.depths != (0,):
                say(f"reading to a depth of {max(plan.depths)} tokens, {t} threads")
            self.runs[t] = Runs(engine, [trial for trial in plan.all_trials() if trial.threads == t])
            self.machines[t] = Machine(t, segments, anonymous)
            stack.callback(self.machines[t].close)
        results = {trial: Result(trial, count_work(tape, trial.passes(engine.max_rows))) for trial in plan.all_trials()}
        n_bytes = sum(size for _, size in segments)
        self.measured = Measured(self.path, plan, n_bytes, {t: Limits() for t in plan.threads}, results, rival)
        self.measured.reads = {t: [] for t in plan.threads}
        for trial in results:
            self.runs[trial.threads].time(replace(trial, tokens=min(trial.tokens, WARM_UP_TOKENS)))

    def run_round(self, n_threads: int) -> None:
        for depth in (*self.plan.depths, None):
            trials = self.plan.trials(n_threads, depth)
            self.measure_limits(n_threads)
            for trial in trials:
                timing, result = self.runs[n_threads].time(trial), self.measured.results[trial]
                result.ours.append(trial.tokens_made / timing.seconds)
                result.core_shares.append(timing.core_share)
            self.run_rival(trials)
        self.measure_limits(n_threads)
        self.measured.huge_share = huge_share(self.file)

    def measure_limits(self, n_threads: int) -> None:
        taken = self.machines[n_threads].measure()
        self.measured.limits[n_threads].raise_to(taken)
        self.measured.reads[n_threads].append(taken.read)

    def run_rival(self, trials: list[Trial]) -> None:
        """Each setting of the rival once; one that fails is not tried again."""
        measured, rival = self.measured, self.measured.rival
        if rival is None or not trials or (trials[0].kind == "batch" and not rival.has_batches):
            return
        for setting in rival.settings:
            try:
                for trial, rates in self.rival_rates(rival, trials, setting):
                    result = measured.results[trial]
                    result.rival.setdefault(setting, []).append(rates.tokens_per_s[trial.kind])
                    result.rival_shares.setdefault(setting, []).append(rates.core_share)
            except RivalFailed as error:
                what = _name_of(setting, trials)
                measured.failures[what] = str(error)
                self.say(f"{rival.name}, {what}: {error}")

    def rival_rates(self, rival: Rival, trials: list[Trial], setting: str) -> Iterator[tuple[Trial, Rates]]:
        """The rates of trials that belong together. Raises RivalFailed."""
        if _name_of(setting, trials) in self.measured.failures:
            return
        if trials[0].kind == "batch":
            for trial in trials:
                task = BatchTask(trial.rows, trial.steps, trial.threads)
                yield trial, rival.run_batch(self.path, task, setting)
            return
        depth, n_threads = trials[0].depth, trials[0].threads
        rates = rival.run(self.path, Task(self.plan.prompt, self.plan.predict, depth, n_threads), setting)
        yield from ((trial, rates) for trial in trials if trial.kind in rates.tokens_per_s)


def _name_of(setting: str, trials: list[Trial]) -> str:
    """Batches are another program's: one may fail without the other."""
    return f"{setting}, batches" if trials[0].kind == "batch" else setting
