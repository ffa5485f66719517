"""Many jobs at once, and the answers they would have had alone: for tests of the scheduler."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from gemmafile.engine.engine import Engine
from gemmafile.engine.jobs import End, Event, Failed, Job, Token
from gemmafile.engine.samplers import Samplers
from gemmafile.engine.scheduler import Scheduler
from gemmafile.files.open import open_model
from gemmafile.settings import ContextSettings, SamplingSettings
from gemmafile.text.tokenizer import Tokenizer, load_tokenizer
from tools.make_tiny import PRESETS, make_tiny, write_tiny

EOG = 3
"""Ends an answer in the table below."""


class Table:
    """Stands for a tokenizer: every token is a word of its own."""

    def __init__(self, n: int, eog_ids: Iterable[int] = (EOG,)):
        self.n_tokens, self.eog_ids = n, frozenset(eog_ids)

    def is_control(self, token_id: int) -> bool:
        return token_id <= EOG

    def token_bytes(self) -> list[bytes]:
        return [b"t%d " % i for i in range(self.n_tokens)]


def open_preset(
    folder: Path, preset: str, n_sequences: int = 1, sizes: dict[str, int] | None = None, **settings: object
) -> Engine:
    """An engine on a small random model."""
    path = folder / f"{preset}.gguf"
    if not path.exists():
        write_tiny(make_tiny(replace(PRESETS[preset], **(sizes or {})), seed=7), path)
    values = {"threads": 1, "context": 1024, **settings}
    chosen = ContextSettings(**values)  # type: ignore[arg-type]
    return Engine(open_model(path, chosen, print), chosen, n_sequences=n_sequences, say=lambda line: None)


def answer_alone(engine: Engine, job: Job, table: Table | Tokenizer) -> list[int]:
    """The tokens of a job with nobody beside it: one row a pass, in a sequence of its own."""
    sampler = Samplers(table, engine.config.n_vocab, engine.n_context).make(job.sampling, job.token_ids)
    sequence = engine.new_sequence()
    chosen = []
    for choice in engine.generate(sequence, list(job.token_ids), sampler, job.n_predict):
        chosen.append(choice.token_id)
        if choice.token_id in table.eog_ids:
            break
    sequence.truncate(0)
    return chosen


class Crowd:
    """Drives a scheduler and sorts its events by job."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.tokens: dict[int, list[int]] = {}
        self.events: dict[int, list[Event]] = {}
        self.ends: dict[int, End | Failed] = {}

    def submit(self, *jobs: Job) -> None:
        for job in jobs:
            self.scheduler.submit(job)

    def step(self) -> list[Event]:
        events = self.scheduler.step()
        for event in events:
            assert event.id not in self.ends, "an event after the end"
            self.events.setdefault(event.id, []).append(event)
            if isinstance(event, Token):
                self.tokens.setdefault(event.id, []).append(event.token_id)
            if isinstance(event, (End, Failed)):
                self.ends[event.id] = event
        return events

    def finish(self, most_passes: int = 5000) -> None:
        for _ in range(most_passes):
            if self.scheduler.is_idle:
                return
            self.step()
        raise AssertionError(f"not done after {most_passes} passes")


def random_job(
    rng: random.Random, number: int, beginnings: Sequence[list[int]], n_vocab: int, longest: int = 300
) -> Job:
    """A prompt that may begin like others, greedy or seeded, sometimes with samplers that look back."""
    ids = list(rng.choice(beginnings)[: rng.randrange(1, 200)])
    ids += [rng.randrange(n_vocab) for _ in range(rng.randrange(1, longest if rng.random() < 0.3 else 20))]
    sampling = rng.choice(
        [
            SamplingSettings(temperature=0.0),
            SamplingSettings(seed=number),
            SamplingSettings(seed=number, temperature=1.5, top_k=0, repeat_penalty=1.3, min_p=0.0),
        ]
    )
    return Job(number, ids, sampling, n_predict=rng.randrange(1, 40), cache_prompt=rng.random() < 0.9)


def load_real(path: Path, context: int, n_sequences: int) -> tuple[Engine, Tokenizer]:
    settings = ContextSettings(context=context)
    file = open_model(path, settings, print)
    return Engine(file, settings, n_sequences=n_sequences), load_tokenizer(file.metadata, path)
