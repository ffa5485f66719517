"""OpenAI's /v1/chat/completions, with llama.cpp's extra fields; /v1/chat/completions/input_tokens counts a prompt.

In: a request's JSON. Out: a chat.completion, or its chunks as server-sent events. The work is done in turns.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.engine.jobs import Progress
from gemmafile.server.body import Fields, read_json
from gemmafile.server.json_response import Json, event
from gemmafile.server.openai_requests import MOST_CHOICES, read_chat
from gemmafile.server.openai_shapes import (
    DONE,
    Clock,
    chat_logprobs,
    fingerprint,
    make_id,
    now,
    show_stream_error,
    usage_of,
)
from gemmafile.server.streaming import begin, merge, stream_until_disconnect, until_disconnect
from gemmafile.server.tools import CallArguments, CallBegun
from gemmafile.server.turns import Done, Prepared, Said, TurnEvent, Whole, gather, prepare, take

if TYPE_CHECKING:
    from gemmafile.server.door import Door


def routes(door: Door) -> list[BaseRoute]:
    async def chat(request: Request) -> Response:
        fields = Fields(await read_json(request, door.limits))
        return await answer_chat(door, request, fields)

    async def count(request: Request) -> Response:
        fields = Fields(await read_json(request, door.limits))
        turn, _ = read_chat(fields, door)
        prepared = await prepare(door, turn)
        return Json({"object": "response.input_tokens", "input_tokens": prepared.n_prompt})

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/chat/completions", chat, methods=["POST"]),
        Route("/v1/chat/completions/input_tokens", count, methods=["POST"]),
        Route("/chat/completions/input_tokens", count, methods=["POST"]),
    ]


async def answer_chat(door: Door, request: Request, fields: Fields) -> Response:
    turn, n_top = read_chat(fields, door)
    n, is_stream = fields.whole("n", 1, 1, MOST_CHOICES), fields.flag("stream")
    prepared = await prepare(door, turn)
    shape = Shape(door, fields, n_top, prepared.n_prompt)
    choices = [with_seed(prepared, number) for number in range(n)]
    events = await until_disconnect(request.receive, begin(merge([take(door, choice) for choice in choices])))
    if is_stream:
        return stream_until_disconnect(request, shape.stream(events, n), show_error=show_stream_error)
    return Json(await until_disconnect(request.receive, shape.whole(events, n)))


def with_seed(prepared: Prepared, number: int) -> Prepared:
    """The same for a further choice: a given seed gives each of them another answer."""
    sampling = prepared.ask.sampling
    if number == 0 or sampling.seed < 0:
        return prepared
    ask = dataclasses.replace(prepared.ask, sampling=dataclasses.replace(sampling, seed=sampling.seed + number))
    return dataclasses.replace(prepared, ask=ask)


class Shape:
    """How the answer to one request is written: what all its chunks share."""

    def __init__(self, door: Door, fields: Fields, n_top: int | None, n_prompt: int):
        self.door, self.n_top, self.n_prompt = door, n_top, n_prompt
        options = Fields(fields.object("stream_options") or {}, "stream_options.")
        self.with_usage = options.flag("include_usage")
        self.with_progress = fields.flag("return_progress")
        self.with_timings = fields.flag("timings_per_token")
        self.head = {
            "id": make_id("chatcmpl-"),
            "created": now(),
            "model": fields.text("model") or door.model_name,
            "system_fingerprint": fingerprint(door),
        }

    # --- all at once ---------------------------------------------------------------------------------------------

    async def whole(self, events: AsyncGenerator[tuple[int, TurnEvent], None], n: int) -> dict[str, Any]:
        taken = await gather(events, n)
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [self._choice(number, each) for number, each in enumerate(taken)],
            "usage": usage_of([each.finished for each in taken]),
            "timings": taken[0].finished.timings,
        }

    def _choice(self, number: int, whole: Whole) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.calls:
            message["content"] = whole.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in whole.calls
            ]
        logprobs = None if self.n_top is None else chat_logprobs(self.door.tokenizer, whole.tokens, self.n_top)
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": whole.reason}

    # --- piece by piece ------------------------------------------------------------------------------------------

    async def stream(self, events: AsyncGenerator[tuple[int, TurnEvent], None], n: int) -> AsyncGenerator[bytes, None]:
        done: list[Done] = []
        clocks = [Clock(self.n_prompt) for _ in range(n)]
        try:
            for number in range(n):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async for number, item in events:
                match item:
                    case Said():
                        timings = clocks[number].wrote(len(item.tokens))
                        if item.text or self.n_top is not None:
                            yield self._said(number, item, timings)
                    case CallBegun():
                        function = {"name": item.name, "arguments": ""}
                        call = {"index": item.index, "id": item.id, "type": "function", "function": function}
                        yield self._chunk(number, {"tool_calls": [call]})
                    case CallArguments():
                        if item.text:
                            call = {"index": item.index, "function": {"arguments": item.text}}
                            yield self._chunk(number, {"tool_calls": [call]})
                    case Done():
                        done.append(item)
                        more = {"timings": item.finished.timings} if len(done) == n else {}
                        yield self._chunk(number, {}, reason=item.reason, **more)
                    case Progress():
                        progress = clocks[number].read(item)
                        if self.with_progress:
                            yield self._chunk(number, {}, prompt_progress=progress)
            if self.with_usage:
                usage = usage_of([each.finished for each in done])
                yield event({**self._head(), "choices": [], "usage": usage, "timings": done[0].finished.timings})
            yield DONE
        finally:
            await events.aclose()

    def _said(self, number: int, item: Said, timings: dict[str, Any]) -> bytes:
        logprobs = None if self.n_top is None else chat_logprobs(self.door.tokenizer, item.tokens, self.n_top)
        more: dict[str, Any] = {"timings": timings} if self.with_timings else {}
        return self._chunk(number, {"content": item.text}, logprobs, **more)

    def _head(self) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk"}

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self.with_usage else {}
        return event({**self._head(), "choices": [choice], **usage, **more})
