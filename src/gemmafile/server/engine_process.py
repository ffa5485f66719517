"""The engine's process: weights, pages, samplers; no sockets. Frames come in by stdin and go out by stdout (frames.py).

`main` is called by the interpreter that client.py starts. It keeps its pipes to itself, opens the model, confines
itself, says that it is ready, and works until stdin ends: nobody has to end it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from gemmafile.engine.jobs import Job, failed
from gemmafile.errors import BadSettings, GemmafileError
from gemmafile.server import heap
from gemmafile.server.frames import LENGTH, encode, pack_event

if TYPE_CHECKING:
    from gemmafile.engine.scheduler import Scheduler

BEAT_S = 5.0
"""Seconds between two signs of life, which are given while passes get on, or nobody asks for any."""

STATS_S = 0.5
"""Seconds between two reports of the engine's state, at least."""


class Pipes:
    """The door's end: frames in, which a thread waits for, and frames out."""

    def __init__(self) -> None:
        """Takes stdin and stdout away from everything else in this process: what prints, prints to stderr."""
        self._in: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._out = os.dup(1)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self.frames: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen(self) -> None:
        """Have frames put into `frames`. When the door is gone, so is this process."""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while len(head := self._in.read(LENGTH.size)) == LENGTH.size:
                self.frames.put(json.loads(self._in.read(LENGTH.unpack(head)[0])))
        finally:
            os._exit(0)

    def send(self, frame: dict[str, Any]) -> None:
        left = memoryview(encode(frame))
        with self._lock:
            while left:
                left = left[os.write(self._out, left) :]


def main(arguments: dict[str, Any]) -> None:
    """Runs until there is nobody to work for. `arguments`: path, context, serve, unsecure, private, verbose."""
    # ctrl-c and a service manager's stop reach every process of the group: the door decides what becomes of answers.
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    heap.keep_few_arenas()
    pipes = Pipes()
    try:
        _work(pipes, arguments)
    except GemmafileError as error:
        _give_up(pipes, str(error), error.exit_code)
    except MemoryError:
        _give_up(pipes, "out of memory: give a smaller context (-c), or a smaller model", 1)
    except BrokenPipeError:
        os._exit(0)


def _give_up(pipes: Pipes, message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        pipes.send({"ev": "failed", "message": message, "exit_code": code})
    os._exit(code)


def _work(pipes: Pipes, arguments: dict[str, Any]) -> None:
    def say(line: str) -> None:
        pipes.send({"ev": "loading", "progress": 0.2, "line": line})
        print(f"gemmafile: {line}", file=sys.stderr, flush=True)

    def told(done: int, total: int) -> None:
        line = f"Kernels are compiled for this processor, once: {done} of {total}"
        pipes.send({"ev": "loading", "progress": 0.2 + 0.8 * done / total, "line": line})

    pipes.listen()
    confine_files(arguments, say)
    pipes.send({"ev": "loading", "progress": 0.1, "line": "The model is being opened"})
    from gemmafile.engine.scheduler import Scheduler
    from gemmafile.model_api import Model
    from gemmafile.settings import ContextSettings, ServeSettings, from_fields

    settings = from_fields(ServeSettings, arguments["serve"])
    context = from_fields(ContextSettings, arguments["context"])
    with Model(arguments["path"], context, say=say, n_sequences=settings.parallel) as model:
        model.engine.prepare(told)
        confine_calls(arguments, say)
        pipes.send({"ev": "loading", "progress": 1.0, "line": "The model is being read"})
        model.engine.warm_up()
        idle_bytes = None if settings.cache_ram is None else settings.cache_ram << 20
        if idle_bytes is not None and idle_bytes < 0:
            idle_bytes = sys.maxsize
        scheduler = Scheduler(
            model.engine, model.tokenizer, n_slots=settings.parallel, queue_limit=settings.max_queue,
            idle_bytes=idle_bytes, cache_folder=folder_of(settings.cache_disk),
        )  # fmt: skip
        info: dict[str, Any] = {"n_ctx": model.n_context, "n_slots": settings.parallel, "threads": model.engine.threads}
        info |= {"backend": model.engine.backend.name, "notes": model.engine.notes}
        pipes.send({"ev": "ready", "info": info})
        Worker(scheduler, pipes, folder_of(settings.slot_save_path)).run()


def folder_of(setting: str | None) -> Path | None:
    return Path(setting) if setting else None


def confine_files(arguments: dict[str, Any], say: Any) -> None:
    """Before NumPy starts its threads: writes below a few folders only."""
    if arguments.get("unsecure"):
        return
    from gemmafile.kernels.kept import cache_root
    from gemmafile.pack import confine

    serve = arguments.get("serve", {})
    folders: list[Path] = [] if arguments.get("private") else [cache_root().parent]
    folders += [Path(folder) for name in ("slot_save_path", "cache_disk") if (folder := serve.get(name))]
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the kernels have threads of their own
    try:
        done = confine.confine_files(folders)
        if arguments.get("verbose"):
            say(f"engine confined: {done}")
    except OSError as error:
        say(f"files are not confined: {error.strerror}")


def confine_calls(arguments: dict[str, Any], say: Any) -> None:
    """Once the model is loaded: no sockets, no programs, and no files where none are to be saved."""
    if arguments.get("unsecure"):
        return
    from gemmafile.pack import confine

    serve = arguments.get("serve", {})
    may_write = bool(serve.get("slot_save_path") or serve.get("cache_disk"))
    try:
        done = confine.confine_calls(may_write=may_write)
        if arguments.get("verbose"):
            say(f"engine confined: {done}")
    except OSError as error:
        say(f"connections and programs are not confined: {error.strerror}")


class Worker:
    """Frames to the scheduler, its events back: one frame for each pass."""

    def __init__(self, scheduler: Scheduler, pipes: Pipes, slot_folder: Path | None = None):
        self.scheduler, self.pipes, self.slot_folder = scheduler, pipes, slot_folder
        self._told_s = 0.0
        self._n_turns, self._is_waiting = 0, False
        self._has_rested = False
        self._told: dict[str, float] = {}

    def run(self) -> NoReturn:
        """Until the process ends."""
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            self._n_turns += 1
            if self.scheduler.is_idle:
                self._tell_stats()
                self._is_waiting = True
                frame = self._next_frame()
                self._is_waiting = False
                self._take(frame)
            while not self.pipes.frames.empty():
                self._take(self.pipes.frames.get())
            events = self.scheduler.step()
            if events:
                self.pipes.send({"ev": "events", "items": [pack_event(event) for event in events]})
            if time.monotonic() - self._told_s > STATS_S:
                self._tell_stats()

    def _next_frame(self) -> dict[str, Any]:
        try:
            return self.pipes.frames.get(timeout=heap.REST_S)
        except queue.Empty:
            self.scheduler.rest()
            heap.give_back()
            if not self._has_rested:  # half a second of work that no answer is to wait for
                self._has_rested = True
                self.scheduler.prepare_grammars().add_done_callback(lambda made: heap.give_back())
            self._tell_stats()
            return self.pipes.frames.get()

    def _beat(self) -> None:
        """Say now and then that this process gets on: a pass may take minutes, and one that hangs for ever."""
        backend, last = self.scheduler.engine.backend, (-1, -1)
        while True:
            time.sleep(BEAT_S)
            now = self._n_turns, backend.n_walked()
            if self._is_waiting or now != last:
                with contextlib.suppress(OSError):  # the door is gone, and this process soon
                    self.pipes.send({"ev": "alive"})
            last = now

    def _take(self, frame: dict[str, Any]) -> None:
        match frame.pop("op"):
            case "job":
                self._submit(frame)
            case "cancel":
                self.scheduler.cancel(frame["id"])
            case "slots":
                self.pipes.send({"ev": "slots", "id": frame["id"], "slots": self.scheduler.slot_views()})
            case "slot":
                self._change_slot(frame)
            case "stop":
                os._exit(0)

    def _submit(self, frame: dict[str, Any]) -> None:
        try:
            job = Job.from_fields(frame)
        except GemmafileError as error:
            self._refuse(frame["id"], error)
        else:
            self.scheduler.submit(job)

    def _change_slot(self, frame: dict[str, Any]) -> None:
        folder, name = self.slot_folder, frame.get("filename")
        if frame["action"] != "erase" and not (folder and name):
            self._refuse(frame["id"], BadSettings("there is no folder to save slots to (--slot-save-path)"))
            return
        path = folder / name if folder and name else None
        self.scheduler.change_slot(frame["id"], frame["action"], frame["slot"], path)

    def _refuse(self, number: int, error: GemmafileError) -> None:
        self.pipes.send({"ev": "events", "items": [pack_event(failed(number, error))]})

    def _tell_stats(self) -> None:
        """What /metrics shows, if it has changed."""
        self._told_s = time.monotonic()
        stats = self.scheduler.stats()
        if stats != self._told:
            self._told = stats
            self.pipes.send({"ev": "stats", **stats})
