"""One line of progress on stderr, for anything that takes more than a moment.

On a terminal the line is redrawn in place and wiped when done; in a log it is a line now and then.
stdout is never touched: it carries the answer only. Imports nothing but the standard library.

    with Progress("compiling kernels", total=7) as progress:
        for kernel in kernels:
            progress.note(kernel.name)
            compile(kernel)
            progress.advance()
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

REDRAW_S = 0.1
"""A terminal is redrawn at most this often."""

LOG_S = 10.0
"""A log gets a line at most this often."""

SILENT_S = 0.3
"""Work done sooner than this shows nothing at all."""


class Progress:
    """A task with a label and, when known, a total; units are counts or bytes.

    `total`  how many steps (or bytes) there are; None: unknown
    `bytes`  amounts are bytes and shown in MB
    `rate`   say how many MB a second
    `eta`    say how long it will go on, where there is a total
    `quiet`  show nothing (the caller's --quiet, --log-disable ...)
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        bytes: bool = False,
        rate: bool = False,
        eta: bool = False,
        quiet: bool = False,
        stream: TextIO | None = None,
    ):
        self.label, self.total, self.bytes, self.rate, self.eta, self.quiet = label, total, bytes, rate, eta, quiet
        self.stream = stream if stream is not None else sys.stderr
        self.done = 0
        self._note = ""
        self._is_terminal = self.stream.isatty()
        self._start_s = time.monotonic()
        self._next_s = self._start_s + SILENT_S
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def advance(self, amount: int = 1) -> None:
        """`amount` more steps (or bytes) are done."""
        self.done += amount
        self._show_when_due()

    def note(self, text: str) -> None:
        """What is being done at the moment, shown behind the count."""
        self._note = text
        self._show_when_due()

    def close(self, *, failed: bool = False) -> None:
        """Wipes the line of a terminal; says in a log how long it took, if it took long enough to be shown."""
        if self._is_terminal:
            self._draw("")
        elif self._next_s > self._start_s + SILENT_S and not self.quiet:
            ending = "stopped" if failed else "done"
            print(f"{self.label}: {ending} in {time.monotonic() - self._start_s:.1f} s", file=self.stream, flush=True)

    def text(self) -> str:
        """The line as it stands."""
        line = f"{self.label}: {self._count()}" if self.done or self.total else self.label
        return f"{line}  {self._note}" if self._note else line

    def _count(self) -> str:
        scale, unit = (1e6, " MB") if self.bytes else (1, "")
        done = f"{self.done / scale:.0f}"
        speed = f" {self.done / scale / max(time.monotonic() - self._start_s, 1e-3):.0f}{unit}/s" if self.rate else ""
        if not self.total:
            return f"{done}{unit}{speed}"
        return f"{done}/{self.total / scale:.0f}{unit} ({100 * self.done // self.total}%){speed}{self._left()}"

    def _left(self) -> str:
        """How long it will go on at the pace so far."""
        if not (self.eta and self.total and self.done):
            return ""
        left_s = (time.monotonic() - self._start_s) * max(0, self.total - self.done) / self.done
        return f" {left_s:.0f} s left" if left_s < 100 else f" {left_s / 60:.0f} min left"

    def _show_when_due(self) -> None:
        now_s = time.monotonic()
        if self.quiet or now_s < self._next_s:
            return
        self._next_s = now_s + (REDRAW_S if self._is_terminal else LOG_S)
        if self._is_terminal:
            self._draw(self.text())
        else:
            print(self.text(), file=self.stream, flush=True)

    def _draw(self, text: str) -> None:
        if text or self._width:
            text = text[:100]
            print("\r" + text.ljust(self._width), end="\r" if not text else "", file=self.stream, flush=True)
            self._width = len(text)
