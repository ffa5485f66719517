"""How much a chat template may do: steps, seconds, characters, list items. `sandbox.py` asks about each thing.

A bound is checked before a value is made wherever making it could itself be the harm ('a' * 10**9).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from jinja2 import TemplateError, Undefined

MAX_STEPS: Final = 1_000_000
MAX_SECONDS: Final = 1.5
"""Of the thread's own time, for one rendering or for all inside `share_time`: a machine that is busy with other things
makes no template a bad one."""
MAX_ITEMS: Final = 100_000
MAX_CHARS: Final = 1_000_000
"""What a template may write, and the longest text it may make; eight times the length of the messages comes on top."""
MAX_MADE: Final = 128
"""All texts made on the way, kept or not, may add up to this many times MAX_CHARS."""

_MAX_INT_BITS: Final = 1024
_CHARS_PER_ITEM: Final = 8


class TooMuch(TemplateError):
    """A bound was reached."""


class Refused(TemplateError):
    """The template will not have these messages, in its own words."""


class Budget:
    """What is left of one rendering."""

    def __init__(self, input_chars: int):
        self.max_chars = MAX_CHARS + 8 * input_chars
        self.steps, self.written, self.made = MAX_STEPS, self.max_chars, self.max_chars * MAX_MADE
        self.deadline = _DEADLINE.get() or time.thread_time() + MAX_SECONDS

    def step(self, written: int = 0, made: int = 0) -> None:
        """One step that writes and makes so many characters. Raises TooMuch."""
        self.steps -= 1
        self.written -= written
        self.made -= made
        if self.written < 0 or self.made < 0:
            raise TooMuch(f"it writes or makes too much text: more than {self.max_chars} characters")
        if self.steps < 0 or time.thread_time() > self.deadline:
            raise TooMuch(f"it takes more than {MAX_STEPS} steps or {MAX_SECONDS:g} s")


CURRENT: Final[ContextVar[Budget | None]] = ContextVar("template_budget", default=None)
"""The budget of the rendering that this thread is in; None while a template is compiled."""


_DEADLINE: Final[ContextVar[float | None]] = ContextVar("template_deadline", default=None)


@contextmanager
def share_time() -> Iterator[None]:
    """All renderings inside, on this thread, have MAX_SECONDS together: a prompt takes several."""
    token = _DEADLINE.set(time.thread_time() + MAX_SECONDS)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def step(written: int = 0, made: int = 0) -> None:
    if budget := CURRENT.get():
        budget.step(written, made)


def check_chars(n: int) -> None:
    """A text of `n` characters is about to be made."""
    budget = CURRENT.get()
    if n > (budget.max_chars if budget else MAX_CHARS):
        raise TooMuch(f"it makes a text of {n} characters")


def check_items(n: int) -> None:
    """A list of `n` items is about to be made."""
    if n > MAX_ITEMS:
        raise TooMuch(f"it makes a list of more than {MAX_ITEMS} items")


def check_value(value: Any) -> Any:
    """The value, if it is of bounded size: what a list holds twice counts twice, as if it were written out."""
    if isinstance(value, str):
        check_chars(len(value))
        step(made=len(value))
        return value
    pending, n_items, n_chars = [value], 0, 0
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            n_chars += len(item)
        elif isinstance(item, int):
            if item.bit_length() > _MAX_INT_BITS:
                raise TooMuch("it makes too large a number")
        elif isinstance(item, (list, tuple, Mapping)):
            n_items += len(item)
            check_items(n_items)
            pending += [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
        elif item is not value and not (item is None or isinstance(item, (float, Undefined))):
            raise TemplateError(f"a list or dict must hold plain data, not a {type(item).__name__}")
    check_chars(n_chars)
    step(made=n_chars + _CHARS_PER_ITEM * n_items)
    return value


def take(items: Iterable[Any]) -> list[Any]:
    """The items as a list, if they are not too many."""
    taken: list[Any] = []
    for item in items:
        taken.append(item)
        check_items(len(taken))
    return taken


def write(value: Any) -> str:
    """How a value is spelled in the output. Raises TemplateError for what is not data (a macro, a namespace)."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (bool, int, float, Undefined, list, tuple, dict)):
        return str(check_value(value))
    raise TemplateError(f"cannot write a {type(value).__name__}")
