"""Tokens a second of the scheduler with 1, 4, 16 and 64 answers at once, beside llama-batched-bench in the same run.

    python -m benchmarks.serving_engine MODEL [--jobs 1,4,16,64] [--steps 32] [--rounds 3] [--sampler greedy|default]
                                        [--threads N] [--vs PATH]
    python -m benchmarks.serving_engine MODEL --stall 4000

Ours are whole answers: batches made, tokens chosen, events told. llama-batched-bench chooses nothing: it makes rows of
any tokens. Both begin with short prompts; what is timed is writing, when all have begun. Main: milliseconds of the
scheduler's own thread in a pass, in which the kernels' threads wait.

With --stall a prompt of so many tokens comes while 8 answers are being written: the longest time between two tokens of
an answer before and meanwhile, and how long the prompt takes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from gemmafile.bench.rivals import BatchTask, Rival, RivalFailed, find_rival
from gemmafile.engine.jobs import Job, Token
from gemmafile.engine.scheduler import Scheduler
from gemmafile.errors import GemmafileError
from gemmafile.model_api import Model
from gemmafile.settings import ContextSettings, SamplingSettings

SAMPLERS = {"greedy": SamplingSettings(temperature=0.0), "default": SamplingSettings()}
PROMPT = 8


class Ours:
    """A model and its scheduler; every run is of other random prompts."""

    def __init__(self, model: Model, sampler: str, most_jobs: int):
        self.model, self._sampler, self._random = model, SAMPLERS[sampler], random.Random(1)
        self.scheduler = Scheduler(model.engine, model.tokenizer, n_slots=most_jobs, idle_bytes=0)
        self._number = 0

    def submit(self, n_prompt: int, n_predict: int) -> int:
        self._number += 1
        ids = [self._random.randrange(1000, 20000) for _ in range(n_prompt)]
        sampling = replace(self._sampler, seed=self._number, ignore_eos=True)
        self.scheduler.submit(Job(self._number, ids, sampling, n_predict=n_predict, cache_prompt=False))
        return self._number

    def finish(self) -> None:
        while not self.scheduler.is_idle:
            self.scheduler.step()

    def time(self, n_jobs: int, steps: int) -> tuple[float, float]:
        """Tokens a second of all answers together, and milliseconds of this thread in a pass."""
        for _ in range(n_jobs):
            self.submit(PROMPT, steps + 2)
        while self.scheduler.stats()["waiting"] or self.scheduler.stats()["reading"]:
            self.scheduler.step()
        clock, own, n_tokens, n_passes = time.perf_counter(), time.thread_time(), 0, 0
        for _ in range(steps - 1):
            n_tokens += sum(isinstance(event, Token) for event in self.scheduler.step())
            n_passes += 1
        rate = n_tokens / (time.perf_counter() - clock)
        own_ms = 1e3 * (time.thread_time() - own) / n_passes
        self.finish()
        return rate, own_ms

    def stall(self, n_prompt: int, n_jobs: int = 8) -> tuple[float, float, float]:
        """Longest milliseconds between two passes' tokens without and with a long prompt; seconds of that prompt."""
        for _ in range(n_jobs):
            self.submit(PROMPT, self.model.n_context - PROMPT)
        for _ in range(5):
            self.scheduler.step()
        before = max(self._pass_ms() for _ in range(20))
        long = self.submit(n_prompt, 1)
        start_s, gaps, seen = time.perf_counter(), [], False
        while not seen:
            clock = time.perf_counter()
            seen = any(isinstance(event, Token) and event.id == long for event in self.scheduler.step())
            gaps.append(1e3 * (time.perf_counter() - clock))
        return before, max(gaps), time.perf_counter() - start_s

    def _pass_ms(self) -> float:
        clock = time.perf_counter()
        self.scheduler.step()
        return 1e3 * (time.perf_counter() - clock)


def best_of_rival(rival: Rival, path: Path, task: BatchTask) -> float:
    """Its tokens a second at the better of its settings; 0: it failed."""
    rates = [0.0]
    for setting in rival.settings:
        try:
            rates.append(rival.run_batch(path, task, setting).tokens_per_s["batch"])
        except RivalFailed as error:
            print(f"{rival.name} {setting}: {error}", file=sys.stderr)
    return max(rates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--jobs", default="1,4,16,64")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sampler", choices=SAMPLERS, default="greedy")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--vs", help="folder of llama-batched-bench")
    parser.add_argument("--stall", type=int, default=0, metavar="TOKENS")
    chosen = parser.parse_args()
    counts = [int(n) for n in chosen.jobs.split(",")]
    try:
        rival = find_rival(f"llamacpp={chosen.vs}" if chosen.vs else "llamacpp")
    except GemmafileError as error:
        rival = None
        print(error, file=sys.stderr)
    context = max(512, chosen.stall + 512)
    settings = ContextSettings(context=context, threads=chosen.threads)
    with Model(chosen.model, settings, n_sequences=max(9, *counts)) as model:
        model.engine.prepare(lambda done, total: None)  # as a server does: what is compiled is not timed
        ours = Ours(model, chosen.sampler, max(9, *counts))
        if chosen.stall:
            before, meanwhile, prompt_s = ours.stall(chosen.stall)
            print(
                f"8 answers: a token every {before:.0f} ms at most; beside a prompt of {chosen.stall} tokens ",
                end="",
            )
            print(f"every {meanwhile:.0f} ms at most; the prompt took {prompt_s:.2f} s")
            return 0
        threads = model.engine.threads
        print("answers  tokens/s  main ms  llama.cpp  ratio (medians)")
        for n in counts:
            ours.time(n, 4)
            rounds = []
            for _ in range(chosen.rounds):
                rate, own_ms = ours.time(n, chosen.steps)
                theirs = best_of_rival(rival, chosen.model, BatchTask(n, chosen.steps, threads)) if rival else 0.0
                rounds.append((rate, own_ms, theirs, rate / theirs if theirs else 0.0))
            rate, own_ms, theirs, ratio = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(f"{n:7}  {rate:8.0f}  {own_ms:7.2f}  {theirs:9.0f}  {ratio:5.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
