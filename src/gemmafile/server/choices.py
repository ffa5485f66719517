"""Several answers at once, as they come: `merge` gives the events of all of them with the number of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

E = TypeVar("E")


async def merge(streams: Sequence[AsyncGenerator[E, None]]) -> AsyncGenerator[tuple[int, E], None]:
    """(number of the stream, its event). The first error of any ends all; closing this closes them."""
    if len(streams) == 1:
        try:
            async for event in streams[0]:
                yield 0, event
        finally:
            await streams[0].aclose()
        return
    # One event waits for each: who takes slowly does not make them pile up.
    queue: asyncio.Queue[tuple[int, E | BaseException | None]] = asyncio.Queue(len(streams))

    async def pump(number: int, stream: AsyncGenerator[E, None]) -> None:
        try:
            async for event in stream:
                await queue.put((number, event))
            await queue.put((number, None))
        except Exception as error:
            await queue.put((number, error))
        finally:
            await stream.aclose()

    tasks = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    n_open = len(tasks)
    try:
        while n_open:
            number, item = await queue.get()
            if item is None:
                n_open -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
