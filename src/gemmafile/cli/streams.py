"""stdout and stderr of a run: the answer on the one, everything else on the other."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from gemmafile.progress import Progress

_DRIVING = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t\r"}
"""Control characters: a model's text must not move the cursor or set the title of a window."""


class Streams:
    """stdout carries the answer only, as UTF-8, flushed piece by piece.

    `quiet`    nothing on stderr (--log-disable; errors still end the program with their line)
    `verbose`  details too, and what is otherwise for terminals only
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False):
        self.quiet, self.verbose = quiet, verbose
        self.out, self.err = _as_utf8(sys.stdout), _as_utf8(sys.stderr)
        self._in_line = False

    def write(self, text: str) -> None:
        """A piece of the answer. On a terminal, characters that would drive it are shown as U+FFFD."""
        if text:
            self.out.write(text.translate(_DRIVING) if self.out.isatty() else text)
            self.out.flush()
            self._in_line = not text.endswith("\n")

    def end_line(self) -> None:
        """A line's end, unless the answer is at one."""
        if self._in_line:
            self.write("\n")

    def say(self, line: str) -> None:
        """A notice for the user."""
        if not self.quiet:
            self.show(f"gemmafile: {line}")

    def show(self, text: str) -> None:
        """Something that was asked for and is no part of an answer: help, statistics."""
        if self.out.isatty():
            self.end_line()
        print(text, file=self.err, flush=True)

    def detail(self, line: str) -> None:
        """Said with --verbose only."""
        if self.verbose and not self.quiet:
            print(line, file=self.err, flush=True)

    @property
    def shows_progress(self) -> bool:
        """Are timings and progress wanted? On a terminal, or when asked for."""
        return not self.quiet and (self.verbose or self.err.isatty())

    def progress(self, label: str) -> Progress:
        return Progress(label, quiet=not self.shows_progress, stream=self.err)


def _as_utf8(stream: TextIO) -> TextIO:
    """The stream, writing UTF-8 whatever the locale says; what is no character becomes "?"."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    return stream


def may_use_colour(stream: TextIO) -> bool:
    """A terminal that shows colours, and a user who has not switched them off (no-color.org)."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
