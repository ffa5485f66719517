'''Reading what a user types: lines, messages of several lines, history.

On a terminal there is line editing (GNU readline where Python has it) and a history file; from a pipe, plain lines.
A message of several lines: lines that end in a backslash, a text between """ and """, or alt-return.
'''

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType, TracebackType

from gemmafile.cli.streams import Streams, may_use_colour
from gemmafile.settings import RunSettings

QUOTES = '"""'
HISTORY_LINES = 1000
_USER_COLOUR, _RESET = "\x1b[1;32m", "\x1b[0m"


class LineReader:
    """Reads messages from stdin. A context manager: leaving it saves the history.

    `is_terminal`  somebody is typing
    """

    def __init__(self, settings: RunSettings, streams: Streams):
        self.streams, self.multiline = streams, settings.multiline_input
        self.is_terminal = sys.stdin.isatty()
        edits = self.is_terminal and sys.stdout.isatty() and not settings.simple_io
        self._readline = _import_readline() if edits else None
        wants_colour = settings.color == "on" or (settings.color == "auto" and may_use_colour(sys.stdout))
        self._colour = wants_colour and edits
        self._history = history_path() if self._readline and not settings.private else None

    def __enter__(self) -> LineReader:
        if self._readline is not None:
            _bind_keys(self._readline)
            if self._history is not None:
                _load_history(self._readline, self._history)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._readline is not None and self._history is not None:
            save_history(self._readline, self._history)

    def read_message(self, prompt: str) -> str | None:
        """One message, its lines joined by newlines; None at the end of input."""
        line = self._read_line(prompt)
        if line is None:
            return None
        more = "" if not prompt else ". "
        if line.lstrip().startswith(QUOTES):
            return self._read_quoted(line.lstrip().removeprefix(QUOTES), more)
        lines = [line]
        while self._goes_on(lines):
            following = self._read_line(more)
            if following is None:
                break
            lines.append(following)
        return "\n".join(lines)

    def _goes_on(self, lines: list[str]) -> bool:
        """Does another line belong to the message? Takes the mark that says so, or says not, off the last one.

        A backslash at the end means "more"; with --multiline-input it means "that is all", and so does a slash.
        """
        last = lines[-1]
        if last.endswith("\\") or (self.multiline and last.endswith("/")):
            lines[-1] = last[:-1]
            return not self.multiline
        return self.multiline

    def _read_quoted(self, first: str, more: str) -> str:
        """The text up to the closing quotes."""
        lines = [first]
        while not lines[-1].rstrip().endswith(QUOTES):
            line = self._read_line(more)
            if line is None:
                return "\n".join(lines).strip("\n")
            lines.append(line)
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def _read_line(self, prompt: str) -> str | None:
        """One line without its end. Raises KeyboardInterrupt for ctrl-c."""
        if self._readline is not None:
            return self._edit_line(prompt)
        if self.is_terminal and prompt:
            # The prompt is for the person at the terminal, wherever stdout goes.
            stream = sys.stdout if sys.stdout.isatty() else sys.stderr
            stream.write(prompt)
            stream.flush()
        raw = sys.stdin.buffer.readline()
        return raw.decode("utf-8", "replace").rstrip("\r\n") if raw else None

    def _edit_line(self, prompt: str) -> str | None:
        if self._colour:
            prompt = f"\x01{_RESET}\x02{prompt}\x01{_USER_COLOUR}\x02"
        try:
            return _as_unicode(input(prompt))
        except EOFError:
            return None
        finally:
            if self._colour:
                sys.stdout.write(_RESET)
                sys.stdout.flush()

    def discarded_text(self) -> str:
        """What stood on the line that ctrl-c threw away, where that can be known."""
        return self._readline.get_line_buffer() if self._readline is not None else ""


def _as_unicode(text: str) -> str:
    """Bytes that were no UTF-8 on the terminal become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _import_readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    return readline


def _bind_keys(readline: ModuleType) -> None:
    """Alt-return puts a newline into the line. Ctrl-j stays what it is everywhere, a return: programs that drive a
    terminal send it for one."""
    if "libedit" not in (readline.__doc__ or ""):
        for key in (r"\e\C-m", r"\e\C-j"):
            readline.parse_and_bind(rf'"{key}": "\C-v\C-j"')


def history_path() -> Path | None:
    """None for a user without a home."""
    from platformdirs import user_state_path

    try:
        return user_state_path("gemmafile", appauthor=False) / "history"
    except RuntimeError:
        return None


def _load_history(readline: ModuleType, path: Path) -> None:
    readline.clear_history()
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(path)


def save_history(readline: ModuleType, path: Path) -> None:
    """Written whole or not at all, for this user only; where it cannot be written there is no history."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix="history.")
        os.close(handle)
        try:
            readline.write_history_file(name)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
