"""ollama's endpoints, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any, Final

from gemmafile.server.openapi_openai import CONTENT, STOPS
from gemmafile.server.openapi_shapes import (
    ANY_OBJECT,
    COUNT,
    FLAG,
    NDJSON,
    NUMBER,
    STRING,
    TEXTS,
    WHOLE,
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

TIME: Final[Schema] = {"type": "string", "format": "date-time"}


def schemas() -> dict[str, Schema]:
    details = result(
        {
            "parent_model": STRING,
            "format": STRING,
            "family": STRING,
            "families": array(STRING),
            "parameter_size": STRING,
            "quantization_level": STRING,
        }
    )
    return {
        "OllamaError": result({"error": STRING}),
        "OllamaModel": result(
            {
                "name": STRING,
                "model": STRING,
                "modified_at": TIME,
                "size": COUNT,
                "digest": STRING,
                "details": details,
            }
        ),
        "OllamaOptions": fields({"num_predict": whole(-2), "stop": STOPS, "num_ctx": WHOLE, **_sampling()}),
    }


def _sampling() -> dict[str, Schema]:
    return {k: v for k, v in sampling_fields().items() if k not in ("n_probs", "grammar", "json_schema")}


def _message() -> Schema:
    function = {
        "type": "object",
        "properties": {"name": STRING, "arguments": ANY_OBJECT},
        "required": ["name", "arguments"],
    }
    call = {"type": "object", "properties": {"function": function}, "required": ["function"]}
    return {
        "type": "object",
        "properties": {
            "role": words("system", "user", "assistant", "tool"),
            "content": CONTENT,
            "tool_calls": maybe(array(call)),
            "tool_name": STRING,
        },
        "required": ["role"],
    }


def _fields(more: dict[str, Schema], required: str, model: str) -> Schema:
    shared = {
        "model": {"type": "string", "enum": [model, f"{model}:latest"]},
        "stream": FLAG,
        "format": either(words("json", ""), ANY_OBJECT),
        "options": named("OllamaOptions"),
        "keep_alive": either(STRING, NUMBER),
        "logprobs": FLAG,
        "top_logprobs": whole(0, 20),
        "think": {"const": False},
    }
    return fields({**shared, **more}, f"model {required}")


def _answer(properties: dict[str, Schema]) -> Schema:
    durations = "total_duration load_duration prompt_eval_count prompt_eval_duration eval_count eval_duration logprobs"
    counts: dict[str, Schema] = dict.fromkeys(durations.split()[:-1], COUNT)
    known = {
        "model": STRING,
        "created_at": {"type": "string", "format": "date-time"},
        "done": FLAG,
        "done_reason": STRING,
    }
    return result({**known, **properties, **counts, "logprobs": array(named("TokenLogprob"))}, optional=durations)


def paths(model: str) -> dict[str, Any]:
    def native(summary: str, answer: Schema, body: Schema | None = None, **more: Any) -> Schema:
        return operation(summary, "ollama", answer, body, error="OllamaError", **more)

    chat = _fields({"messages": array(_message()), "tools": array(named("Tool"), maxItems=128)}, "", model)
    generate = _fields({"prompt": STRING, "system": STRING, "raw": FLAG}, "", model)
    message = result({"role": STRING, "content": STRING, "tool_calls": array(ANY_OBJECT)}, optional="tool_calls")
    limits = {"truncate": FLAG, "dimensions": whole(1)}
    models = result({"models": array(named("OllamaModel"))})
    names = {"model": {"type": "string", "enum": [model, f"{model}:latest"]}}
    counts = "total_duration load_duration prompt_eval_count"
    vectors: dict[str, Schema] = {"model": STRING, "created_at": TIME, "embeddings": array(array(NUMBER))}
    vectors |= dict.fromkeys(counts.split(), COUNT)
    answer = _answer({"response": STRING})
    return {
        "/api/chat": {"post": native("Answer a chat", _answer({"message": message}), chat, streams=NDJSON)},
        "/api/generate": {"post": native("Answer a prompt", answer, generate, streams=NDJSON)},
        "/api/embed": {
            "post": native(
                "Vectors of texts",
                result(vectors, optional=f"created_at {counts}"),
                fields({**names, "input": TEXTS, "options": named("OllamaOptions"), **limits}, "model"),
            )
        },
        "/api/embeddings": {
            "post": native(
                "A vector of a text", result({"embedding": array(NUMBER)}), fields({**names, "prompt": STRING}, "model")
            )
        },
        "/api/show": {"post": native("The model", ANY_OBJECT, fields({**names, "verbose": FLAG}, "model"))},
        "/api/tags": {"get": native("The models: one", models)},
        "/api/ps": {"get": native("The models that are loaded: one", models)},
        "/api/version": {"get": native("ollama's release whose API this is", result({"version": STRING}))},
    }
