"""Timed runs of the engine: reading a prompt, making tokens, and making tokens of several sequences side by side.

Tokens are random and no sampler runs, as in llama-bench: what is timed is the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gemmafile.bench.work import Pass
from gemmafile.engine.engine import Engine
from gemmafile.engine.pages import Sequence
from gemmafile.model.batch import PAGE, Batch


@dataclass(frozen=True)
class Trial:
    """One thing to time: `tokens` read ("prefill") or made ("decode") behind `depth` positions; `rows` sequences side
    by side share the tokens of a "batch"."""

    kind: str
    tokens: int
    threads: int
    depth: int = 0
    rows: int = 1

    @property
    def steps(self) -> int:
        """Passes that make the tokens, for decode and batch."""
        return -(-self.tokens // self.rows)

    @property
    def tokens_made(self) -> int:
        """A batch makes whole rows."""
        return self.steps * self.rows

    def passes(self, max_rows: int) -> list[Pass]:
        """The passes of the engine that this takes."""
        if self.kind == "prefill":
            starts = range(0, self.tokens, max_rows)
            return [
                Pass(min(max_rows, self.tokens - at), self.depth + at, int(at + max_rows >= self.tokens))
                for at in starts
            ]
        return [Pass(1, self.depth + i, self.rows, self.rows) for i in range(self.steps)]


class Timing(NamedTuple):
    """Seconds by the clock, and how much of that time each thread had a core: well under 1 on a busy machine."""

    seconds: float
    core_share: float


class Runs:
    """An engine with a sequence read up to each depth; `time` runs one trial.

    The engine's context must hold `context_needed(trials)` positions.
    """

    def __init__(self, engine: Engine, trials: Iterable[Trial]):
        self.engine = engine
        self._rng = np.random.default_rng(1)
        self._sequences: dict[int, Sequence] = {}
        for depth in sorted({trial.depth for trial in trials}):
            self._sequences[depth] = engine.new_sequence()
            engine.forward(self._sequences[depth], self._random_ids(depth), want="none")

    def _random_ids(self, n: int) -> list[int]:
        ids: list[int] = self._rng.integers(0, self.engine.config.n_vocab, n).tolist()
        return ids

    def time(self, trial: Trial) -> Timing:
        """Run a trial; the sequences are then as they were."""
        run = {"prefill": self._prefill, "decode": self._decode, "batch": self._batch}[trial.kind]
        clock, processor = time.perf_counter(), time.process_time()
        run(trial)
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        return Timing(clock, processor / clock / trial.threads)

    def _prefill(self, trial: Trial) -> None:
        sequence = self._sequences[trial.depth]
        self.engine.forward(sequence, self._random_ids(trial.tokens))
        sequence.truncate(trial.depth)

    def _decode(self, trial: Trial) -> None:
        sequence = self._sequences[trial.depth]
        for token_id in self._random_ids(trial.tokens):
            self.engine.forward(sequence, [token_id])
        sequence.truncate(trial.depth)

    def _batch(self, trial: Trial) -> None:
        """Every pass has a row of each sequence."""
        sequences = [self.engine.new_sequence() for _ in range(trial.rows)]
        token_ids = np.array(self._random_ids(trial.rows * trial.steps), np.int32).reshape(trial.steps, trial.rows)
        rows = np.arange(trial.rows, dtype=np.int32)
        for position, ids in enumerate(token_ids):
            for sequence, token_id in zip(sequences, ids.tolist(), strict=True):
                sequence.extend([token_id])
            tables = np.stack([sequence.page_table() for sequence in sequences])
            self.engine.backend.run(Batch(ids, np.full(trial.rows, position, np.int32), rows, tables, rows))
        for sequence in sequences:
            sequence.truncate(0)


def context_needed(trials: Iterable[Trial]) -> int:
    """Positions the KV cache must have for all of `trials`: each sequence takes whole pages."""
    trials = list(trials)
    depths = sum(_whole_pages(depth) for depth in {trial.depth for trial in trials})
    at_once = [
        _whole_pages(trial.tokens) if trial.kind != "batch" else trial.rows * _whole_pages(trial.steps)
        for trial in trials
    ]
    return depths + max(at_once) + PAGE


def _whole_pages(n: int) -> int:
    return -(-n // PAGE) * PAGE
