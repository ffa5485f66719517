"""From the token ids of a prompt to text, piece by piece: the one loop under the command line and the Python API.

In: an engine, a tokenizer, token ids, a sampler and the reasons to stop. Out: `Piece`s whose text is whole
characters and never part of a stop string; afterwards the `Answer` says why it ended and how long it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gemmafile.errors import BadSettings, ContextOverflow

if TYPE_CHECKING:
    from gemmafile.engine.engine import Engine
    from gemmafile.engine.pages import Sequence as CachedSequence
    from gemmafile.engine.sampler import Choice, Sampler
    from gemmafile.text.tokenizer import Tokenizer

Ending = Literal["end of turn", "stop string", "limit", "context full", "cancelled", "unfinished"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that one token released ("" while it is held back), and how the token was chosen.

    `token_id`  None for text released at the end · `logprob`, `top`  as the sampler gives them
    """

    text: str
    token_id: int | None = None
    logprob: float | None = None
    top: Any = None


class StopStrings:
    """Looks for texts in a stream; what may be the start of one is held back until it is known."""

    def __init__(self, texts: Sequence[str]):
        self.texts = [text for text in texts if text]
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that is safe to show. After `found` is set, everything from the stop string on is dropped."""
        if not self.texts:
            return text
        held = self._held + text
        hits = [(at, stop) for stop in self.texts if (at := held.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits, key=lambda hit: hit[0])
            self._held = ""
            return held[:at]
        keep = max(overlap(held, stop) for stop in self.texts)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a start of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class _Cancelled(Exception):
    """Raised between two passes, where the sequence is whole."""


class Answer:
    """One answer as it comes. Iterate once; then read the fields.

    token_ids   chosen tokens, the one that ended the answer included
    ending      why it ended · `stop_text` the stop string, if that was why
    prompt_s    seconds until the first token was chosen · `generation_s` seconds after that
    n_computed  tokens of the prompt that are computed; the others were in the cache
    on_progress   gets (tokens of the prompt done, n_computed) · is_cancelled is asked between passes
    """

    def __init__(
        self,
        engine: Engine,
        sequence: CachedSequence,
        tokenizer: Tokenizer,
        token_ids: list[int],
        sampler: Sampler,
        *,
        n_predict: int = -1,
        stop: Sequence[str] = (),
        special: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ):
        self.engine, self.sequence, self.tokenizer, self.sampler = engine, sequence, tokenizer, sampler
        self.n_predict, self.special = n_predict, special
        self.prompt_ids = token_ids
        self.token_ids: list[int] = []
        self.ending: Ending = "unfinished"
        self.prompt_s = self.generation_s = 0.0
        self.n_computed = 0
        self._stops, self._stop_ids = StopStrings(stop), stop_ids(tokenizer, stop, special)
        self._on_progress, self._is_cancelled = on_progress, is_cancelled

    @property
    def stop_text(self) -> str | None:
        return self._stops.found

    def __iter__(self) -> Iterator[Piece]:
        """Raises ContextOverflow when the prompt does not fit; nothing has been computed then."""
        remaining = keep_common_prefix(self.sequence, self.prompt_ids, self.engine.n_context)
        self.n_computed = len(remaining)
        decoder = self.tokenizer.stream(self.special, at_start=False)
        try:
            for choice in self._choose(remaining):
                is_stop = choice.token_id in self._stop_ids
                text = "" if is_stop else decoder.push(choice.token_id)
                yield Piece(self._stops.push(text), choice.token_id, choice.logprob, choice.top)
                if is_stop or self._stops.found is not None:
                    self.ending = "stop string"
                    break
                if choice.token_id in self.tokenizer.eog_ids:
                    self.ending = "end of turn"
                    break
                if self._is_cancelled():
                    raise _Cancelled
            else:
                # The engine has no more to give: the limit was reached, or the context is full.
                self.ending = "limit" if 0 <= self.n_predict <= len(self.token_ids) else "context full"
        except _Cancelled:
            self.ending = "cancelled"
        if self._stops.found is None:
            yield Piece(self._stops.push(decoder.flush()) + self._stops.flush())

    def _choose(self, remaining: list[int]) -> Iterator[Choice]:
        """The engine's choices, kept and timed."""
        start_s = time.perf_counter()
        for choice in self.engine.generate(
            self.sequence, remaining, self.sampler, self.n_predict, on_progress=self._meet_progress
        ):
            self.token_ids.append(choice.token_id)
            if len(self.token_ids) == 1:
                self.prompt_s = time.perf_counter() - start_s
            self.generation_s = time.perf_counter() - start_s - self.prompt_s
            yield choice

    def _meet_progress(self, n_done: int) -> None:
        if self._on_progress is not None:
            self._on_progress(n_done, self.n_computed)
        if self._is_cancelled():
            raise _Cancelled


def check_prompt(token_ids: list[int], n_context: int) -> None:
    """Raises ContextOverflow for a prompt that does not fit, BadSettings for an empty one."""
    if len(token_ids) > n_context:
        raise ContextOverflow(len(token_ids), n_context)
    if not token_ids:
        raise BadSettings("the prompt is empty: there is nothing to go on from")


def keep_common_prefix(sequence: CachedSequence, token_ids: list[int], n_context: int) -> list[int]:
    """Cut a sequence where it departs from `token_ids`; returns those still to be computed, at least the last.

    Raises as `check_prompt`, changing nothing.
    """
    check_prompt(token_ids, n_context)
    pairs = zip(sequence.token_ids, token_ids[:-1], strict=False)
    n_common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(sequence), len(token_ids) - 1))
    sequence.truncate(n_common)
    return token_ids[n_common:]


def stop_ids(tokenizer: Tokenizer, stop: Sequence[str], special: bool) -> frozenset[int]:
    """Stop strings that are a control token: its text is not in the stream unless `special`, so its id is watched."""
    found = (tokenizer.find_token(text) for text in stop)
    return frozenset(i for i in found if i is not None and tokenizer.is_control(i) and not special)
