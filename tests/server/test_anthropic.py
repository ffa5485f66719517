"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.running import Running

PATH = "/v1/messages"
ASK: dict[str, Any] = {
    "model": "any",
    "max_tokens": 8,
    "temperature": 0,
    "messages": [{"role": "user", "content": "What is the word?"}],
}
TOOL = {
    "name": "get_weather",
    "description": "The weather",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
}


def test_a_message(server: Running) -> None:
    status, found = server.post(PATH, {**ASK, "system": "Be brief."})
    assert status == 200
    assert found["type"] == "message"
    assert found["id"].startswith("msg_")
    assert found["model"] == "any"
    assert [block["type"] for block in found["content"]] == ["text"]
    assert found["stop_reason"] == "max_tokens"
    assert found["usage"]["output_tokens"] == 8
    usage = found["usage"]
    count = server.post(PATH + "/count_tokens", {**ASK, "system": "Be brief."}).json["input_tokens"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count


def test_a_stream_has_its_events_in_order(server: Running) -> None:
    whole = server.post(PATH, ASK).json["content"][0]["text"]
    answer = server.post(PATH, {**ASK, "stream": True})
    events = answer.events
    names = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta") == whole
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 8
    begun, ended = events[0]["message"]["usage"], events[-2]["usage"]
    assert begun["cache_read_input_tokens"] > 0, "the same was asked just before"
    assert {**begun, "output_tokens": 8} == ended


def test_a_stop_sequence(server: Running) -> None:
    text = server.post(PATH, ASK).json["content"][0]["text"]
    stop = text[3:5]
    found = server.post(PATH, {**ASK, "stop_sequences": [stop]}).json
    assert found["stop_reason"] == "stop_sequence"
    assert found["stop_sequence"] == stop
    assert found["content"][0]["text"] == text[: text.index(stop)]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used(roomy: Running, choice: dict[str, Any]) -> None:
    ask = {**ASK, "max_tokens": 200, "temperature": 1, "top_k": 5, "tools": [TOOL], "tool_choice": choice}
    found = roomy.post(PATH, {**ask, "seed": 1}).json
    assert found["stop_reason"] == "tool_use"
    (block,) = found["content"]
    assert block["type"] == "tool_use"
    assert block["name"] == "get_weather"
    assert block["input"]["city"] in ("Rome", "Oslo")
    events = roomy.post(PATH, {**ask, "seed": 1, "stream": True}).events
    started = [event for event in events if event["type"] == "content_block_start"]
    assert [event["content_block"]["type"] for event in started] == ["tool_use"]
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == block["input"]


def test_blocks_of_every_kind(roomy: Running) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How is the weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert roomy.post(PATH, {**ASK, "messages": messages, "tools": [TOOL], "system": system}).status == 200


def test_an_answer_that_is_begun(server: Running) -> None:
    begun = {**ASK, "messages": [*ASK["messages"], {"role": "assistant", "content": "The word is"}]}
    count = PATH + "/count_tokens"
    n_asked, n_begun = (server.post(count, each).json["input_tokens"] for each in (ASK, begun))
    assert n_begun == n_asked + len(server.post("/tokenize", {"content": "The word is"}).json["tokens"])


def test_an_answer_by_a_schema(server: Running) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    config = {"format": {"type": "json_schema", "schema": schema}}
    found = server.post(PATH, {**ASK, "max_tokens": 60, "output_config": config}).json
    assert found["stop_reason"] == "end_turn"
    assert json.loads(found["content"][0]["text"])["n"] in (1, 2)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens: Field required"),
    ({"messages": None}, "messages: Field required"),
    ({"messages": []}, "messages: expected a list"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]: role has to be user or assistant"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0]: a block of type 'image'"),
    ({"messages": [{"role": "user", "content": [1]}]}, "something that is no block"),
    ({"system": 1}, "system: expected"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "there is no built-in tool"),
    ({"tools": [{"name": "f", "input_schema": {"type": "object", "not": {}}}]}, "tools[0] (f): parameters"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice: type has to be"),
    ({"tool_choice": {"type": "any"}}, "there are no tools"),
    ({"stop_sequences": [1]}, "stop_sequences is [1]"),
    ({"messages": [{"role": "user", "content": "words " * 600}]}, "the context holds 512"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said_in_its_shape(server: Running, change: dict[str, Any], message: str) -> None:
    status, found = server.post(PATH, {**ASK, **change})
    assert status == 400
    assert found["type"] == "error"
    assert found["error"]["type"] == "invalid_request_error"
    assert message in found["error"]["message"]
