"""Anthropic's /v1/messages, streamed or not, with tools, and /v1/messages/count_tokens.

In: a request's JSON with messages of content blocks. Out: a message, or its events (`message_start` ...
`message_stop`). A prompt's tokens that were in the cache are counted apart, as there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.engine.jobs import Progress
from gemmafile.server.answering import Finished
from gemmafile.server.body import Fields, read_json
from gemmafile.server.errors import ApiError, bad_request, error_body
from gemmafile.server.json_response import Json, event
from gemmafile.server.openai_requests import MOST_TOKENS, read_format, read_options, read_stops, read_variables
from gemmafile.server.openai_shapes import make_id
from gemmafile.server.sampling_fields import read_sampling
from gemmafile.server.streaming import begin, merge, stream_until_disconnect, until_disconnect
from gemmafile.server.tools import CallArguments, CallBegun, Tool, ToolChoice
from gemmafile.server.turns import Done, Reason, Said, Turn, TurnEvent, check_choice, gather, prepare, read_tool, take

if TYPE_CHECKING:
    from gemmafile.server.door import Door

PATH = "/v1/messages"
MODES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


def routes(door: Door) -> list[BaseRoute]:
    async def messages(request: Request) -> Response:
        fields = Fields(await read_json(request, door.limits))
        if "max_tokens" not in fields:
            raise bad_request("max_tokens: Field required", "max_tokens")
        turn, is_stream = read_turn(fields, door), fields.flag("stream")
        shape = Shape(fields.text("model") or door.model_name)
        prepared = await prepare(door, turn)
        events = await until_disconnect(request.receive, begin(merge([take(door, prepared)])))
        if is_stream:
            chunks = shape.stream(events, prepared.n_prompt)
            return stream_until_disconnect(request, chunks, show_error=show_stream_error)
        return Json(await until_disconnect(request.receive, shape.whole(events)))

    async def count(request: Request) -> Response:
        fields = Fields(await read_json(request, door.limits))
        prepared = await prepare(door, read_turn(fields, door))
        return Json({"input_tokens": prepared.n_prompt})

    return [
        Route(PATH, messages, methods=["POST"]),
        Route(PATH + "/count_tokens", count, methods=["POST"]),
    ]


def show_stream_error(error: ApiError) -> bytes:
    return event(error_body(error, PATH), "error")


# --- the request ------------------------------------------------------------------------------------------------------


def read_turn(fields: Fields, door: Door) -> Turn:
    """Raises ApiError."""
    if "messages" not in fields:
        raise bad_request("messages: Field required", "messages")
    messages = [
        *_read_system(fields),
        *(
            each
            for place, item in enumerate(fields.items("messages"))
            for each in _read_message(item, f"messages[{place}]")
        ),
    ]
    tools = [_read_tool(item, f"tools[{place}]") for place, item in enumerate(fields.items("tools"))]
    choice, several = _read_choice(fields)
    check_choice(tools, choice)
    config = fields.object("output_config") or {}
    wanted = config.get("format") or fields.object("output_format")
    if wanted is not None and not isinstance(wanted, dict):
        raise bad_request("output_config: format has to be an object", "output_config")
    return Turn(
        messages,
        read_sampling(fields, door),
        fields.whole("max_tokens", 1, 1, MOST_TOKENS),
        read_stops(fields, door, "stop_sequences"),
        tools,
        choice,
        several,
        None if wanted is None else read_format(wanted, "output_config.format"),
        read_variables(fields),
        read_options(fields),
    )


def _read_system(fields: Fields) -> list[dict[str, Any]]:
    if "system" not in fields:
        return []
    text = _read_texts(fields.raw("system"), "system")
    return [{"role": "system", "content": text}] if text else []


def _read_texts(value: Any, where: str) -> str:
    """A string, or text blocks."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_request(f"{where}: expected a string or a list of text blocks", where.split("[")[0])
    return "\n".join(_read_text(block, where) for block in value)


def _read_text(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind != "text":
        found = f"a block of type {str(kind)[:40]!r}" if kind else "something that is no block"
        raise bad_request(f"{where}: {found}, but this model reads text only", where.split("[")[0])
    text = block.get("text")
    if not isinstance(text, str):
        raise bad_request(f"{where}: a text block without text", where.split("[")[0])
    return text


def _read_message(item: Any, where: str) -> list[dict[str, Any]]:
    """A message in OpenAI's form; results of tools are messages of their own there."""
    role = item.get("role") if isinstance(item, dict) else None
    if role not in ("user", "assistant", "system"):
        raise bad_request(f"{where}: role has to be user or assistant", "messages")
    content = item.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": _read_texts(content, where)}]
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use" and role == "assistant":
            calls.append(_read_call(block, where))
        elif kind == "tool_result" and role == "user":
            results.append(_read_result(block, where))
        elif kind not in ("thinking", "redacted_thinking"):
            texts.append(_read_text(block, where))
    message: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if calls:
        message["tool_calls"] = calls
    return [*results, *([message] if texts or calls or not results else [])]


def _read_call(block: dict[str, Any], where: str) -> dict[str, Any]:
    name, arguments = block.get("name"), block.get("input", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise bad_request(f"{where}: a tool_use block needs a name and an input, which is an object", "messages")
    return {"id": str(block.get("id", "")), "type": "function", "function": {"name": name, "arguments": arguments}}


def _read_result(block: dict[str, Any], where: str) -> dict[str, Any]:
    text = _read_texts(block.get("content"), where)
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": text}


def _read_tool(item: Any, where: str) -> Tool:
    if not isinstance(item, dict) or item.get("type", "custom") not in ("custom", None):
        kind = item.get("type") if isinstance(item, dict) else item
        raise bad_request(f"{where}: there is no built-in tool {str(kind)[:60]!r} here, only functions", "tools")
    return read_tool(item.get("name"), item.get("description"), item.get("input_schema"), where)


def _read_choice(fields: Fields) -> tuple[ToolChoice, bool]:
    """The choice, and whether several calls in one answer are fine."""
    value = fields.object("tool_choice") or {"type": "auto"}
    kind, name = value.get("type"), value.get("name")
    if not isinstance(kind, str) or kind not in MODES or (kind == "tool") != isinstance(name, str):
        raise bad_request("tool_choice: type has to be auto, any, none, or tool with a name", "tool_choice")
    several = value.get("disable_parallel_tool_use") is False
    return ToolChoice(MODES[kind], name if kind == "tool" else None), several  # type: ignore[arg-type]


# --- the answer -------------------------------------------------------------------------------------------------------


def stop_reason(reason: Reason, finished: Finished) -> str:
    if reason == "tool_calls":
        return "tool_use"
    if reason == "content_filter":
        return "refusal"
    if reason == "length":
        return "model_context_window_exceeded" if finished.ending == "context full" else "max_tokens"
    return "end_turn" if finished.stop_text is None else "stop_sequence"


def usage(n_prompt: int, n_cached: int, n_predicted: int) -> dict[str, Any]:
    """Tokens read, cached ones apart, and written."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_predicted,
    }


class Shape:
    """How the answer to one request is written."""

    def __init__(self, model: str):
        self.head = {"id": make_id("msg_"), "type": "message", "role": "assistant", "model": model}

    async def whole(self, events: AsyncGenerator[tuple[int, TurnEvent], None]) -> dict[str, Any]:
        (turn,) = await gather(events, 1)
        content: list[dict[str, Any]] = [{"type": "text", "text": turn.text}] if turn.text or not turn.calls else []
        for call in turn.calls:
            content.append(
                {"type": "tool_use", "id": call.id, "name": call.name, "input": parse_arguments(call.arguments)}
            )
        return {
            **self.head,
            "content": content,
            "stop_reason": stop_reason(turn.reason, turn.finished),
            "stop_sequence": turn.finished.stop_text,
            "usage": usage(turn.finished.n_prompt, turn.finished.n_cached, turn.finished.n_predicted),
        }

    async def stream(
        self, events: AsyncGenerator[tuple[int, TurnEvent], None], n_prompt: int
    ) -> AsyncGenerator[bytes, None]:
        begun: dict[str, Any] = {**self.head, "content": [], "stop_reason": None, "stop_sequence": None}
        index, is_begun, is_open, is_text = -1, False, False, False
        try:
            async for _, item in events:
                if not is_begun:
                    is_begun = True
                    n_cached = item.cached if isinstance(item, Progress) else 0
                    yield _event("message_start", message={**begun, "usage": usage(n_prompt, n_cached, 0)})
                    yield _event("ping")
                is_said = isinstance(item, Said) and bool(item.text)
                if is_open and (isinstance(item, (CallBegun, Done)) or (is_said and not is_text)):
                    yield _event("content_block_stop", index=index)
                    is_open = False
                match item:
                    case Said() if item.text:
                        if not is_open:
                            index, is_open, is_text = index + 1, True, True
                            yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
                        yield _event(
                            "content_block_delta", index=index, delta={"type": "text_delta", "text": item.text}
                        )
                    case CallBegun():
                        index, is_open, is_text = index + 1, True, False
                        block = {"type": "tool_use", "id": item.id, "name": item.name, "input": {}}
                        yield _event("content_block_start", index=index, content_block=block)
                    case CallArguments() if item.text:
                        delta = {"type": "input_json_delta", "partial_json": item.text}
                        yield _event("content_block_delta", index=index, delta=delta)
                    case Done():
                        if index < 0:  # an answer of no text is one empty block, as when it is not streamed
                            yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
                            yield _event("content_block_stop", index=0)
                        finished = item.finished
                        counts = usage(finished.n_prompt, finished.n_cached, finished.n_predicted)
                        ended = {"stop_reason": stop_reason(item.reason, finished), "stop_sequence": finished.stop_text}
                        yield _event("message_delta", delta=ended, usage=counts)
            yield _event("message_stop")
        finally:
            await events.aclose()


def parse_arguments(text: str) -> dict[str, Any]:
    """The arguments of a call as an object: {} where the answer broke off in the middle of them."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)
