"""A terminal with a program in it: types, waits for text, and reads what is on the screen."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 60.0
ENTER, CTRL_C, CTRL_D, ALT_ENTER, NEWLINE = "\r", "\x03", "\x04", "\x1b\r", "\n"

_PROGRAM = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first terminal a new session opens is the one whose ctrl-c it gets
from gemmafile.cli.main import main
sys.exit(main())
"""


class Terminal:
    """Runs `gemmafile WORDS` in a pseudo-terminal of its own; stderr is on the same screen."""

    def __init__(self, *words: object, env: dict[str, str] | None = None):
        self._master, slave = pty.openpty()
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TERM": "dumb", **(env or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *map(str, words)],
            stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.screen = ""

    def type(self, text: str) -> None:
        """Ctrl-c comes as from a person, a moment later: Python's readline takes no notice of a signal that arrives
        between a key and its wait for the next, until another key is pressed."""
        if text == CTRL_C:
            time.sleep(0.2)
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> str:
        """Everything on the screen up to and with `text`, since the last call. Fails when it does not come."""
        end_s = time.monotonic() + TIMEOUT_S
        while text not in self.screen:
            assert self._read(end_s - time.monotonic()), f"no {text!r} in {self.screen!r}"
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def wait(self) -> int:
        """The exit code; what was still written is on the screen."""
        end_s = time.monotonic() + TIMEOUT_S
        while self._read(end_s - time.monotonic()):
            pass
        return self.process.wait(timeout=max(0.1, end_s - time.monotonic()))

    def _read(self, timeout_s: float) -> bool:
        """More text on the screen? False at the end, or when none came in time."""
        if timeout_s <= 0 or not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            raw = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the program has closed its end
            return False
        self.screen += raw.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(raw)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
