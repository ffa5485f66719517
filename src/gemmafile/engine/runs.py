"""A run: a job under way, with its tokens, its lease of pages and its clock. scheduler.py makes them go."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from gemmafile.engine.jobs import Job, Timings
from gemmafile.engine.prefixes import Lease
from gemmafile.engine.sampler import Sampler


@dataclass(slots=True, eq=False)
class Run:
    """A job and how far it is.

    number    jobs are numbered as they come: the lower, the older
    tokens    those of the prompt, then the chosen ones; the cache holds the first `n_computed` of them
    lease     None while the run waits, for the first time or after its pages were taken away
    n_cached  tokens of the prompt that did not have to be computed
    is_fetched  False while a file with the beginning of the prompt is being read
    making    the sampler, while its grammar is compiled on another thread
    leader    a run that is reading a prompt which begins with the same `n_awaited` tokens: they will be shared
    """

    job: Job
    number: int
    tokens: list[int]
    sampler: Sampler | None
    submitted_s: float
    slot: int = -1
    lease: Lease | None = None
    pooling: Pooling | None = None
    n_chosen: int = 0
    n_cached: int = 0
    n_scored: int = 0
    is_fetched: bool = True
    making: Future[Sampler] | None = None
    leader: Run | None = None
    n_awaited: int = 0
    was_started: bool = False
    started_s: float = 0.0
    chosen_s: float = 0.0

    @property
    def n_prompt(self) -> int:
        return len(self.job.token_ids)

    @property
    def n_computed(self) -> int:
        return len(self.lease) if self.lease is not None else 0

    @property
    def n_pending(self) -> int:
        """Tokens that are known and not yet computed."""
        return len(self.tokens) - self.n_computed

    @property
    def is_embedding(self) -> bool:
        return self.job.pooling is not None

    @property
    def is_sharing(self) -> bool:
        """Is what this run computes for others too?"""
        return self.lease is not None and self.lease.keep

    @property
    def is_held_up(self) -> bool:
        """Is something missing that others are about to bring: a file, a grammar, the beginning of its prompt?"""
        return not self.is_fetched or self.making is not None or self.is_following

    @property
    def is_following(self) -> bool:
        """Is there a leader, and has it still to compute some of what is awaited?"""
        leader = self.leader
        return leader is not None and leader.lease is not None and leader.n_computed < self.n_awaited

    def meet_fetched(self) -> None:
        self.is_fetched = True

    def is_late(self, now_s: float) -> bool:
        return self.job.deadline_s is not None and now_s - self.submitted_s > self.job.deadline_s

    def timings(self) -> Timings:
        if not self.was_started:
            return Timings()
        now_s = time.perf_counter()
        chosen_s = self.chosen_s or now_s
        n_read = max(0, min(self.n_computed or self.n_prompt, self.n_prompt) - self.n_cached)
        return Timings(
            cache_n=self.n_cached, prompt_n=n_read, prompt_ms=1e3 * (chosen_s - self.started_s),
            predicted_n=self.n_chosen, predicted_ms=1e3 * (now_s - chosen_s),
        )  # fmt: skip


class Pooling:
    """One vector of many hidden rows: their mean, the first (cls) or the last. Rows come in order, in any chunks."""

    def __init__(self, kind: str, width: int):
        self._kind, self._n, self._sum = kind, 0, np.zeros(width, np.float64)

    def add(self, rows: np.ndarray) -> None:
        """float32[n, E]"""
        if self._kind == "cls" and self._n == 0:
            self._sum[:] = rows[0]
        elif self._kind == "last":
            self._sum[:] = rows[-1]
        elif self._kind == "mean":
            for row in rows:  # one after the other: chunks change no bit
                self._sum += row
        self._n += len(rows)

    def values(self) -> bytes:
        """float32[E], little-endian."""
        pooled = self._sum / self._n if self._kind == "mean" else self._sum
        return pooled.astype("<f4").tobytes()
