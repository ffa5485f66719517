"""The engine as the door sees it: a process that is started, watched and started again, and jobs that it answers.

`EngineClient.submit` gives a `JobStream`: an asynchronous iterator of the job's events (engine/jobs.py). Whoever stops
iterating closes the stream, and the job is cancelled. When the engine's process dies, every job under way gets an
error at once and another process is started; when it dies again and again, `failure` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from gemmafile.engine.jobs import KINDS, Embedding, End, Event, Failed, Job, Progress, Scores, SlotDone, Token
from gemmafile.server import frames
from gemmafile.server.errors import ApiError, context_overflow, loading
from gemmafile.settings import SamplingSettings

__all__ = ["Embedding", "End", "EngineClient", "EngineInfo", "Event", "JobStream", "Progress", "Scores", "Token"]

MOST_DEATHS, DEATHS_WITHIN_S = 3, 60.0
"""An engine that dies so often in so many seconds is not started again."""

STILL_S, LOST_S = 30, 120
"""An engine that does not get on for so many seconds is told of by /health; after the second it is ended, and another
started. Passes may take minutes on a slow machine: what counts is whether they move (engine_process.py's beats)."""

_COUNTED = frozenset("efv")
"""Kinds of events that end a job: those `on_event` hears of."""

BOOT = "import sys,json;a=json.loads(sys.argv[1]);sys.path[:]=a['sys_path'];from {module} import main;main(a)"


@dataclass(frozen=True)
class EngineInfo:
    """What the engine said when it was ready.

    `n_ctx` positions of one sequence · `n_slots` answers at a time · `more` everything else it told
    """

    n_ctx: int
    n_slots: int
    threads: int
    more: dict[str, Any] = field(default_factory=dict)


class Failure(NamedTuple):
    """Why there is no engine any more, and the exit code that says it."""

    message: str
    exit_code: int


class JobStream:
    """The events of one job, as they come. Ends after `End` or `Embedding`; raises ApiError where the job failed."""

    __slots__ = ("_client", "_events", "_is_over", "_waiter", "id")

    def __init__(self, client: EngineClient, job_id: int):
        self._client, self.id = client, job_id
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False

    def push(self, event: Event) -> None:
        """An event from the engine."""
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> JobStream:
        return self

    async def __anext__(self) -> Event:
        if not self._events:
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        event = self._events.popleft()
        if isinstance(event, Failed):
            self._end()
            raise _as_error(event)
        if isinstance(event, (End, Embedding, SlotDone)):
            self._end()
        return event

    async def cancel(self) -> None:
        """Have the engine stop within one pass. Events go on until its `End`."""
        if not self._is_over:
            self._client.send({"op": "cancel", "id": self.id})

    async def aclose(self) -> None:
        """Nobody wants this job any more."""
        if not self._is_over:
            self._end()
            self._client.send({"op": "cancel", "id": self.id})

    def _end(self) -> None:
        self._is_over = True
        self._client.jobs.pop(self.id, None)


def _as_error(event: Failed) -> ApiError:
    if event.n_prompt is not None and event.n_context is not None:
        return context_overflow(event.n_prompt, event.n_context)
    return ApiError(event.status, event.message, event.kind, retry_after=event.retry_after_s)


class EngineClient:
    """The engine's process, and the jobs it has.

    `state`     "loading" until it is ready, also after a restart; "dead" between a death and the next start
    `progress`  of loading, from 0 to 1 · `stats` what the engine last said about itself · `n_restarts`
    `silent_s`  seconds since the engine was last heard of, as far as this process was awake to hear it
    `failure`   a future of the reason why there is none any more
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        *,
        say: Callable[[str], None] = lambda line: None,
        module: str = "gemmafile.server.engine_process",
    ):
        """`arguments` reach the process's main (engine_process.py), with this one's sys.path."""
        self.arguments, self._say, self._module = arguments, say, module
        self.state: Literal["loading", "ready", "dead"] = "loading"
        self.progress, self.line = 0.0, ""
        self.info: EngineInfo | None = None
        self.stats: dict[str, Any] = {}
        self.n_restarts = self.silent_s = 0
        self.lost_s = LOST_S
        self.jobs: dict[int, JobStream] = {}
        self.process: asyncio.subprocess.Process | None = None
        self.ready = asyncio.Event()
        self.failure: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        self.on_event: Callable[[Event], None] = lambda event: None
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        self._failed: Failure | None = None
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    # --- the process ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the process; returns at once, while it loads."""
        await self._spawn()
        self._task = asyncio.create_task(self._keep_running())
        self._listening = asyncio.create_task(self._end_the_silent())

    async def stop(self, seconds: float = 5.0) -> None:
        """End the process: by a word, and where that does not help, by force."""
        self._is_stopping = True
        if self._listening is not None:
            self._listening.cancel()
        self.send({"op": "stop"})
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self.process.stdin.close()
            try:
                await asyncio.wait_for(self.process.wait(), seconds)
            except TimeoutError:
                self._kill()
                await self.process.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _spawn(self) -> None:
        self.state, self.progress, self.info = "loading", 0.0, None
        self.silent_s, self.line = 0, ""
        self.ready.clear()
        told = json.dumps({**self.arguments, "sys_path": sys.path})
        command = [sys.executable, *interpreter_flags(), "-c", BOOT.format(module=self._module), told]
        self.process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 20
        )

    async def _keep_running(self) -> None:
        """Read what the process says; when it is gone, start another, or give up."""
        while True:
            assert self.process is not None
            reading = asyncio.create_task(self._read(self.process))
            gone = asyncio.create_task(self.process.wait())
            await asyncio.wait({reading, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():  # a child of the engine's may hold its end of the pipe
                await asyncio.wait({reading}, timeout=0.5)
                reading.cancel()
            outcome = (await asyncio.gather(reading, return_exceptions=True))[0]
            if isinstance(outcome, Exception) and not isinstance(outcome, (asyncio.IncompleteReadError, OSError)):
                self._say(f"the engine said what cannot be understood: {type(outcome).__name__}: {outcome}")
            self._kill()
            code = await gone
            if self._is_stopping:
                return
            self._meet_death(code)
            if self._failed is None:
                self.n_restarts += 1
                try:
                    await self._spawn()
                except OSError as error:  # no more processes, or no memory for one
                    self._failed = Failure(f"the engine cannot be started again: {error.strerror or error}", 1)
            if self._failed is not None:
                self.state = "dead"
                self.failure.set_result(self._failed)
                return

    async def _end_the_silent(self) -> None:
        """An engine that is ready and says nothing for `lost_s` is as good as dead. Counted second by second: time in
        which this process slept as well, or its machine, is nobody's silence."""
        while True:
            await asyncio.sleep(1)
            self.silent_s = self.silent_s + 1 if self.state == "ready" else 0
            if self.silent_s >= self.lost_s:
                self._say(f"the engine has not moved for {self.silent_s} s: it is ended")
                self.silent_s = 0
                self._kill()

    def fail_jobs(self, status: int, message: str) -> None:
        """End every job under way with an error."""
        for stream in list(self.jobs.values()):
            stream.push(Failed(stream.id, status, KINDS[status], message))

    def _meet_death(self, code: int) -> None:
        was_ready = self.state == "ready"
        self.state = "dead"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        message = f"the engine has died ({how}) in the middle of this; it is being restarted"
        self.fail_jobs(500, message)
        for question in self._questions.values():
            if not question.done():
                question.set_exception(ApiError(500, message))
        self._deaths.append(time.monotonic())
        often = len(self._deaths) == MOST_DEATHS and self._deaths[-1] - self._deaths[0] < DEATHS_WITHIN_S
        if self._failed is None and often:
            self._failed = Failure(f"the engine died {MOST_DEATHS} times in a row ({how}): giving up", 1)
        if self._failed is None:
            where = "" if was_ready else " while it loaded the model"
            self._say(f"the engine has died ({how}){where}: starting it again")

    def _kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                if hasattr(signal, "SIGKILL"):
                    # Not process.kill(): it would reap one that has just died, and asyncio not learn of what.
                    os.kill(self.process.pid, signal.SIGKILL)
                else:
                    self.process.kill()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        read = process.stdout.readexactly
        while True:
            (length,) = frames.LENGTH.unpack(await read(frames.LENGTH.size))
            if length > frames.MAX_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            self._take(json.loads(await read(length)))

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame["ev"]
        self.silent_s = 0
        if kind == "events":
            for item in frame["items"]:
                event = frames.unpack_event(item)
                if item[0] in _COUNTED:
                    self.on_event(event)
                stream = self.jobs.get(item[1])
                if stream is not None:
                    stream.push(event)
        elif kind == "stats":
            self.stats = frame
        elif kind == "slots":
            question = self._questions.pop(frame["id"], None)
            if question is not None and not question.done():
                question.set_result(frame["slots"])
        elif kind == "loading":
            self.progress, self.line = float(frame["progress"]), str(frame.get("line", ""))
        elif kind == "ready":
            told = dict(frame["info"])
            self.info = EngineInfo(told.pop("n_ctx"), told.pop("n_slots"), told.pop("threads"), told)
            self.state, self.progress = "ready", 1.0
            self.ready.set()
        elif kind == "failed":
            self._failed = Failure(str(frame["message"]), int(frame["exit_code"]))

    # --- jobs ----------------------------------------------------------------------------------------------------

    def require_ready(self) -> EngineInfo:
        """Raises ApiError 503 while there is no engine to ask."""
        if self.state == "ready" and self.info is not None:
            return self.info
        if self.state == "loading" and not self.n_restarts:
            raise loading(self.progress)
        raise ApiError(503, "the engine has died and is being restarted", retry_after=2)

    def submit(self, token_ids: list[int], sampling: SamplingSettings, **job_fields: Any) -> JobStream:
        """Hand a job over. Raises ApiError while there is no engine; what else is wrong, the stream raises."""
        self.require_ready()
        job = Job(self._next_id(), token_ids, sampling, **job_fields)
        stream = self.jobs[job.id] = JobStream(self, job.id)
        self.send({"op": "job", **job.to_fields()})
        return stream

    def slot_action(self, slot: int, action: str, filename: str | None = None) -> JobStream:
        """Save, restore or erase a slot: a stream that gives one `SlotDone`."""
        self.require_ready()
        stream = JobStream(self, self._next_id())
        self.jobs[stream.id] = stream
        self.send({"op": "slot", "id": stream.id, "action": action, "slot": slot, "filename": filename})
        return stream

    async def slots(self, seconds: float = 10.0) -> list[dict[str, Any]]:
        """What each slot is doing."""
        self.require_ready()
        number = self._next_id()
        question = self._questions[number] = asyncio.get_running_loop().create_future()
        self.send({"op": "slots", "id": number})
        try:
            slots: list[dict[str, Any]] = await asyncio.wait_for(question, seconds)
            return slots
        except TimeoutError:
            raise ApiError(503, f"the engine has not answered within {seconds:g} s", retry_after=1) from None
        finally:
            self._questions.pop(number, None)

    def send(self, frame: dict[str, Any]) -> None:
        """A frame to the process, if there is one."""
        if self.process is not None and self.process.stdin is not None and self.process.returncode is None:
            with contextlib.suppress(OSError, RuntimeError):
                self.process.stdin.write(frames.encode(frame))

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id


def interpreter_flags() -> list[str]:
    """The child's interpreter finds its modules as this one does, and no others."""
    flags = ["-I"] if sys.flags.isolated else []
    flags += ["-S"] if sys.flags.no_site else []
    flags += ["-B"] if sys.dont_write_bytecode else []
    flags += ["-X", f"pycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else []
    return flags
