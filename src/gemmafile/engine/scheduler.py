"""The scheduler: many answers at once, by one pass of the model after the other.

In: `Job`s. Out: `Event`s, a list for each pass. Rows of all jobs go through the same pass: first one row for each
answer being written, then a chunk of the prompts being read, small enough that nobody waits long for it. By the law
of rows an answer does not depend on who else is there. One thread drives it all; messages are dealt with between
passes. Next: runs.py (a job's state), prefixes.py (what jobs share), passes.py (what goes into a pass), slots.py (where
jobs run).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.engine.archive import Archive
from gemmafile.engine.engine import Engine
from gemmafile.engine.jobs import (
    KINDS,
    POOLINGS,
    Embedding,
    End,
    Event,
    Failed,
    Job,
    Progress,
    Reason,
    Scores,
    Token,
    failed,
)
from gemmafile.engine.pages import OutOfPages
from gemmafile.engine.passes import Pace, Plan, make_batch, plan_pass
from gemmafile.engine.prefixes import Node, Prefixes, common_length
from gemmafile.engine.runs import Pooling, Run
from gemmafile.engine.samplers import Samplers, TokenTable, has_grammar
from gemmafile.engine.slots import Slot, SlotActions
from gemmafile.errors import BadSettings, ContextOverflow
from gemmafile.model.batch import PAGE

WORTH_WAITING = 32
"""A job waits for another that is reading the same beginning, if that spares it at least so many tokens."""

IDLE_PAGES, LEAST_IDLE_PAGES = 4, 64
"""Pages for each slot, and at least, that are kept for conversations that may go on, unless said otherwise: 512 and
8,192 tokens."""

SET_ASIDE_BYTES = 256 << 20
"""Most memory of these that is taken from the start. What a server needs when it is busy, it then has: neither the
hundredth answer nor the thousandth is the one that finds no memory."""

COUNTERS = "prompt_tokens cached_tokens predicted_tokens passes rows busy_slots jobs preemptions refused".split()
"""`totals` since the start. `busy_slots`  jobs of each pass, added up · `rows` too, of which a prompt has many"""


class Scheduler:
    """Answers for many. `submit`, `cancel` and `step` are for one thread."""

    def __init__(
        self, engine: Engine, tokens: TokenTable, *, n_slots: int = 4, queue_limit: int = 256,
        idle_bytes: int | None = None, pass_s: float = 0.075, cache_folder: Path | None = None,
    ):  # fmt: skip
        """
        n_slots      jobs that run at once · queue_limit  jobs that may wait; one more is told to come later
        idle_bytes   memory for what ended answers leave in the cache; 0: nothing; None: IDLE_PAGES
        pass_s       seconds that a pass which writes answers may take with a chunk of prompts beside them
        cache_folder where prompts that were read outlive the process
        """
        if n_slots < 1:
            raise BadSettings(f"--parallel is {n_slots}, expected 1 or more")
        self.engine, self.queue_limit = engine, queue_limit
        most_idle = max(LEAST_IDLE_PAGES, IDLE_PAGES * n_slots)
        if idle_bytes is not None:
            most_idle = -(-idle_bytes // engine.cache.page_bytes)
        self.prefixes = Prefixes(engine.pages, most_idle)
        self._n_set_aside = min(most_idle, SET_ASIDE_BYTES // engine.cache.page_bytes)
        engine.pages.touch(self._n_set_aside)
        self.archive = Archive(engine, self.prefixes, cache_folder)
        self.slots = [Slot(i) for i in range(n_slots)]
        self._eog_ids = frozenset(tokens.eog_ids)
        self._samplers = Samplers(tokens, engine.config.n_vocab, engine.n_context)
        self._waiting: list[Run] = []  # oldest first, as in `_running`
        self._running: list[Run] = []
        self._runs: dict[int, Run] = {}
        self._events: list[Event] = []
        self._pace = Pace(engine.max_rows, pass_s)
        self._n_submitted = 0
        self._job_s = 1.0  # what a job took lately, for Retry-After
        self._turn = 0
        self.totals = dict.fromkeys(COUNTERS, 0)
        self.prompt_s = self.predict_s = 0.0
        self._slot_actions = SlotActions(self.slots, self.prefixes, self.archive, self._tell)

    def rest(self) -> None:
        """Nobody has asked for a while: memory that nothing is kept in goes back to the system."""
        self.engine.pages.give_up(self._n_set_aside)
        self.engine.rest()
        self._samplers.rest()

    def prepare_grammars(self) -> Future[None]:
        """Have ready what the first grammar needs, on another thread: nobody then waits for it."""
        return self._samplers.prepare()

    # --- messages -----------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Is there nothing to do until a job comes?"""
        return not (self._waiting or self._running or self._events) and self.archive.is_idle

    def submit(self, job: Job) -> None:
        """Queue a job. What cannot be done is told by the next `step`, as `Failed`."""
        try:
            run = self._make_run(job)
        except Exception as error:
            self._events.append(failed(job.id, error))
        else:
            if len(self._waiting) - self._n_free_slots >= self.queue_limit:
                self.totals["refused"] += 1
                message = f"{len(self._waiting)} requests are waiting already, which is the limit: try again later"
                self._events.append(Failed(job.id, 429, KINDS[429], message, retry_after_s=self._retry_after_s()))
                return
            self._waiting.append(run)
            self._runs[job.id] = run
            if self._most_cached(run):
                run.is_fetched = False
                if not self.archive.fetch(run.tokens, run.meet_fetched):
                    run.meet_fetched()

    def cancel(self, job_id: int) -> None:
        """End a job where it is; before the next pass. An id that is not (or no longer) there is ignored."""
        run = self._runs.get(job_id)
        if run is not None:
            self._end(run, "cancelled")

    def _make_run(self, job: Job) -> Run:
        """Raises BadSettings or ContextOverflow."""
        if not len(job.token_ids):
            raise BadSettings("the prompt is empty: there is nothing to go on from")
        if job.id in self._runs:
            raise BadSettings(f"there is a job {job.id} already")
        if job.pooling is not None and job.pooling not in POOLINGS:
            raise BadSettings(f"pooling is {job.pooling!r}, expected {', '.join(POOLINGS)}")
        if not -1 <= job.slot < len(self.slots):
            raise BadSettings(f"there is no slot {job.slot}: they go from 0 to {len(self.slots) - 1}")
        if not 0 <= job.n_begun <= len(job.token_ids):
            raise BadSettings(f"n_begun is {job.n_begun}: the prompt has {len(job.token_ids)} tokens")
        if len(job.token_ids) > self.engine.n_context:
            raise ContextOverflow(len(job.token_ids), self.engine.n_context)
        self.engine.check_ids(job.token_ids)
        pooling = sampler = making = None
        if job.pooling is not None:
            pooling = Pooling(job.pooling, self.engine.config.embedding_dim)
        elif has_grammar(job.sampling):
            making = self._samplers.begin(job.sampling, job.token_ids, job.n_begun)
        else:
            sampler = self._samplers.make(job.sampling, job.token_ids)
        self._n_submitted += 1
        now_s = time.perf_counter()
        return Run(job, self._n_submitted, list(job.token_ids), sampler, now_s, pooling=pooling, making=making)

    def _tell(self, event: Event) -> None:
        """Have the next `step` give it."""
        self._events.append(event)

    def _retry_after_s(self) -> float:
        turns = (len(self._waiting) + len(self._running)) / len(self.slots)
        return float(min(120, max(1, math.ceil(turns * self._job_s))))

    # --- a pass -------------------------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """One pass, if there is anything to compute; what has happened since the last."""
        self.archive.poll()
        self._take_samplers()
        self._end_late()
        self._admit()
        plan = self._extend(plan_pass(self._running, self._pace, self._turn))
        if not plan.rows:
            self._wait()
        else:
            self._turn += 1
            start_s = time.perf_counter()
            rows = self._compute(plan)
            self._pace.note(plan, time.perf_counter() - start_s)
            n_read = plan.n_prompt_rows
            if plan.is_embedding:
                self._take_hidden(plan, rows)
            else:
                self._take_logits(plan, rows)
            self._count(plan, n_read, time.perf_counter() - start_s)
        events, self._events = self._events, []
        return events

    def _wait(self) -> None:
        """For files and grammars, a moment: there is nothing to compute."""
        self.archive.poll(wait_s=0.01)
        wait([run.making for run in self._waiting if run.making is not None], timeout=0.01)

    def _take_samplers(self) -> None:
        """Those whose grammars have been compiled."""
        for run in list(self._waiting):
            if run.making is not None and run.making.done():
                try:
                    run.sampler = run.making.result()
                except Exception as error:
                    self._fail(run, error)
                run.making = None

    def _end_late(self) -> None:
        now_s = time.perf_counter()
        for run in [run for run in self._runs.values() if run.is_late(now_s)]:
            self._end(run, "deadline")

    def _extend(self, plan: Plan) -> Plan:
        """Give every row of a plan its place in the cache. Where pages run out the youngest jobs give theirs up and
        wait for another turn, with the tokens they have."""
        given: list[tuple[Run, int]] = []
        for run, n in plan.rows:  # oldest first
            while run.lease is not None:
                first = run.n_computed
                try:
                    run.lease.sequence.extend(run.tokens[first : first + n])
                except OutOfPages:
                    youngest = self._running[-1]
                    if youngest is run and len(self._running) == 1 and self.archive.is_idle:
                        self._end(run, "context full")
                    else:  # others give theirs back, or a file that is being read or written does
                        self._requeue(youngest)
                else:
                    given.append((run, n))
                    break
        return plan._replace(rows=[(run, n) for run, n in given if run.lease is not None])

    def _compute(self, plan: Plan) -> np.ndarray:
        """A row for each output of the plan: logits, or hidden state."""
        compute = self.engine.run_hidden if plan.is_embedding else self.engine.run
        try:
            return compute(make_batch(plan))
        except BaseException:
            for run, n in plan.rows:  # nobody may take for computed what is not
                assert run.lease is not None
                run.lease.sequence.truncate(run.n_computed - n)
            raise

    def _take_logits(self, plan: Plan, logits: np.ndarray) -> None:
        row = 0
        peaks = self.engine.backend.peaks(len(logits))
        for run, n in plan.rows:
            assert run.lease is not None
            self.prefixes.commit(run.lease)
            wanted = plan.n_outputs(run, n)
            rows, row = logits[row : row + wanted], row + wanted
            try:
                if run.job.score_prompt:
                    self._score(run, n, rows)
                if run.n_pending:
                    self._tell_progress(run)
                elif run.job.n_predict == 0:
                    self._end(run, "limit")
                else:
                    self._choose(run, rows[-1], None if peaks is None else peaks[row - 1])
            except Exception as error:
                self._fail(run, error)

    def _choose(self, run: Run, logits: np.ndarray, peaks: np.ndarray | None) -> None:
        """The next token of an answer. Raises GemmafileError if there is none."""
        assert run.sampler is not None
        has_probs = run.job.sampling.n_probs > 0
        self._tell_progress(run)
        choice = run.sampler.sample(logits, peaks)
        run.sampler.accept(choice.token_id)
        run.chosen_s = run.chosen_s or time.perf_counter()
        run.n_chosen += 1
        run.tokens.append(choice.token_id)
        self.totals["predicted_tokens"] += 1
        shown = (choice.logprob, choice.top) if has_probs else (None, None)
        self._events.append(Token(run.job.id, choice.token_id, *shown))
        if choice.token_id in self._eog_ids:
            self._end(run, "stop")
        elif run.n_chosen == run.job.n_predict:
            self._end(run, "limit")
        elif len(run.tokens) > self.engine.n_context:
            self._end(run, "context full")

    def _tell_progress(self, run: Run) -> None:
        if not run.n_chosen:
            self._events.append(Progress(run.job.id, run.n_computed, run.n_prompt, run.n_cached))

    def _score(self, run: Run, n: int, logits: np.ndarray) -> None:
        """Say how likely the tokens behind these rows were."""
        first = run.n_computed - n
        is_begun = run.n_scored > 0  # it may be read a second time, after its pages were taken away
        items: list[tuple[int, float | None, Any]] = [] if is_begun else [(run.tokens[0], None, None)]
        begin = run.n_scored + 1 if is_begun else 0
        for i, row in enumerate(logits):
            place = first + 1 + i
            if run.n_scored < place < run.n_prompt:
                assert run.sampler is not None
                items.append((run.tokens[place], *run.sampler.score(row, run.tokens[place])))
                run.n_scored = place
        if items:
            self._events.append(Scores(run.job.id, begin, items))

    def _take_hidden(self, plan: Plan, hidden: np.ndarray) -> None:
        row = 0
        for run, n in plan.rows:
            rows, row = hidden[row : row + n], row + n
            try:
                self._pool(run, rows)
            except Exception as error:
                self._fail(run, error)

    def _pool(self, run: Run, hidden: np.ndarray) -> None:
        assert run.pooling is not None
        run.pooling.add(hidden)
        self._tell_progress(run)
        if not run.n_pending:
            run.chosen_s = time.perf_counter()
            self._events.append(Embedding(run.job.id, run.pooling.values()))
            self._end(run, "stop")

    def _count(self, plan: Plan, n_read: int, pass_s: float) -> None:
        n_rows = sum(n for _, n in plan.rows)
        totals = self.totals
        totals["passes"] += 1
        totals["rows"] += n_rows
        totals["busy_slots"] += len(plan.rows)
        totals["prompt_tokens"] += n_read
        self.prompt_s += pass_s * n_read / n_rows
        self.predict_s += pass_s * (n_rows - n_read) / n_rows

    # --- coming and going ---------------------------------------------------------------------------------------

    @property
    def _n_free_slots(self) -> int:
        return len(self.slots) - len(self._running)

    def _admit(self) -> None:
        """Start what waits, oldest first, as far as there are slots and pages."""
        for run in list(self._waiting):
            if not self._n_free_slots:
                return
            is_asked_slot_busy = run.job.slot >= 0 and self.slots[run.job.slot].run is not None
            if is_asked_slot_busy or run.is_held_up:
                continue
            most = self._most_cached(run)
            found = self.prefixes.match(run.tokens, most)
            if most and self._find_leader(run, found.n_tokens):
                continue
            if not self._has_room(run, found.path):
                return
            self._start(run, most)

    def _most_cached(self, run: Run) -> int:
        """How many tokens of a run may come out of the cache."""
        if run.is_embedding or not run.job.cache_prompt or (run.job.score_prompt and not run.n_chosen):
            return 0
        return len(run.tokens) - 1

    def _find_leader(self, run: Run, n_found: int) -> bool:
        """Is another job about to compute much more of this prompt's beginning than the cache has?"""
        reading = [other for other in self._running if other.n_pending > 1 and other.is_sharing]
        if not reading:
            return False
        ids = np.array(run.tokens[:-1], np.int32)
        for other in reading:
            n = common_length(np.array(other.tokens[: len(ids)], np.int32), ids)
            if n >= n_found + WORTH_WAITING and other.n_computed < n:
                run.leader, run.n_awaited = other, n
                return True
        return False

    def _has_room(self, run: Run, path: Sequence[Node]) -> bool:
        """Are there pages for a prompt, for those being read, and for one more of each answer being written?"""
        if not self._running:
            return True
        wanted = pages_of(len(run.tokens) + 1) - len(path)
        promised = sum(pages_of(len(other.tokens) + 1) - pages_of(other.n_computed) for other in self._running)
        idle_in_path = sum(node.n_users == 0 for node in path)
        return wanted + promised + len(self._running) <= self.prefixes.n_available - idle_in_path

    def _start(self, run: Run, most: int) -> None:
        is_private = run.is_embedding or not run.job.cache_prompt
        run.lease = self.prefixes.lease_private() if is_private else self.prefixes.lease(run.tokens, most)
        slot = self._slot_for(run)
        run.slot, slot.run, slot.job = slot.id, run, run.job
        if not run.was_started:
            run.was_started, run.started_s = True, time.perf_counter()
            run.n_cached = run.lease.n_cached
            self.totals["cached_tokens"] += run.n_cached
        self._waiting.remove(run)
        self._running.append(run)
        self._running.sort(key=lambda run: run.number)

    def _slot_for(self, run: Run) -> Slot:
        """The slot that was asked for; else the free one that has been free longest."""
        if run.job.slot >= 0:
            return self.slots[run.job.slot]
        wanted = {other.job.slot for other in self._waiting if other is not run}
        free = [slot for slot in self.slots if slot.run is None]
        return min(free, key=lambda slot: (slot.id in wanted, slot.freed, slot.id))

    def _leave(self, run: Run) -> None:
        """Take a run out of its slot; what it computed stays in the cache while there is room."""
        if run.lease is None:
            return
        slot = self.slots[run.slot]
        slot.run, slot.n_prompt, slot.n_cached = None, run.n_prompt, run.n_cached
        slot.token_ids = run.tokens[: run.n_computed] if run.lease.keep else []
        slot.freed = self._turn
        if run.lease.keep and run.n_computed >= run.n_prompt:
            self.archive.keep(run.job.token_ids)
        self.prefixes.release(run.lease)
        run.lease = None
        self._running.remove(run)

    def _requeue(self, run: Run) -> None:
        self._leave(run)
        self.totals["preemptions"] += 1
        if run.pooling is not None:
            run.pooling = Pooling(run.job.pooling or "", self.engine.config.embedding_dim)
        self._waiting.append(run)
        self._waiting.sort(key=lambda run: run.number)

    def _end(self, run: Run, reason: Reason) -> None:
        timings = run.timings()
        queued_ms = 1e3 * ((run.started_s or time.perf_counter()) - run.submitted_s)
        self._events.append(End(run.job.id, reason, timings, run.slot, queued_ms))
        self._forget(run)

    def _fail(self, run: Run, error: Exception) -> None:
        self._events.append(failed(run.job.id, error))
        self._forget(run)

    def _forget(self, run: Run) -> None:
        del self._runs[run.job.id]
        if run.making is not None:
            run.making.cancel()
        if run.lease is not None:
            self._job_s += 0.1 * (time.perf_counter() - run.started_s - self._job_s)
            self._leave(run)
        else:
            self._waiting.remove(run)
        self.totals["jobs"] += 1

    # --- what is to be seen -------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Gauges and counters for /metrics."""
        pages, prefixes = self.engine.pages, self.prefixes
        n_used = pages.n_pages - pages.n_free
        return {
            **self.totals,
            "prompt_seconds": self.prompt_s,
            "predicted_seconds": self.predict_s,
            "slots": len(self.slots),
            "running": len(self._running),
            "waiting": len(self._waiting),
            "reading": sum(run.n_pending > 1 for run in self._running),
            "pages": pages.n_pages,
            "pages_used": n_used,
            "pages_touched": pages.n_touched,
            "pages_idle": prefixes.n_idle,
            "pages_shared": prefixes.n_spared,
            "kv_tokens": (n_used - prefixes.n_idle) * PAGE,
            "kv_use": (n_used - prefixes.n_idle) / pages.n_pages,
        }

    def change_slot(self, number: int, action: str, slot_id: int, path: Path | None = None) -> None:
        """Save a slot's tokens with their keys and values to a file, restore them from one, or erase them. What
        becomes of it comes as `SlotDone` or `Failed`, under this number."""
        self._slot_actions.change(number, action, slot_id, path)

    def slot_views(self) -> list[dict[str, Any]]:
        """The slots as llama.cpp's /slots shows them, texts left out."""
        return [slot.view(self.engine.n_context) for slot in self.slots]


def pages_of(n_tokens: int) -> int:
    return -(-n_tokens // PAGE)
