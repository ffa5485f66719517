"""/v1/responses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.running import Running

PATH = "/v1/responses"
ASK: dict[str, Any] = {"input": "What is the word?", "max_output_tokens": 8, "temperature": 0}
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
}


def test_a_response(server: Running) -> None:
    status, found = server.post(PATH, {**ASK, "instructions": "Be brief.", "metadata": {"a": "b"}})
    assert status == 200
    assert found["object"] == "response"
    assert found["id"].startswith("resp_")
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["store"] is False
    assert found["metadata"] == {"a": "b"}
    (message,) = found["output"]
    assert message["role"] == "assistant"
    assert [part["type"] for part in message["content"]] == ["output_text"]
    assert found["usage"]["output_tokens"] == 8


def test_tokens_are_counted(server: Running) -> None:
    found = server.post(PATH + "/input_tokens", {"input": ASK["input"]}).json
    assert found == {
        "object": "response.input_tokens",
        "input_tokens": server.post(PATH, ASK).json["usage"]["input_tokens"],
    }


def test_a_stream_says_the_same(server: Running) -> None:
    whole = server.post(PATH, ASK).json["output"][0]["content"][0]["text"]
    events = server.post(PATH, {**ASK, "stream": True}).events
    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == whole
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == whole
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    items = {event["item_id"] for event in events if "item_id" in event}
    assert items == {events[-1]["response"]["output"][0]["id"]}


def test_a_call(roomy: Running) -> None:
    ask = {**ASK, "max_output_tokens": 200, "temperature": 1, "seed": 1, "tools": [TOOL]}
    ask["tool_choice"] = {"type": "function", "name": "get_weather"}
    found = roomy.post(PATH, ask).json
    assert found["status"] == "completed"
    (call,) = found["output"]
    assert call["type"] == "function_call"
    assert call["name"] == "get_weather"
    assert json.loads(call["arguments"])["city"] in ("Rome", "Oslo")
    events = roomy.post(PATH, {**ask, "stream": True}).events
    deltas = [e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call["arguments"]
    done = next(e for e in events if e["type"] == "response.function_call_arguments.done")
    assert done["arguments"] == call["arguments"]


def test_a_conversation_of_items(roomy: Running) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "How is the weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
        {"role": "user", "content": "Thanks!"},
    ]
    assert roomy.post(PATH, {**ASK, "input": items, "tools": [TOOL]}).status == 200


def test_a_schema(server: Running) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    text = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    found = server.post(PATH, {**ASK, "max_output_tokens": 60, "text": text}).json
    assert found["status"] == "completed"
    assert json.loads(found["output"][0]["content"][0]["text"])["n"] in (1, 2)


def test_logprobs(server: Running) -> None:
    found = server.post(PATH, {**ASK, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}).json
    logprobs = found["output"][0]["content"][0]["logprobs"]
    assert len(logprobs) == 8
    assert all(len(entry["top_logprobs"]) == 2 for entry in logprobs)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input is missing"),
    ({"input": []}, "input is empty"),
    ({"input": [1]}, "input[0]: expected an object"),
    ({"input": [{"type": "web_search_call"}]}, "items of type 'web_search_call'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "reads text only"),
    ({"previous_response_id": "resp_1"}, "keeps no responses"),
    ({"background": True}, "background"),
    ({"tools": [{"type": "web_search"}]}, "tools of type 'web_search'"),
    ({"tool_choice": "required"}, "there are no tools"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format: there is no schema"),
    ({"max_output_tokens": 0}, "max_output_tokens is 0"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said(server: Running, change: dict[str, Any], message: str) -> None:
    status, found = server.post(PATH, {**ASK, **change})
    assert status == 400
    assert message in found["error"]["message"]
