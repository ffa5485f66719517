"""The engine of `gemmafile run` confined: files before NumPy starts its threads, calls once the model is loaded.

Only a process that is ours from its first line on is confined (`owned`): in a test or in somebody's program, main()
is a function call, and confinement lasts as long as the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemmafile.cli.run import Plan
    from gemmafile.cli.streams import Streams
    from gemmafile.model_api import Model

_process = {"owned": False}
_in_force: list[str] = []
"""Words for people who ran into it: where this process may still write."""

_last: list[Callable[[], None]] = []


def own_process(before_the_end: Callable[[], None] | None = None) -> None:
    """This process runs one command line and ends; `before_the_end` is its last chance to write files."""
    _process["owned"] = True
    if before_the_end is not None:
        _last.append(before_the_end)


def begin(plan: Plan, streams: Streams) -> None:
    """Before anything heavy is imported: from here on files are written below a few folders only, or nowhere."""
    settings = plan.run
    if settings.private:
        sys.dont_write_bytecode = True
    if not _process["owned"] or settings.unsecure:
        streams.detail(f"confined    not at all: {'--unsecure' if settings.unsecure else 'called as a function'}")
        return
    from gemmafile.pack import confine

    if settings.private and not confine.landlock_version():
        os.environ["GEMMAFILE_CACHE"] = os.devnull
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the kernels have threads of their own
    folders = writable(plan)
    try:
        streams.detail(f"confined    {confine.confine_files(folders)}")
        if confine.landlock_version():
            places = dict.fromkeys(map(str, folders[1:3]))
            _in_force.append(f"only below {' and '.join(places)}" if places else "nowhere")
    except OSError as error:
        streams.say(f"files are not confined: {error.strerror}")


def writable(plan: Plan) -> list[Path]:
    """Where this run may write: caches of machine code; in a chat at a terminal its history and the current folder."""
    from gemmafile.kernels.kept import cache_root

    if plan.run.private:
        return []
    folders = [cache_root().parent]
    if is_chat_at_terminal(plan):
        from gemmafile.cli.lines import history_path

        history = history_path()
        folders += [Path.cwd(), Path(tempfile.gettempdir())]  # for /save
        if history is not None and not plan.run.simple_io:
            folders.append(history.parent)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    if keeps_prompts(plan):
        folders.append(Path(plan.run.prompt_cache or "").absolute().parent)
    return folders


def keeps_prompts(plan: Plan) -> bool:
    """Is --prompt-cache to be written at the end?"""
    return plan.run.prompt_cache is not None and not plan.run.prompt_cache_ro


def is_chat_at_terminal(plan: Plan) -> bool:
    return sys.stdin.isatty() and not (plan.prompt is not None and not plan.run.conversation)


def before_the_end() -> None:
    """Whatever is to be written before nothing more can be."""
    while _last:
        _last.pop()()


def complete(plan: Plan, model: Model, streams: Streams) -> None:
    """Once the model is loaded and its threads are there: no connections, no programs, on every one of them."""
    before_the_end()
    if not _process["owned"] or plan.run.unsecure:
        return
    from gemmafile.pack import confine

    model.engine.prepare()
    may_write = not plan.run.private and (sys.stdin.isatty() or keeps_prompts(plan))
    try:
        streams.detail(f"confined    {confine.confine_calls(may_write=may_write)}")
        if not may_write and confine.has_seccomp():
            _in_force.append("nowhere")
    except OSError as error:
        tell = streams.detail if error.errno == errno.ENOSYS else streams.say
        tell(f"connections and programs are not confined: {error.strerror}")


def explain(error: OSError) -> str:
    """Why a file could not be written, and what to do, where that is the confinement's doing; else ""."""
    if not _in_force or error.errno not in (errno.EPERM, errno.EACCES):
        return ""
    return f" (the engine is confined and may write {_in_force[-1]}; --unsecure lets it write anywhere)"
