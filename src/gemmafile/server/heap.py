"""The C library's heap: what a process has freed goes back to the system.

glibc keeps freed memory for the next request, in a heap of its own for almost every thread: after a busy hour a server
would look as if it leaked. Other C libraries do as they do.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

REST_S = 2.0
"""Seconds without a request after which door and engine give memory back that they do not need."""

M_ARENA_MAX = -8
"""Source: glibc, malloc.h."""

ARENAS = 2
"""Python lets one thread at a time go on, so more of them save nobody a wait."""


def keep_few_arenas() -> None:
    """Before threads are started: let them share heaps."""
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Whatever is free goes back to the system; a few milliseconds."""
    gc.collect()
    trim = _function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _function(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # a system without such a thing
        return None
