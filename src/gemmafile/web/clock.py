"""A time limit for code that has no other way to be stopped: asked often, it raises when the time is over."""

from __future__ import annotations

import time


class TooSlow(Exception):
    """The time is over."""


class Clock:
    """`seconds` from now."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raises TooSlow once the time is over."""
        if time.monotonic() > self._end:
            raise TooSlow
