"""OpenAI's /v1/responses without memory: what a request does not bring with it is not known.

In: a request's JSON with `input` items. Out: a response, or its events (`response.created` ... `response.completed`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.server.answering import Finished
from gemmafile.server.body import Fields, read_json
from gemmafile.server.errors import ApiError, bad_request
from gemmafile.server.json_response import Json, event
from gemmafile.server.openai_requests import (
    MOST_TOKENS,
    MOST_TOP,
    read_format,
    read_options,
    read_stops,
    read_variables,
)
from gemmafile.server.openai_shapes import chat_logprobs, make_id, now
from gemmafile.server.sampling_fields import read_sampling
from gemmafile.server.streaming import begin, merge, stream_until_disconnect, until_disconnect
from gemmafile.server.tools import CallArguments, CallBegun, Tool, ToolChoice
from gemmafile.server.turns import Done, Said, Turn, TurnEvent, check_choice, prepare, read_tool, take

if TYPE_CHECKING:
    from gemmafile.server.door import Door

LOGPROBS = "message.output_text.logprobs"
TEXT_PARTS = ("input_text", "output_text", "text")


def routes(door: Door) -> list[BaseRoute]:
    async def respond(request: Request) -> Response:
        fields = Fields(await read_json(request, door.limits))
        turn, n_top = read_turn(fields, door)
        writer, is_stream = Writer(door, fields, turn, n_top), fields.flag("stream")
        prepared = await prepare(door, turn)
        events = await until_disconnect(request.receive, begin(merge([take(door, prepared)])))
        if is_stream:
            return stream_until_disconnect(request, writer.stream(events), show_error=writer.show_error)
        return Json(await until_disconnect(request.receive, writer.whole(events)))

    async def count(request: Request) -> Response:
        turn, _ = read_turn(Fields(await read_json(request, door.limits)), door)
        return Json({"object": "response.input_tokens", "input_tokens": (await prepare(door, turn)).n_prompt})

    return [
        Route("/v1/responses", respond, methods=["POST"]),
        Route("/responses", respond, methods=["POST"]),
        Route("/v1/responses/input_tokens", count, methods=["POST"]),
        Route("/responses/input_tokens", count, methods=["POST"]),
    ]


# --- the request ------------------------------------------------------------------------------------------------------


def read_turn(fields: Fields, door: Door) -> tuple[Turn, int | None]:
    """Raises ApiError."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if name in fields:
            raise bad_request(f"{name}: this server keeps no responses; send the whole conversation as input", name)
    if fields.flag("background"):
        raise bad_request("background responses are not supported: nothing is kept here", "background")
    if "input" not in fields:
        raise bad_request("input is missing: a string or a list of items is expected", "input")
    messages = [*_read_instructions(fields), *_read_input(fields)]
    if not messages:
        raise bad_request("input is empty: there is nothing to answer", "input")
    tools = [_read_tool(item, f"tools[{place}]") for place, item in enumerate(fields.items("tools"))]
    choice = _read_choice(fields.raw("tool_choice"))
    check_choice(tools, choice)
    text = fields.object("text") or {}
    wanted = text.get("format")
    if wanted is not None and not isinstance(wanted, dict):
        raise bad_request("text: format has to be an object", "text")
    sampling = read_sampling(fields, door)
    n_top = fields.whole("top_logprobs", 0, 0, MOST_TOP)
    shows = n_top > 0 or LOGPROBS in fields.texts("include")
    if shows:
        sampling = dataclasses.replace(sampling, n_probs=max(1, n_top))
    n_most = (
        fields.whole("max_output_tokens", door.run.n_predict, 1, MOST_TOKENS)
        if "max_output_tokens" in fields
        else door.run.n_predict
    )
    schema = None if wanted is None else read_format(wanted, "text.format")
    turn = Turn(
        messages, sampling, n_most, read_stops(fields, door), tools, choice, fields.flag("parallel_tool_calls"), schema,
        read_variables(fields), read_options(fields),
    )  # fmt: skip
    return turn, n_top if shows else None


def _read_instructions(fields: Fields) -> Iterator[dict[str, Any]]:
    if text := fields.text("instructions"):
        yield {"role": "system", "content": text}


def _read_input(fields: Fields) -> list[dict[str, Any]]:
    """The items as messages of a chat; calls that follow one another are one assistant's message."""
    value = fields.raw("input")
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages: list[dict[str, Any]] = []
    for place, item in enumerate(fields.items("input")):
        where = f"input[{place}]"
        if not isinstance(item, dict):
            raise bad_request(f"{where}: expected an object", "input")
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _read_content(item.get("content"), where)})
        elif kind == "function_call":
            _add_call(messages, item, where)
        elif kind == "function_call_output":
            output = _read_content(item.get("output"), where)
            messages.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": output})
        elif kind != "reasoning":
            raise bad_request(f"{where}: items of type {str(kind)[:60]!r} are not supported", "input")
    return messages


def _add_call(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    name, arguments = item.get("name"), item.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise bad_request(f"{where}: a function_call needs a name, and arguments in a string", "input")
    function = {"name": name, "arguments": arguments}
    call = {"id": str(item.get("call_id", "")), "type": "function", "function": function}
    if not (messages and messages[-1]["role"] == "assistant"):
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)


def _read_content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{where}: content has to be a string or a list of parts", "input")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal":
            texts.append(str(part.get("refusal", "")))
            continue
        if kind not in TEXT_PARTS:
            raise bad_request(f"{where}: a part of type {str(kind)[:40]!r}, but this model reads text only", "input")
        if not isinstance(part.get("text"), str):
            raise bad_request(f"{where}: a text part without text", "input")
        texts.append(part["text"])
    return "\n".join(texts)


def _read_tool(item: Any, where: str) -> Tool:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind != "function":
        raise bad_request(f"{where}: tools of type {str(kind)[:60]!r} are not supported, only functions", "tools")
    return read_tool(item.get("name"), item.get("description"), item.get("parameters"), where)


def _read_choice(value: Any) -> ToolChoice:
    if value is None or value in ("auto", "none", "required"):
        return ToolChoice(value or "auto")
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("name"), str):
        return ToolChoice("required", value["name"])
    raise bad_request('tool_choice: expected none, auto, required or {"type": "function", "name": ...}', "tool_choice")


# --- the answer -------------------------------------------------------------------------------------------------------


class Writer:
    """Writes one response: as events while it comes, and as the object that the last of them holds."""

    def __init__(self, door: Door, fields: Fields, turn: Turn, n_top: int | None):
        self.door, self.n_top = door, n_top
        self._numbers = itertools.count()
        self._output: list[dict[str, Any]] = []
        metadata = fields.raw("metadata")
        self._response: dict[str, Any] = {
            "id": make_id("resp_"),
            "object": "response",
            "created_at": now(),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.text("instructions"),
            "max_output_tokens": turn.max_tokens if turn.max_tokens > 0 else None,
            "metadata": metadata if isinstance(metadata, dict) else {},
            "model": fields.text("model") or door.model_name,
            "output": self._output,
            "parallel_tool_calls": turn.several,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": turn.sampling.temperature,
            "text": fields.object("text") or {"format": {"type": "text"}},
            "tool_choice": fields.raw("tool_choice", "auto"),
            "tools": fields.items("tools"),
            "top_logprobs": n_top or 0,
            "top_p": turn.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }

    async def whole(self, events: AsyncGenerator[tuple[int, TurnEvent], None]) -> dict[str, Any]:
        try:
            async for _, item in events:
                for _ in self._write(item):
                    pass
        finally:
            await events.aclose()
        return self._response

    async def stream(self, events: AsyncGenerator[tuple[int, TurnEvent], None]) -> AsyncGenerator[bytes, None]:
        try:
            yield self._event("response.created", response=self._response)
            yield self._event("response.in_progress", response=self._response)
            async for _, item in events:
                for chunk in self._write(item):
                    yield chunk
        finally:
            await events.aclose()

    def show_error(self, error: ApiError) -> bytes:
        wrong = {"code": "server_error", "message": str(error)}
        self._response |= {"status": "failed", "error": wrong}
        return self._event("error", **wrong, param=error.param) + self._event(
            "response.failed", response=self._response
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(self._numbers), **fields}, kind)

    def _write(self, item: TurnEvent) -> Iterator[bytes]:
        """The events of one part of the answer; `_output` grows as they say."""
        match item:
            case Said() if item.text or (item.tokens and self.n_top is not None):
                if not (self._is_open and self._output[-1]["type"] == "message"):
                    yield from self._close()
                    yield from self._open_message()
                yield from self._add_text(item)
            case CallBegun():
                yield from self._close()
                yield from self._open_call(item)
            case CallArguments() if item.text:
                call = self._output[-1]
                call["arguments"] += item.text
                yield self._event("response.function_call_arguments.delta", **self._place, delta=item.text)
            case Done():
                if not self._output:
                    yield from self._open_message()
                status = "incomplete" if item.reason in ("length", "content_filter") else "completed"
                yield from self._close(status)
                yield self._end(status, item)

    @property
    def _is_open(self) -> bool:
        return bool(self._output) and self._output[-1]["status"] == "in_progress"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _open_message(self) -> Iterator[bytes]:
        message: dict[str, Any] = {"id": make_id("msg_"), "type": "message", "role": "assistant"}
        message |= {"status": "in_progress", "content": []}
        self._output.append(message)
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=message)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._event("response.content_part.added", **self._place, content_index=0, part=part)
        message["content"] = [part]

    def _add_text(self, item: Said) -> Iterator[bytes]:
        part = self._output[-1]["content"][0]
        logprobs = [] if self.n_top is None else chat_logprobs(self.door.tokenizer, item.tokens, self.n_top)["content"]
        part["text"] += item.text
        part["logprobs"] += logprobs
        place = {**self._place, "content_index": 0}
        yield self._event("response.output_text.delta", **place, delta=item.text, logprobs=logprobs)

    def _open_call(self, item: CallBegun) -> Iterator[bytes]:
        call = {"id": make_id("fc_"), "type": "function_call", "status": "in_progress", "call_id": item.id}
        call |= {"name": item.name, "arguments": ""}
        self._output.append(call)
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=call)

    def _close(self, status: str = "completed") -> Iterator[bytes]:
        """The item that is open is done."""
        if not self._is_open:
            return
        item = self._output[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            place = {**self._place, "content_index": 0}
            yield self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **place, part=part)
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **self._place, **told)
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _end(self, status: str, done: Done) -> bytes:
        self._response |= {"status": status, "usage": _usage(done.finished), "completed_at": now()}
        if status == "incomplete":
            why = "content_filter" if done.reason == "content_filter" else "max_output_tokens"
            self._response["incomplete_details"] = {"reason": why}
        return self._event(f"response.{status}", response=self._response)


def _usage(finished: Finished) -> dict[str, Any]:
    return {
        "input_tokens": finished.n_prompt,
        "input_tokens_details": {"cached_tokens": finished.n_cached, "cache_write_tokens": 0},
        "output_tokens": finished.n_predicted,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": finished.n_prompt + finished.n_predicted,
    }
