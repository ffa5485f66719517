"""Filters on what is asked and what is answered: `--filter NAME` or `--filter NAME:ARGUMENT`.

A filter is a class, or a function that returns an object, with

    change_prompt(text) -> text      for each stretch of a prompt between control tokens
    start_answer() -> Answer         for each answer: an object with push(text) -> text and flush() -> text

`push` gets the answer's text as it comes and returns what may be shown; what it holds back comes later, at the latest
from `flush`. Either may raise `Refused`: a prompt is then answered with 400, an answer ends with "content_filter".
Filters of others are found by the entry point group "gemmafile.filters"; here are two to start from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gemmafile.errors import BadFile, BadSettings, GemmafileError, nearest
from gemmafile.text.tokenizer import Tokenizer

GROUP = "gemmafile.filters"
MASK = "▇▇▇"


class Refused(GemmafileError):
    """A filter will not have this text."""

    http_status = 400


class AnswerFilter(Protocol):
    """What one answer goes through."""

    def push(self, text: str) -> str: ...

    def flush(self) -> str: ...


class Filter(Protocol):
    """What every prompt goes through, and where answers get theirs."""

    def change_prompt(self, text: str) -> str: ...

    def start_answer(self) -> AnswerFilter: ...


class Patterns:
    """Replaces what patterns match. `tail` matches the end of a text that may be the start of a match."""

    def __init__(self, patterns: Sequence[tuple[re.Pattern[str], str]], tail: re.Pattern[str], longest: int):
        self._patterns, self._tail, self._longest = patterns, tail, longest

    def change_prompt(self, text: str) -> str:
        for pattern, name in self._patterns:
            text = pattern.sub(name, text)
        return text

    def start_answer(self) -> AnswerFilter:
        return _Held(self)

    def find_safe(self, text: str) -> int:
        """How much of a text that goes on can be shown: up to where a match may have begun, and no part of one."""
        found = self._tail.search(text, max(0, len(text) - self._longest))
        at = found.start() if found is not None else len(text)
        for pattern, _ in self._patterns:
            at = max([at, *(m.end() for m in pattern.finditer(text) if m.start() < at < m.end())])
        return at


class _Held:
    """The text of an answer as far as it is safe."""

    def __init__(self, patterns: Patterns):
        self._patterns, self._text = patterns, ""

    def push(self, text: str) -> str:
        self._text += text
        at = self._patterns.find_safe(self._text)
        shown, self._text = self._text[:at], self._text[at:]
        return self._patterns.change_prompt(shown)

    def flush(self) -> str:
        shown, self._text = self._text, ""
        return self._patterns.change_prompt(shown)


def personal_data(argument: str) -> Filter:
    """Mail addresses, telephone and account numbers become [mail], [phone] and [account]."""
    if argument:
        raise BadSettings(f"--filter personal-data takes no argument, and {argument!r} was given")
    patterns = [
        (re.compile(r"[\w.+%-]{1,64}@[\w-]+(?:\.[\w-]+)+"), "[mail]"),
        (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), "[account]"),
        (re.compile(r"(?<![\w+])(?:\d[ -]?){12,18}\d(?!\w)"), "[account]"),
        (re.compile(r"(?<![\w+])(?:\+\d{1,3}|\(?0\d{1,4}\)?)(?:[ ./-]?\d{2,5}){2,5}(?!\w)"), "[phone]"),
        (re.compile(r"(?<![\w+])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\w)"), "[phone]"),
    ]
    tail = r"(?:[A-Z]{2}\d{2}[A-Z0-9 ]*|[+(]?\d[\d ()./-]*|[\w.+%@-]+|[+(])$"
    return Patterns(patterns, re.compile(tail), 100)


def words(argument: str) -> Filter:
    """The words and phrases of a file, one a line, are covered up, whatever the case of their letters."""
    if not argument:
        raise BadSettings("--filter words needs a file: words:FILE")
    try:
        lines = [line.strip() for line in Path(argument).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise BadFile(argument, f"cannot be read: {error}") from None
    listed = sorted({line for line in lines if line and not line.startswith("#")}, key=len, reverse=True)
    if not listed:
        raise BadFile(argument, "holds no words")
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, listed))})(?!\w)", re.IGNORECASE)
    longest = len(listed[0])
    # From the first word of a phrase on: any word may begin one.
    tail = re.compile(rf"(?<!\w)\S(?:.{{0,{longest}}})$" if any(" " in w for w in listed) else r"\S+$", re.DOTALL)
    return Patterns([(pattern, MASK)], tail, longest + 1)


BUILT_IN: dict[str, Callable[[str], Filter]] = {"personal-data": personal_data, "words": words}


def load_filters(wanted: Sequence[str]) -> list[Filter]:
    """The filters that --filter names, in their order. Raises BadSettings, naming the nearest."""
    return [_load(*text.partition(":")[::2]) for text in wanted]


def _load(name: str, argument: str) -> Filter:
    if name in BUILT_IN:
        return BUILT_IN[name](argument)
    from importlib.metadata import entry_points

    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        known = [*BUILT_IN, *found]
        raise BadSettings(f"there is no filter {name!r}{nearest(name, known)}; known are {', '.join(known)}")
    made: Any = found[name].load()
    loaded: Filter = made(argument)
    return loaded


class Chain:
    """Several filters as one, each getting what the one before lets through."""

    def __init__(self, filters: Sequence[Filter], tokenizer: Tokenizer):
        self.filters, self._tokenizer = list(filters), tokenizer

    def __bool__(self) -> bool:
        return bool(self.filters)

    def change_ids(self, ids: list[int]) -> list[int]:
        """The prompt with each stretch between control tokens changed. Only what a filter changes is encoded again."""
        changed: list[int] = []
        stretch: list[int] = []
        for token_id in [*ids, -1]:
            if token_id >= 0 and not self._tokenizer.is_control(token_id):
                stretch.append(token_id)
                continue
            changed += self._change_stretch(stretch)
            stretch = []
            if token_id >= 0:
                changed.append(token_id)
        return changed

    def _change_stretch(self, ids: list[int]) -> list[int]:
        before = after = self._tokenizer.decode(ids)
        for each in self.filters:
            after = each.change_prompt(after)
        return ids if after == before else self._tokenizer.encode(after, add_special=False)

    def start_answer(self) -> AnswerFilter:
        return _Answers([each.start_answer() for each in self.filters])


class _Answers:
    def __init__(self, answers: Sequence[AnswerFilter]):
        self._answers = answers

    def push(self, text: str) -> str:
        for answer in self._answers:
            text = answer.push(text)
        return text

    def flush(self) -> str:
        text = ""
        for answer in self._answers:
            text = (answer.push(text) if text else "") + answer.flush()
        return text
