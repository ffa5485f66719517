"""A child process for work on texts that nobody has checked: rendering, and reading PDF files.

The server's own process answers everybody; what runs here cannot hold it up. A call that takes too long is ended by
ending the child, and the next call starts another. The child writes no file, opens no connection and has a limit on its
memory. Frames both ways, on its stdin and stdout: 4 bytes of length, little-endian, then JSON.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Final

from gemmafile.errors import BadSettings, GemmafileError

MAX_WAITING: Final = 64
MEMORY_BYTES: Final = 1 << 30
START_SECONDS: Final = 60.0
"""For a child to start: a fifth of a second, or many. It is not counted as the call's that came first."""


class WorkerBusy(GemmafileError):
    """Too many calls are waiting."""

    http_status = 503


class Worker:
    """Calls `function(**arguments)` of a module's `FUNCTIONS` in the child, one at a time."""

    def __init__(self, module: str = __name__) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="page-worker")
        self._n_waiting = 0
        self._is_closed = False

    async def call(self, function: str, seconds: float, **arguments: Any) -> Any:
        """What the function returns. Raises BadSettings as it does, or when it takes longer than `seconds` or more
        memory than there is for it; WorkerBusy.
        """
        if self._n_waiting >= MAX_WAITING:
            raise WorkerBusy("too many texts are waiting to be rendered: try again in a second")
        self._n_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self.call_now, function, seconds, arguments)
        finally:
            self._n_waiting -= 1

    def call_now(self, function: str, seconds: float, arguments: dict[str, Any]) -> Any:
        """`call` for one thread alone."""
        for attempt in (0, 1):
            if self._is_closed:
                raise WorkerBusy("the server is stopping")
            fresh = self._process is None or self._process.poll() is not None
            process = self._start()
            stopped = threading.Event()
            timer = threading.Timer(seconds, lambda p=process, s=stopped: (s.set(), p.kill()))
            timer.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                write_frame(process.stdin, [function, arguments])
                reply = read_frame(process.stdout)
            except OSError:
                reply = None
            finally:
                timer.cancel()
            if reply is not None:
                if "error" in reply:
                    raise BadSettings(reply["error"])
                return reply["value"]
            self._end()
            if stopped.is_set():
                raise BadSettings(f"this takes longer than {seconds:g} s")
            if fresh or attempt:
                raise BadSettings("this takes more memory than there is for it, or cannot be read")
        raise AssertionError

    def close(self) -> None:
        """Ends the child, for good."""
        self._is_closed = True
        atexit.unregister(self.close)
        self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            from gemmafile.server.client import interpreter_flags  # not for the child, which imports this module

            self._end()
            code = (
                f"import sys; sys.path[:] = {sys.path!r}\n"
                f"from gemmafile.web.worker import child; from {self._module} import FUNCTIONS; child(FUNCTIONS)"
            )
            self._process = subprocess.Popen(
                [sys.executable, *interpreter_flags(), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            atexit.register(self.close)
            timer = threading.Timer(START_SECONDS, self._process.kill)
            timer.start()
            assert self._process.stdout is not None
            try:
                read_frame(self._process.stdout)  # "I am ready"; of a child that is dead the call itself tells
            finally:
                timer.cancel()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            process.wait()


def write_frame(pipe: IO[bytes], value: Any) -> None:
    raw = json.dumps(value).encode()
    pipe.write(struct.pack("<I", len(raw)) + raw)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> Any:
    """None at the end."""
    head = pipe.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    raw = pipe.read(size)
    return json.loads(raw) if len(raw) == size else None


# --- the child -------------------------------------------------------------------------------------------------------


def _render(texts: list[str]) -> list[str]:
    from gemmafile.web.render import render

    return [render(text) for text in texts]


def _render_open(text: str) -> list[Any]:
    from gemmafile.web.render import render_open

    return list(render_open(text))


def _extract(name: str, data: str) -> dict[str, Any]:
    from gemmafile.web.documents import extract_text

    return extract_text(name, base64.b64decode(data))


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {"render": _render, "render_open": _render_open, "extract": _extract}


def child(functions: Mapping[str, Callable[..., Any]]) -> None:
    """The child's life: it ends when its stdin does."""
    import signal

    with contextlib.suppress(AttributeError, ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends ctrl-c to it too; the server decides
    frames_in, frames_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _confine()
    write_frame(frames_out, "ready")
    while (frame := read_frame(frames_in)) is not None:
        function, arguments = frame
        try:
            write_frame(frames_out, {"value": functions[function](**arguments)})
        except GemmafileError as error:
            write_frame(frames_out, {"error": str(error)})
        except Exception as error:  # parsers of texts nobody has checked fail in ways of their own
            write_frame(frames_out, {"error": f"this cannot be read: {type(error).__name__}"})


def _confine() -> None:
    """Best effort, and silent: the engine's own confinement is what `doctor` tells of."""
    with contextlib.suppress(Exception):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _import_all()
    with contextlib.suppress(OSError):
        from gemmafile.pack import confine

        confine.confine_files([])
        confine.confine_calls(may_write=False)


def _import_all() -> None:
    """What renders, before nothing can be written: Python keeps the bytecode of what it imports."""
    from gemmafile.web.render import render

    render("`x` $x$\n\n```python\nx = 1\n```\n")
