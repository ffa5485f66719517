"""/openapi.json: every route is in it and nothing else, and what a server answers is what it says."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from gemmafile.server.app import create_app
from gemmafile.settings import ContextSettings, SamplingSettings, ServeSettings
from tests.server.running import Running, running

Document = dict[str, Any]

NOT_OFFERED = {"/infill", "/rerank", "/reranking", "/v1/rerank", "/v1/reranking"}
"""Answered in llama.cpp's words, with 501."""

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, -1e308, 10**30, "", "x", "\x00", "é" * 300, [], [[]], [None], [-1], ["a", 1], {},
    {"a": 1}, {"type": "object"}, [{"role": "user", "content": "x"}], [["x", False]], {"type": "json_schema"},
]  # fmt: skip


@pytest.fixture(scope="module")
def tried(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that offers everything, and answers with a few tokens whatever is asked."""
    folder = str(tmp_path_factory.mktemp("slots"))
    settings = ServeSettings(max_tokens=4, metrics=True, slot_save_path=folder)
    with running(small_path, settings, ContextSettings(backend="reference", context=256)) as server:
        yield server
        assert server.get("/health").status == 200


@pytest.fixture(scope="module")
def document(tried: Running) -> Document:
    found = tried.get("/openapi.json")
    assert found.status == 200
    described: Document = found.json
    return described


def operations(document: Document) -> list[tuple[str, str, Document]]:
    return [(path, method, each) for path, item in document["paths"].items() for method, each in item.items()]


def test_every_route_is_described_and_nothing_else(tried: Running, document: Document) -> None:
    app = create_app(tried.door)
    routes = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or {"GET"}) - {"HEAD"}
        if route.path not in NOT_OFFERED
    }
    assert routes == {(path, method) for path, method, _ in operations(document)}


def test_what_a_server_does_not_offer_is_not_described(server: Running) -> None:
    paths = server.get("/openapi.json").json["paths"]
    assert "/metrics" not in paths
    assert "/slots/{slot}" not in paths


def test_every_sampling_setting_is_a_field_of_the_apis(document: Document) -> None:
    names = set(SamplingSettings.__dataclass_fields__)
    for path in ("/v1/chat/completions", "/v1/completions", "/completion", "/v1/messages", "/v1/responses"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert names <= set(body["properties"]), path


def test_references_lead_somewhere_and_schemas_are_schemas(document: Document) -> None:
    text = json.dumps(document)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in document["components"]["schemas"]
    for _, _, each in operations(document):
        for media in each.get("requestBody", {}).get("content", {}).values():
            jsonschema.Draft202012Validator.check_schema(media["schema"])
        for response in each["responses"].values():
            for media in response["content"].values():
                jsonschema.Draft202012Validator.check_schema(media["schema"])


def with_definitions(schema: Document, document: Document) -> Document:
    return {**schema, "components": document["components"]}


def fill(schema: Document, document: Document, depth: int = 0) -> Any:
    """The simplest value that a request's schema allows."""
    if "$ref" in schema:
        return fill(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, depth)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return fill(schema["anyOf"][0], document, depth)
    match schema.get("type"):
        case "object":
            return {name: fill(schema["properties"][name], document, depth + 1) for name in schema.get("required", [])}
        case "array":
            return [fill(schema["items"], document, depth + 1)] if schema.get("minItems") else []
        case "integer" | "number":
            return max(1, schema.get("minimum", 1))
        case "boolean":
            return False
    return "x"


def check(tried: Running, document: Document, path: str, method: str, body: Any) -> int:
    """Ask, and hold the answer against the document; its status."""
    described = document["paths"][path][method]
    address = path.replace("{name}", tried.door.model_name).replace("{slot}", "0?action=erase")
    answer = tried.request(method.upper(), address, body)
    where = f"{method} {path} {json.dumps(body)[:300]} -> {answer.status} {answer.body[:300]!r}"
    assert answer.status < 500, where
    assert str(answer.status) in described["responses"], where
    content = described["responses"][str(answer.status)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content or "*/*" in content, where
    if kind == "application/json":
        schema = with_definitions(content[kind]["schema"], document)
        jsonschema.Draft202012Validator(schema).validate(answer.json)
    return answer.status


def test_the_simplest_request_of_every_kind_is_answered(tried: Running, document: Document) -> None:
    for path, method, each in operations(document):
        content = each.get("requestBody", {}).get("content", {})
        if path == "/assets/{name}" or (content and "application/json" not in content):
            continue
        body = fill(content["application/json"]["schema"], document) if content else None
        assert check(tried, document, path, method, body) == 200, path


@pytest.mark.timeout(1200)
def test_odd_values_in_every_field(tried: Running, document: Document, full: bool) -> None:
    """A sample of: each field of each request with each odd value. A field may also lie one level deeper."""
    cases = []
    for path, method, each in operations(document):
        content = each.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            schema = content["application/json"]["schema"]
            cases += [(path, method, name, odd) for name in schema.get("properties", {}) for odd in ODD]
    choose = random.Random(5)
    statuses = set()
    for path, method, name, odd in choose.sample(cases, 4000 if full else 120):
        schema = document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
        body = copy.deepcopy(fill(schema, document))
        body[name] = odd
        statuses.add(check(tried, document, path, method, body))
    assert {200, 400} <= statuses


@pytest.mark.oracle
@pytest.mark.timeout(5400)
def test_schemathesis_finds_nothing(tried: Running, tmp_path: Path) -> None:
    """Some 20,000 requests: no 5xx, no status, type or shape that the document does not name."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{tried.url}/openapi.json", "-n", "350", "-w", "4"]
    command += ["-c", checks, "--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "60"]
    command += ["--phases", "examples,coverage,fuzzing", "--continue-on-failure"]
    for seed in ("1", "2"):
        done = subprocess.run(
            [*command, "--seed", seed], capture_output=True, text=True, timeout=2600, cwd=tmp_path, check=False
        )
        if done.returncode == 0 or "FAILURES" in done.stdout or "AST constructor recursion" not in done.stdout:
            break  # else a bug of Python before 3.11.5 ended the generator, by chance, and no answer was at fault
    assert done.returncode == 0, done.stdout[-6000:]
    n_cases = int(re.search(r"(\d+) generated", done.stdout)[1])  # type: ignore[index]
    assert n_cases >= 20_000
