"""ollama's API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gemmafile.server.answering import Finished
from gemmafile.server.body import Fields
from gemmafile.server.ollama import Shape, chat_line
from gemmafile.server.tools import CallArguments, CallBegun
from gemmafile.server.turns import Done, Said, TurnEvent
from tests.server.running import Answer, Running

MESSAGES = [{"role": "user", "content": "What is the word?"}]
CHAT: dict[str, Any] = {"model": "small", "messages": MESSAGES, "options": {"num_predict": 8, "temperature": 0}}
GENERATE: dict[str, Any] = {
    "model": "small:latest",
    "prompt": "the man",
    "options": {"num_predict": 8, "temperature": 0},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    },
}


def lines(answer: Answer) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.splitlines()]


def test_a_chat_streams_lines_of_json(server: Running) -> None:
    found = lines(server.post("/api/chat", CHAT))
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    last = found[-1]
    assert last["done_reason"] == "length"
    assert last["eval_count"] == 8
    assert last["prompt_eval_count"] > 8
    assert last["total_duration"] >= last["eval_duration"] > 0
    whole = server.post("/api/chat", {**CHAT, "stream": False}).json
    assert whole["done"] is True
    assert "".join(line["message"]["content"] for line in found) == whole["message"]["content"]


def test_generate_goes_through_the_template_or_not(server: Running) -> None:
    chat = server.post("/api/generate", {**GENERATE, "stream": False}).json
    raw = server.post("/api/generate", {**GENERATE, "stream": False, "raw": True}).json
    assert chat["prompt_eval_count"] > raw["prompt_eval_count"]
    told = server.post("/api/generate", {**GENERATE, "stream": False, "system": "Be brief."}).json
    assert told["prompt_eval_count"] > chat["prompt_eval_count"]
    streamed = lines(server.post("/api/generate", GENERATE))
    assert "".join(line["response"] for line in streamed) == chat["response"]


def test_formats(server: Running) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    ask = {**CHAT, "stream": False, "format": schema, "options": {"temperature": 1, "seed": 1, "num_predict": 80}}
    found = server.post("/api/chat", ask).json
    assert json.loads(found["message"]["content"])["n"] in (1, 2)
    assert server.post("/api/chat", {**CHAT, "stream": False, "format": "json"}).json["message"]["content"][0] == "{"


def test_a_call_is_told_when_it_is_whole(roomy: Running) -> None:
    """ollama has no tool_choice, and this model does not choose to call: the events are made here."""
    timings = {"prompt_ms": 1.0, "predicted_ms": 2.0}
    done = Done("tool_calls", Finished("stop", "eos", None, 9, 0, 5, timings))
    parts = [CallBegun(0, "call_x", "get_weather"), CallArguments(0, '{"city": ', False), CallArguments(0, "1}", True)]

    async def events() -> AsyncGenerator[tuple[int, TurnEvent], None]:
        for event in [Said("Well:", []), *parts, done]:
            yield 0, event

    async def written() -> list[dict[str, Any]]:
        shape = Shape(roomy.door, Fields({"model": "small"}), None, chat_line)
        return [json.loads(line) async for line in shape.stream(events())]

    found = asyncio.run(written())
    assert [line["message"]["content"] for line in found] == ["Well:", "", ""]
    (call,) = found[1]["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": 1}}
    assert "tool_calls" not in found[2]["message"]
    assert found[2]["done_reason"] == "stop"


def test_tools_are_told_to_the_model(roomy: Running) -> None:
    ask = {**CHAT, "stream": False}
    with_tools = roomy.post("/api/chat", {**ask, "tools": [TOOL]}).json
    assert with_tools["prompt_eval_count"] > roomy.post("/api/chat", ask).json["prompt_eval_count"] + 50


def test_logprobs(server: Running) -> None:
    found = server.post("/api/chat", {**CHAT, "stream": False, "logprobs": True, "top_logprobs": 2}).json
    assert len(found["logprobs"]) == 8
    assert len(found["logprobs"][0]["top_logprobs"]) == 2


def test_asking_for_nothing_loads_the_model(server: Running) -> None:
    assert server.post("/api/chat", {"model": "small"}).json["done_reason"] == "load"
    assert server.post("/api/generate", {"model": "small"}).json["done_reason"] == "load"


def test_embeddings(server: Running) -> None:
    found = server.post("/api/embed", {"model": "small", "input": ["a cat", "a dog"]}).json
    assert [len(vector) for vector in found["embeddings"]] == [64, 64]
    assert found["prompt_eval_count"] > 2
    one = server.post("/api/embeddings", {"model": "small", "prompt": "a cat"}).json
    assert one["embedding"] == found["embeddings"][0]
    assert server.post("/api/embed", {"model": "small", "input": "words " * 600}).status == 200
    refused = server.post("/api/embed", {"model": "small", "input": "words " * 600, "truncate": False})
    assert refused.status == 400


def test_what_it_says_of_the_model(server: Running) -> None:
    (model,) = server.get("/api/tags").json["models"]
    assert model["name"] == "small:latest"
    assert model["details"]["format"] == "gguf"
    (running,) = server.get("/api/ps").json["models"]
    assert running["digest"] == model["digest"]
    assert running["context_length"] == 512
    assert server.get("/api/version").json["version"]
    shown = server.post("/api/show", {"model": "small"}).json
    assert "completion" in shown["capabilities"]
    assert shown["model_info"]["llama.embedding_length"] == 64
    assert shown["model_info"]["tokenizer.ggml.tokens"] is None
    verbose = server.post("/api/show", {"name": "small", "verbose": True}).json
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) > 256


WRONG: list[tuple[str, dict[str, Any], int, str]] = [
    ("/api/chat", {**CHAT, "model": "llama3"}, 404, "model 'llama3' not found"),
    ("/api/generate", {**GENERATE, "model": "llama3"}, 404, "model 'llama3' not found"),
    ("/api/show", {"model": "llama3"}, 404, "model 'llama3' not found"),
    ("/api/chat", {"messages": MESSAGES}, 400, "model is required"),
    ("/api/chat", {**CHAT, "think": True}, 400, "does not support thinking"),
    ("/api/chat", {**CHAT, "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "reads text only"),
    ("/api/chat", {**CHAT, "options": {"temperature": "hot"}}, 400, 'options.temperature is "hot"'),
    ("/api/chat", {**CHAT, "format": "xml"}, 400, 'format is "xml"'),
    ("/api/generate", {**GENERATE, "suffix": "x"}, 400, "suffix is not supported"),
    ("/api/embed", {"model": "small", "input": 1}, 400, "input is 1"),
]


@pytest.mark.parametrize(("path", "ask", "status", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_what_is_wrong_is_said_in_its_shape(
    server: Running, path: str, ask: dict[str, Any], status: int, message: str
) -> None:
    found = server.post(path, ask)
    assert found.status == status
    assert list(found.json) == ["error"]
    assert message in found.json["error"]
