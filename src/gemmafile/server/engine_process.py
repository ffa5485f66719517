"""The engine's process: weights, pages, samplers; no sockets. Frames come in by stdin and go out by stdout (frames.py).

`main` is called by the interpreter that client.py starts. It keeps its pipes to itself, opens the model, confines
itself, says that it is ready, and works until stdin ends: nobody has to end it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from gemmafile.errors import GemmafileError


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
        import json

        from gemmafile.server.frames import LENGTH

        try:
            while len(head := self._in.read(LENGTH.size)) == LENGTH.size:
                self.frames.put(json.loads(self._in.read(LENGTH.unpack(head)[0])))
        finally:
            os._exit(0)

    def send(self, frame: dict[str, Any]) -> None:
        from gemmafile.server.frames import encode

        left = memoryview(encode(frame))
        with self._lock:
            while left:
                left = left[os.write(self._out, left) :]


def main(arguments: dict[str, Any]) -> None:
    """Runs until there is nobody to work for. `arguments`: path, context, serve, unsecure, private, verbose."""
    # ctrl-c and a service manager's stop reach every process of the group: the door decides what becomes of answers.
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
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
        pipes.send({"ev": "loading", "progress": 0.5, "line": line})
        print(f"gemmafile: {line}", file=sys.stderr, flush=True)

    pipes.listen()
    confine_files(arguments, say)
    pipes.send({"ev": "loading", "progress": 0.1, "line": "opening the model"})
    from gemmafile.model_api import Model
    from gemmafile.settings import ContextSettings, from_fields

    with Model(arguments["path"], from_fields(ContextSettings, arguments["context"]), say=say) as model:
        model.engine.prepare()
        confine_calls(arguments, say)
        info = {"n_ctx": model.n_context, "n_slots": 1, "threads": model.engine.threads}
        pipes.send({"ev": "ready", "info": info})
        OneAtATime(model, pipes).run()


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


class OneAtATime:
    """A stand-in for the scheduler: one job after the other."""

    def __init__(self, model: Any, pipes: Pipes):
        self.model, self.pipes = model, pipes
        self.waiting: list[dict[str, Any]] = []
        self.cancelled: set[int] = set()

    def run(self) -> None:
        while True:
            self._take(wait=not self.waiting)
            if self.waiting:
                self._answer(self.waiting.pop(0))

    def _take(self, wait: bool) -> None:
        while True:
            try:
                frame = self.pipes.frames.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if frame["op"] == "job":
                self.waiting.append(frame)
            elif frame["op"] == "cancel":
                self.cancelled.add(frame["id"])
            elif frame["op"] == "slots":
                self.pipes.send({"ev": "slots", "id": frame["id"], "slots": [{"id": 0, "is_processing": False}]})
            elif frame["op"] == "stop":
                os._exit(0)

    def _send(self, events: Iterable[Any]) -> None:
        from gemmafile.server.frames import pack_event

        self.pipes.send({"ev": "events", "items": [pack_event(event) for event in events]})

    def _answer(self, frame: dict[str, Any]) -> None:
        from gemmafile.completion import keep_common_prefix
        from gemmafile.engine.jobs import End, Failed, Job, Progress, Timings, Token

        frame.pop("op")
        n_id = frame["id"]
        try:
            job = Job.from_fields(frame)
            sequence, engine = self.model.sequence, self.model.engine
            start_s = time.perf_counter()
            sampler = self.model.make_sampler(job.sampling, job.token_ids)
            remaining = keep_common_prefix(sequence, list(job.token_ids), engine.n_context)
            n, prompt_ms, reason = 0, 0.0, "context full"
            n_all = len(job.token_ids)
            self._send([Progress(n_id, n_all - len(remaining), n_all, n_all - len(remaining))])
            for choice in engine.generate(sequence, remaining, sampler, job.n_predict):
                n += 1
                prompt_ms = prompt_ms or 1000 * (time.perf_counter() - start_s)
                has_probs = job.sampling.n_probs > 0
                self._send([Token(n_id, choice.token_id, choice.logprob if has_probs else None, choice.top or None)])
                self._take(wait=False)
                if n_id in self.cancelled:
                    reason = "cancelled"
                    break
                if choice.token_id in self.model.tokenizer.eog_ids:
                    reason = "stop"
                    break
                if n == job.n_predict:
                    reason = "limit"
            total_ms = 1000 * (time.perf_counter() - start_s)
            timings = Timings(n_all - len(remaining), len(remaining), prompt_ms, n, total_ms - prompt_ms)
            self._send([End(n_id, reason, timings, 0)])  # type: ignore[arg-type]
        except GemmafileError as error:
            self._send([Failed(n_id, error.http_status, "invalid_request_error", str(error))])
