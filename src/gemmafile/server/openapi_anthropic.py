"""Anthropic's endpoints, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any

from gemmafile.server.openapi_shapes import (
    ANY_OBJECT,
    COUNT,
    EVENTS,
    FLAG,
    LARGEST,
    STRING,
    Schema,
    array,
    either,
    fields,
    maybe,
    named,
    operation,
    result,
    sampling_fields,
    whole,
    words,
)


def schemas() -> dict[str, Schema]:
    return {
        "AnthropicError": result({"type": {"const": "error"}, "error": result({"type": STRING, "message": STRING})})
    }


def _messages_request(*, counting: bool) -> Schema:
    block = {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": STRING},
        "required": ["type", "text"],
    }
    content = either(STRING, array(block))
    use = {
        "type": "object",
        "properties": {"type": {"const": "tool_use"}, "id": STRING, "name": STRING, "input": ANY_OBJECT},
        "required": ["type", "id", "name", "input"],
    }
    given = {
        "type": "object",
        "properties": {"type": {"const": "tool_result"}, "tool_use_id": STRING, "content": content},
        "required": ["type", "tool_use_id"],
    }
    messages = either(
        result({"role": {"const": "user"}, "content": either(STRING, array(either(block, given)))}),
        result({"role": {"const": "assistant"}, "content": either(STRING, array(either(block, use)))}),
    )
    tool = fields(
        {"name": named("Name"), "description": STRING, "input_schema": named("Parameters")}, "name input_schema"
    )
    choice = either(
        {
            "type": "object",
            "properties": {"type": words("auto", "any", "none"), "disable_parallel_tool_use": FLAG},
            "required": ["type"],
            "not": {"required": ["name"]},
        },
        {"type": "object", "properties": {"type": {"const": "tool"}, "name": STRING}, "required": ["type", "name"]},
    )
    properties: dict[str, Schema] = {
        "messages": array(messages, minItems=1),
        "max_tokens": whole(1, LARGEST),
        "model": STRING,
        "system": content,
        "stream": FLAG,
        "stop_sequences": array(STRING, maxItems=64),
        "tools": array(tool, maxItems=128),
        "tool_choice": choice,
        "metadata": ANY_OBJECT,
        **sampling_fields(),
    }
    return fields(properties, "messages" if counting else "messages max_tokens")


def _messages_answer() -> Schema:
    usage = dict.fromkeys(("input_tokens", "output_tokens"), COUNT)
    usage |= dict.fromkeys(("cache_creation_input_tokens", "cache_read_input_tokens"), COUNT)
    reasons = ("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "model_context_window_exceeded")
    return result(
        {
            "id": STRING,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": STRING,
            "content": array({"type": "object", "required": ["type"]}),
            "stop_reason": words(*reasons),
            "stop_sequence": maybe(STRING),
            "usage": result(usage),
        }
    )


def paths() -> dict[str, Any]:
    def native(summary: str, answer: Schema, body: Schema, **more: Any) -> Schema:
        return operation(summary, "Anthropic", answer, body, error="AnthropicError", **more)

    hello = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64}
    answer = native(
        "Answer a chat", _messages_answer(), _messages_request(counting=False), streams=EVENTS, example=hello
    )
    count = native("Count the tokens of a chat", result({"input_tokens": COUNT}), _messages_request(counting=True))
    return {"/v1/messages": {"post": answer}, "/v1/messages/count_tokens": {"post": count}}
