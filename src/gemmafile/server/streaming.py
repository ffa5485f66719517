"""From events to bytes on their way: streams that begin, are merged, and end when their client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gemmafile.server.errors import ApiError, as_api_error

T = TypeVar("T")


async def begin(events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same events, once the first has come: an error before it is raised here, before any byte is sent."""
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    return _resume(first, events)


async def _resume(first: T, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    try:
        yield first
        async for event in events:
            yield event
    finally:
        await events.aclose()


async def merge(answers: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """The events of several answers as they come, each with the number of its answer; an error of one ends them all."""
    if len(answers) == 1:
        async with aclosing(answers[0]) as only:
            async for event in only:
                yield 0, event
        return
    events: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            async with aclosing(answers[number]) as source:
                async for event in source:
                    events.put_nowait((number, event))
            events.put_nowait(None)
        except Exception as error:
            events.put_nowait(error)

    tasks = [asyncio.create_task(pump(number)) for number in range(len(answers))]
    n_left = len(tasks)
    try:
        while n_left:
            item = await events.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                n_left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class ClientGone(Exception):
    """Nobody is there to take the answer."""


async def until_disconnect(receive: Receive, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled when the client goes away (ClientGone)."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, watch):
            if not each.done():
                each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response whose body comes in pieces: server-sent events, or lines of JSON.

    `chunks` gives bytes; it is closed when the client goes away, or takes nothing for `timeout_s` seconds. An error in
    the middle ends the stream with what `show_error` makes of it.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        media_type: str = "text/event-stream",
        *,
        timeout_s: float = 3600.0,
        show_error: Callable[[ApiError], bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        self.chunks, self.timeout_s, self.show_error = chunks, timeout_s, show_error
        self.status_code, self.background = 200, None
        # Proxies in between are not to collect what comes piece by piece.
        no_buffers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self.media_type = media_type
        self.init_headers({**no_buffers, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGone, TimeoutError):
                await until_disconnect(receive, self._send(send))
        finally:
            await self.chunks.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self.chunks:
                async with asyncio.timeout(self.timeout_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            if self.show_error is None or isinstance(error, TimeoutError):
                raise
            body = self.show_error(as_api_error(error))
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def stream_until_disconnect(
    request: Request,
    chunks: AsyncGenerator[bytes, None],
    media_type: str = "text/event-stream",
    show_error: Callable[[ApiError], bytes] | None = None,
) -> EventStream:
    """The response that sends `chunks` and closes them, which cancels the job, when the client goes away."""
    timeout_s = float(request.app.state.door.settings.timeout)
    return EventStream(chunks, media_type, timeout_s=timeout_s, show_error=show_error)
