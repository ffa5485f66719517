"""The engine: token ids in, logits and token ids out. The only loop that calls the model.

`Engine.open` binds a model file to a backend and a KV cache. Text is the business of `text/` and the doors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import Protocol, TypeVar

import numpy as np

from gemmafile.engine.pages import Pages, Sequence
from gemmafile.errors import BadSettings, ContextOverflow
from gemmafile.files.gguf import ModelFile
from gemmafile.files.placement import free_memory_bytes
from gemmafile.kernels.backend import Trace, make_backend
from gemmafile.kernels.cache import KVCache, page_bytes
from gemmafile.model.adapters import load_adapters, parse_adapters
from gemmafile.model.batch import PAGE, Batch
from gemmafile.model.config import read_config
from gemmafile.model.record import record
from gemmafile.model.weights import load_weights
from gemmafile.settings import ContextSettings


class Choice(Protocol):
    """A chosen token, with whatever else a sampler says of it."""

    @property
    def token_id(self) -> int: ...


C = TypeVar("C", bound=Choice, covariant=True)


class Chooser(Protocol[C]):
    """What generation needs of a sampler."""

    def sample(self, logits: np.ndarray) -> C: ...

    def accept(self, token_id: int) -> None: ...


MAX_THREADS, MAX_BATCH = 1024, 1 << 16
LOGITS_BYTES = 64 << 20
"""Most memory that the logits of one pass take; more rows are computed in more passes."""


class Engine:
    """A model ready to run, for one caller at a time.

    `config`  sizes and constants · `n_context`  positions a sequence may have · `notes`  what --verbose says
    """

    def __init__(
        self, file: ModelFile, settings: ContextSettings | None = None, say: Callable[[str], None] = print,
        *, n_sequences: int = 1,
    ):  # fmt: skip
        """Raises BadFile or UnsupportedModel for the file, BadSettings for the settings.

        say          gets lines that the user should see (fallbacks, compilation)
        n_sequences  how many sequences of `n_context` positions the KV cache is to hold, as far as free memory goes
        """
        settings = settings or ContextSettings()
        self.file, self.settings = file, settings
        self.config = read_config(file, settings)
        self.weights = load_weights(file, self.config)
        self.notes = list(self.config.notes)
        self.n_context = self._choose_context(say)
        n_pages = self._choose_pages(n_sequences)
        self.cache = KVCache(self.config, n_pages, settings.cache_type_k, settings.cache_type_v)
        self.pages = Pages(n_pages, self.cache.clear_page, self.cache.copy_page, self.cache.drop_pages)
        self.threads = _threads("--threads", settings.threads, physical_cores())
        self.threads_batch = _threads("--threads-batch", settings.threads_batch, self.threads)
        batch = _within("--batch-size", settings.batch, MAX_BATCH)
        self.max_rows = min(_within("--ubatch-size", settings.ubatch, MAX_BATCH), batch, self.n_context)
        # Held here: a backend knows the addresses of weights only.
        self.adapters = load_adapters(parse_adapters(settings.lora, settings.lora_scaled), self.config, self.weights)
        tape = record(self.config, self.weights, self.adapters, has_fine_products=settings.activations == "fine")
        self.backend = make_backend(
            settings.backend, tape, self.config, self.weights, self.cache,
            threads=self.threads, threads_batch=self.threads_batch, max_rows=self.max_rows, say=say,
        )  # fmt: skip
        self._computing, self._is_closed = threading.Lock(), False

    def _choose_context(self, say: Callable[[str], None]) -> int:
        """The asked-for context; 0: the model's maximum; None: that, shrunk to fit the memory that is free."""
        asked, maximum = self.settings.context, self.config.n_context
        if asked is not None and asked < 0:
            raise BadSettings(f"--ctx-size is {asked}, expected 0 (the model's maximum) or more")
        if asked:
            if asked > maximum:
                say(f"context {asked} is over the {maximum} tokens the model was trained for")
            return asked
        if asked == 0:
            return maximum
        room = _room_bytes()
        fitting = max(PAGE, room // self._page_bytes * PAGE) if room else maximum
        if fitting < maximum:
            self.notes.append(
                f"context shrunk from {maximum} to {fitting} tokens to fit {room >> 20} MiB of free memory"
            )
        return min(maximum, fitting)

    def _choose_pages(self, n_sequences: int) -> int:
        """Pages for so many sequences, or as many as fit the memory that is free; at least those of one."""
        one = -(-self.n_context // PAGE)
        room = _room_bytes()
        return max(one, min(one * n_sequences, room // self._page_bytes)) if room else one * n_sequences

    @property
    def _page_bytes(self) -> int:
        return page_bytes(self.config, self.settings.cache_type_k, self.settings.cache_type_v)

    def new_sequence(self) -> Sequence:
        return Sequence(self.pages)

    def forward(
        self, sequence: Sequence, token_ids: list[int], *, want: str = "last", trace: Trace | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Compute tokens at the end of a sequence, at most `max_rows` a pass.

        want  "last": logits float32[1, V] of the last token · "all": float32[T, V] · "none": float32[0, V]
        on_progress  called with the number of tokens done after each pass
        Raises ContextOverflow when they do not fit, BadSettings once the engine is closed. An interrupted call leaves
        the sequence as far as it got.
        """
        if len(sequence) + len(token_ids) > self.n_context:
            raise ContextOverflow(len(sequence) + len(token_ids), self.n_context)
        self.check_ids(token_ids)
        kept: list[np.ndarray] = [np.empty((0, self.config.n_vocab), np.float32)]
        rows = self.max_rows if want != "all" else min(self.max_rows, max(1, LOGITS_BYTES // (4 * self.config.n_vocab)))
        for start in range(0, len(token_ids), rows):
            chunk = token_ids[start : start + rows]
            last = start + len(chunk) == len(token_ids)
            outputs = range(len(chunk)) if want == "all" else [len(chunk) - 1] if want == "last" and last else []
            before = len(sequence)
            sequence.extend(chunk)
            try:
                logits = self.run(self._batch(sequence, before, list(outputs)), trace)
            except BaseException:
                sequence.truncate(before)
                raise
            if len(outputs):
                kept.append(logits.copy())
            if on_progress is not None:
                on_progress(start + len(chunk))
        return kept[-1] if len(kept) <= 2 else np.concatenate(kept)

    def run(self, batch: Batch, trace: Trace | None = None) -> np.ndarray:
        """One pass: logits float32[n_outputs, V], lent until the next. Raises BadSettings once the engine is closed."""
        with self._computing:
            self._check_open()
            return self.backend.run(batch, trace)

    def run_hidden(self, batch: Batch) -> np.ndarray:
        """One pass without the output matrix: float32[n_outputs, E] after the last norm, lent until the next."""
        with self._computing:
            self._check_open()
            return self.backend.run_hidden(batch)

    def _check_open(self) -> None:
        if self._is_closed:
            raise BadSettings("the model is closed")

    def check_ids(self, token_ids: SequenceOf[int]) -> None:
        """Raises BadSettings for an id outside the vocabulary."""
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.config.n_vocab:
            wrong = next(i for i in token_ids if not 0 <= i < self.config.n_vocab)
            raise BadSettings(f"token id {wrong} is not in the model's vocabulary of {self.config.n_vocab}")

    def _batch(self, sequence: Sequence, first: int, outputs: list[int]) -> Batch:
        n = len(sequence)
        return Batch(
            token_ids=np.array(sequence.token_ids[first:], np.int32),
            positions=np.arange(first, n, dtype=np.int32),
            sequences=np.zeros(n - first, np.int32),
            page_tables=sequence.page_table()[None],
            outputs=np.array(outputs, np.int32),
        )

    def generate(
        self, sequence: Sequence, token_ids: list[int], chooser: Chooser[C], n_predict: int,
        *, on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[C]:  # fmt: skip
        """Compute `token_ids`, then choose token after token; each is yielded before it is computed.

        Stops after n_predict tokens (negative: no limit) or when the context is full; the caller stops it for
        any other reason by not asking for more. The last token yielded is not in the sequence.
        """
        logits = self.forward(sequence, token_ids, on_progress=on_progress)
        n = 0
        while n_predict < 0 or n < n_predict:
            choice = chooser.sample(logits[-1])
            chooser.accept(choice.token_id)
            yield choice
            n += 1
            if n == n_predict or len(sequence) + 1 > self.n_context:
                return
            logits = self.forward(sequence, [choice.token_id])

    def prepare(self, told: Callable[[int, int], None] | None = None) -> None:
        """Be ready for this process to be confined (see Backend.prepare)."""
        self.backend.prepare(told)

    def warm_up(self) -> None:
        """A pass of one token that leaves nothing: weights are mapped, and nobody's first token waits for it."""
        sequence = self.new_sequence()
        self.forward(sequence, [0])
        sequence.truncate(0)

    def rest(self) -> None:
        """No pass for a while: the memory of values goes back to the system. Logits that were lent are lost."""
        with self._computing:
            self.backend.rest()

    def close(self) -> None:
        """Let go of the threads, after the pass that another thread may be in. May be called twice."""
        with self._computing:
            self._is_closed = True
            self.backend.close()


def _room_bytes() -> int:
    """Bytes that a KV cache may take without being asked for by name; 0: not known."""
    return free_memory_bytes() * 3 // 4


def _threads(flag: str, asked: int | None, default: int) -> int:
    """0 and less ask for the default, as in llama.cpp."""
    return _within(flag, default if asked is None or asked < 1 else asked, MAX_THREADS)


def _within(flag: str, value: int, most: int) -> int:
    if not 1 <= value <= most:
        raise BadSettings(f"{flag} is {value}, expected 1 to {most}")
    return value


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once where the system says."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in usable:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", encoding="ascii") as f:
                siblings.add(f.read().strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))
