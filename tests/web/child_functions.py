"""What a child process may be made to do in tests, to prove that it is bounded."""

from __future__ import annotations

import socket
import time


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def fill(n_bytes: int) -> int:
    return len(bytearray(n_bytes))


def attempt(what: str, path: str) -> str:
    try:
        if what == "file":
            with open(path, "w"):
                pass
        else:
            socket.socket().close()
    except OSError as error:
        return type(error).__name__
    return "nothing happened"


FUNCTIONS = {"sleep": sleep, "fill": fill, "attempt": attempt, "add": lambda a, b: a + b}
