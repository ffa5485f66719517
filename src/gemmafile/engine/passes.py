"""What goes into a pass: which rows of which runs, and the batch they make.

Answers being written go first, a row each. What is left of the pass goes to prompts being read: half of it to the one
that came first, which so is never starved, half to the one that is nearest to its end, so that a short prompt does not
wait for a long one. How much is left depends on how long passes have been taking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gemmafile.engine.runs import Run
from gemmafile.model.batch import Batch

LEAST_CHUNK = 64
"""Rows of prompts in a pass that writes answers too, at least: with fewer a row costs up to twice the time, as the
weights have to be unpacked for them all the same; from 128 on there is nothing more to gain."""

SCORED_ROWS = 32
"""Rows of prompts whose tokens are to be scored, in one pass: each has logits for the whole vocabulary."""


class Plan(NamedTuple):
    """(run, number of its rows), oldest run first. `is_embedding`  hidden rows are wanted, of all rows"""

    rows: list[tuple[Run, int]]
    is_embedding: bool = False

    @property
    def n_prompt_rows(self) -> int:
        """Rows of prompts, once they are computed; the others are of answers."""
        return sum(min(run.n_computed, run.n_prompt) - min(run.n_computed - n, run.n_prompt) for run, n in self.rows)

    def n_outputs(self, run: Run, n: int) -> int:
        """How many of a run's n rows, the last ones, have outputs. Asked before and after the pass."""
        if self.is_embedding or (run.job.score_prompt and run.n_scored < run.n_prompt - 1):
            return n
        return int(run.n_pending == 0 and run.job.n_predict != 0)


class Pace:
    """How many rows of prompts to put beside answers, so that a pass takes about `pass_s` seconds."""

    def __init__(self, max_rows: int, pass_s: float):
        self.max_rows, self._pass_s = max_rows, pass_s
        self._chunk = min(128, max_rows)

    @property
    def chunk(self) -> int:
        return self._chunk

    def note(self, plan: Plan, seconds: float) -> None:
        """A pass took so long."""
        n_rows = sum(n for _, n in plan.rows)
        if n_rows < LEAST_CHUNK:
            return
        fitting = n_rows * self._pass_s / seconds
        chunk = self._chunk + (fitting - self._chunk) / 4
        self._chunk = int(min(self.max_rows, max(LEAST_CHUNK, chunk)))


def plan_pass(running: Sequence[Run], pace: Pace, turn: int) -> Plan:
    """The rows of the next pass. `turn`  a count of passes: embeddings and answers take turns."""
    embedding = [run for run in running if run.is_embedding]
    answering = [run for run in running if not run.is_embedding]
    if embedding and (turn % 2 or not answering):
        most = pace.chunk if answering else pace.max_rows
        return Plan(_in_order(running, _share(embedding, most)), is_embedding=True)
    writing = [run for run in answering if run.n_pending == 1]
    if len(writing) > pace.max_rows:
        at = turn * pace.max_rows % len(writing)
        writing = (writing[at:] + writing[:at])[: pace.max_rows]
    counts = dict.fromkeys(writing, 1)
    room = pace.max_rows - len(writing)
    if writing or embedding:
        room = min(room, pace.chunk)
    return Plan(_in_order(running, counts | _share([run for run in answering if run.n_pending > 1], room)))


def _share(reading: list[Run], room: int) -> dict[Run, int]:
    """Rows for each of the runs that read a prompt, oldest first in `reading`."""
    counts: dict[Run, int] = {}
    scored_room = SCORED_ROWS

    def give(run: Run, most: int) -> None:
        nonlocal room, scored_room
        n = min(most, room, run.n_pending - counts.get(run, 0))
        if run.job.score_prompt:
            n = min(n, scored_room)
            scored_room -= n
        if n > 0:
            counts[run] = counts.get(run, 0) + n
            room -= n

    if reading:
        give(reading[0], max(1, room // 2) if len(reading) > 1 else room)
        for run in sorted(reading, key=lambda run: run.n_pending):
            give(run, room)
    return counts


def _in_order(running: Sequence[Run], counts: dict[Run, int]) -> list[tuple[Run, int]]:
    return [(run, counts[run]) for run in running if run in counts]


def make_batch(plan: Plan) -> Batch:
    """The batch of a plan whose tokens are in their sequences already, not yet computed."""
    ids: list[int] = []
    positions: list[int] = []
    counts: list[int] = []
    outputs: list[int] = []
    tables: list[list[int]] = []
    for run, n in plan.rows:
        assert run.lease is not None
        end = run.n_computed
        ids += run.tokens[end - n : end]
        positions += range(end - n, end)
        counts.append(n)
        outputs += range(len(ids) - plan.n_outputs(run, n), len(ids))
        tables.append(run.lease.sequence.table)
    widest = max(map(len, tables))
    page_tables = np.zeros((len(tables), widest), np.int32)
    for row, table in zip(page_tables, tables, strict=True):
        row[: len(table)] = table
    return Batch(
        token_ids=np.array(ids, np.int32),
        positions=np.array(positions, np.int32),
        sequences=np.repeat(np.arange(len(tables), dtype=np.int32), counts),
        page_tables=page_tables,
        outputs=np.array(outputs, np.int32),
    )
