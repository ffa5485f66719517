"""Answers by random schemas at temperature 1.5: whatever ends by itself is JSON that follows its schema."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from tests.server.random_schemas import Drawer
from tests.server.running import Running


def ask(server: Running, number: int) -> tuple[dict[str, Any], Any]:
    """The schema of this number, and the choice of the answer that was made by it."""
    schema = Drawer(number).schema()
    wanted = {"type": "json_schema", "json_schema": {"name": "drawn", "schema": schema}}
    body = {
        "messages": [{"role": "user", "content": "Go."}],
        "response_format": wanted,
        "temperature": 1.5,
        "seed": number,
        "max_tokens": 400,
    }
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 200, (number, schema, answer.json)
    return schema, answer.json["choices"][0]


@pytest.mark.timeout(1200)
def test_answers_by_random_schemas(roomy: Running, full: bool) -> None:
    n = 1000 if full else 24
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: ask(roomy, number), range(n)))
    n_whole = 0
    for number, (schema, choice) in enumerate(found):
        text = choice["message"]["content"]
        if choice["finish_reason"] == "stop":
            n_whole += 1
            try:
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))
            except Exception as error:
                pytest.fail(f"schema {number}, {json.dumps(schema)}: {text!r}: {error}")
    assert n_whole >= 0.8 * n


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "not"),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"if": {"type": "string"}, "then": {"maxLength": 3}}, "if"),
        ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "string", "format": "no-such-format"}, "no-such-format"),
        ({"$ref": "#/$defs/nothing"}, "nothing"),
        ({"type": "string", "pattern": "(?=a)"}, "look-ahead"),
        ({"type": "spoon"}, "spoon"),
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/v1/completions"]
)
def test_what_cannot_be_kept_to_is_said(server: Running, schema: dict[str, Any], keyword: str, path: str) -> None:
    """A schema's keyword is never dropped in silence."""
    messages = [{"role": "user", "content": "Go."}]
    wanted = {"type": "json_schema", "schema": schema}
    bodies: dict[str, Any] = {
        "/v1/chat/completions": {"messages": messages, "response_format": wanted},
        "/v1/completions": {"prompt": "Go.", "response_format": wanted},
        "/v1/responses": {"input": "Go.", "text": {"format": {**wanted, "name": "n"}}},
        "/v1/messages": {"messages": messages, "max_tokens": 5, "output_config": {"format": wanted}},
        "/api/chat": {"model": "small", "messages": messages, "format": schema},
    }
    answer = server.post(path, bodies[path])
    assert answer.status == 400
    assert keyword in answer.body.decode()
