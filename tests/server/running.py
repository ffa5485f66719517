"""A real server for tests (a thread with an event loop, the engine in its process, a port of its own) and a client.

with running(path) as server:
    status, body = server.post("/completion", {"prompt": "x"})
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemmafile.server.door import Door
from gemmafile.server.launch import bind, open_door, serve
from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, ServeSettings

WAIT_S = 60.0
START_S = 200.0
"""Kernels may have to be compiled first, on a machine that has other work."""


@dataclass
class Answer:
    """`headers` in small letters · `body` as it came"""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The values of a stream of server-sent events; "[DONE]" as it is."""
        texts = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]

    def __iter__(self) -> Iterator[Any]:
        yield self.status
        yield self.json


@dataclass
class Running:
    """A server that answers on `port`; `said` is what it told whoever started it, `failed` why it ended."""

    port: int
    door: Door
    loop: asyncio.AbstractEventLoop
    said: list[str] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    thread: threading.Thread = field(default_factory=threading.Thread)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout_s: float = WAIT_S) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = WAIT_S
    ) -> Answer:
        """`body`  bytes are sent as they are, all else as JSON"""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect(timeout_s)
        try:
            connection.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.request("POST", path, body, **options)


@contextlib.contextmanager
def running(
    path: Path,
    settings: ServeSettings | None = None,
    context: ContextSettings | None = None,
    sampling: SamplingSettings | None = None,
    run: RunSettings | None = None,
    wait: bool = True,
    wait_s: float = START_S,
) -> Iterator[Running]:
    """A server until the end of the block; `wait`: only once the model is loaded.

    `wait_s`  for that, and for its end
    """
    started: list[Running] = []
    is_up, failed = threading.Event(), list[BaseException]()
    context = context or ContextSettings(backend="reference", context=512)

    async def work() -> None:
        said: list[str] = []
        door = open_door(str(path), settings or ServeSettings(), context, run, sampling, say=said.append)
        listener = bind("127.0.0.1", 0)
        started.append(Running(listener.getsockname()[1], door, asyncio.get_running_loop(), said, failed, thread))
        serving = asyncio.create_task(serve(door, listener))
        ready = asyncio.create_task(door.client.ready.wait())
        if wait:
            await asyncio.wait({serving, ready}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
        is_up.set()
        await asyncio.wait({serving, asyncio.create_task(over.wait())}, return_when=asyncio.FIRST_COMPLETED)
        door.stop()
        await asyncio.wait_for(serving, wait_s)

    over = asyncio.Event()

    def start() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            failed.append(error)
        finally:
            is_up.set()

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    assert is_up.wait(wait_s)
    if failed:
        raise failed[0]
    try:
        yield started[0]
    finally:
        with contextlib.suppress(RuntimeError):
            started[0].loop.call_soon_threadsafe(over.set)
        thread.join(wait_s)
        assert not thread.is_alive(), "the server does not stop"
