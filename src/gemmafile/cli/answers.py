"""One answer on its way to stdout: progress while the prompt is read, pieces as they come, ctrl-c, timings."""

from __future__ import annotations

import signal
import threading
from itertools import chain
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from gemmafile.cli.details import describe_speed, show_sampler
from gemmafile.cli.streams import Streams
from gemmafile.completion import Answer
from gemmafile.settings import RunSettings, SamplingSettings

if TYPE_CHECKING:
    from gemmafile.model_api import Model


class CancelOnInterrupt:
    """While it is entered and `is_on`, the first ctrl-c is only noted; a second one interrupts as usual."""

    def __init__(self, is_on: bool) -> None:
        self.is_on, self.is_cancelled = is_on, False
        self._previous: Any = None

    def __enter__(self) -> CancelOnInterrupt:
        if self.is_on and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_cancelled:
            raise KeyboardInterrupt
        self.is_cancelled = True


def write_answer(
    model: Model,
    token_ids: list[int],
    sampling: SamplingSettings,
    settings: RunSettings,
    streams: Streams,
    *,
    echo: str = "",
    ctrl_c_stops_it: bool = False,
    in_chat: bool = False,
) -> tuple[str, Answer]:
    """Answer a prompt on stdout; returns the text and how it came about.

    `echo`  text to show before it; not before the prompt is read, whose progress would be drawn over it
    `ctrl_c_stops_it`  ctrl-c ends the answer ("cancelled") instead of the program
    `in_chat`  timings only with --verbose: /stats tells them
    Raises ContextOverflow when the prompt does not fit.
    """
    sampler = model.make_sampler(sampling, token_ids)
    show_sampler(sampler, streams)
    texts: list[str] = []
    progress = streams.progress("reading the prompt")

    def advance(n_done: int, n_all: int) -> None:
        progress.total = n_all
        progress.advance(n_done - progress.done)

    with CancelOnInterrupt(ctrl_c_stops_it) as interrupt:
        answer = Answer(
            model.engine, model.sequence, model.tokenizer, token_ids, sampler,
            n_predict=settings.n_predict, stop=settings.reverse_prompts, special=settings.special,
            on_progress=advance, is_cancelled=lambda: interrupt.is_cancelled,
        )  # fmt: skip
        pieces = iter(answer)
        with progress:
            first = next(pieces)
        streams.write(echo)
        for piece in chain([first], pieces):
            streams.write(piece.text)
            texts.append(piece.text)
    _report_end(answer, streams, settings.n_predict, in_chat)
    return "".join(texts), answer


def _report_end(answer: Answer, streams: Streams, n_predict: int, in_chat: bool) -> None:
    """Says on stderr that the context is full, if nobody asked for that, and how fast it went."""
    if answer.ending == "context full" and n_predict != -2:
        n_context = answer.engine.n_context
        streams.say(f"the context of {n_context} tokens is full: the text stops here; -c gives a larger one")
    if streams.shows_progress and (streams.verbose or not in_chat):
        streams.show(describe_speed(answer))
