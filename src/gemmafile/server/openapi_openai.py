"""OpenAI's endpoints, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any, Final

from gemmafile.server.openapi_shapes import (
    ANY_OBJECT,
    COUNT,
    EVENTS,
    FLAG,
    NUMBER,
    STRING,
    WHOLE,
    Schema,
    array,
    either,
    fields,
    in_path,
    maybe,
    named,
    operation,
    result,
    sampling_fields,
    whole,
    words,
)

STOPS: Final = either(STRING, array(STRING, maxItems=64))
IDS: Final = array(COUNT, minItems=1)
PROMPT: Final = either(STRING, array(either(STRING, IDS), minItems=1, maxItems=256), IDS)
TEXT_PART: Final = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": STRING},
    "required": ["type", "text"],
}
CONTENT: Final = either(STRING, array(TEXT_PART), {"type": "null"})
TOOL: Final = {"name": named("Name"), "description": STRING, "parameters": named("Parameters"), "strict": FLAG}
EXTRAS: Final[dict[str, Schema]] = {
    "cache_prompt": FLAG,
    "id_slot": whole(-1, 1 << 20),
    "t_max_predict_ms": whole(-1),
    "n_predict": whole(-2),
}
"""llama.cpp's, beside sampling."""


def schemas() -> dict[str, Schema]:
    """Components that several operations name."""
    function = result({"name": STRING, "arguments": STRING})
    entry = result({"id": COUNT, "token": STRING, "bytes": array(COUNT), "logprob": NUMBER})
    with_top = {**entry, "properties": {**entry["properties"], "top_logprobs": array(entry)}}
    inner = result({"code": WHOLE, "message": STRING, "type": STRING, "param": maybe(STRING)})
    return {
        "Error": result({"error": inner}),
        "Message": {
            "type": "object",
            "properties": {
                "role": words("system", "developer", "user", "assistant", "tool"),
                "content": CONTENT,
                "tool_calls": maybe(array(named("ToolCallParam"))),
                "tool_call_id": maybe(STRING),
            },
            "required": ["role", "content"],
        },
        "ToolCallParam": {
            "type": "object",
            "properties": {
                "id": STRING,
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "properties": {"name": STRING, "arguments": either(ANY_OBJECT, {"type": "string", "const": "{}"})},
                    "required": ["name", "arguments"],
                },
            },
            "required": ["function"],
        },
        "ToolCall": result({"id": STRING, "type": {"const": "function"}, "function": function}),
        "Tool": {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": fields(
                    {"name": named("Name"), "description": STRING, "parameters": named("Parameters"), "strict": FLAG},
                    "name",
                ),
            },
            "required": ["type", "function"],
        },
        "Name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
        "Parameters": {
            "type": "object",
            "properties": {"type": {"const": "object"}, "properties": {"type": "object", "additionalProperties": True}},
            "description": "A JSON schema. A keyword that cannot be kept to is refused by name.",
        },
        "Timings": {
            "type": "object",
            "description": "llama.cpp's: tokens and milliseconds of reading and of writing.",
            "properties": {"cache_n": COUNT, "prompt_n": COUNT, "predicted_n": COUNT},
            "additionalProperties": NUMBER,
        },
        "Usage": result(
            {
                "prompt_tokens": COUNT,
                "completion_tokens": COUNT,
                "total_tokens": COUNT,
                "prompt_tokens_details": result({"cached_tokens": COUNT}),
            }
        ),
        "TokenLogprob": with_top,
        "Model": result(
            {
                "id": STRING,
                "object": {"const": "model"},
                "created": WHOLE,
                "owned_by": STRING,
                "meta": {"type": "object", "additionalProperties": WHOLE},
            }
        ),
    }


def response_format() -> Schema:
    schema = either(ANY_OBJECT, FLAG)
    return {
        "type": "object",
        "properties": {
            "type": words("text", "json_object", "json_schema"),
            "json_schema": {"type": "object", "properties": {"name": STRING, "strict": maybe(FLAG), "schema": schema}},
            "schema": schema,
        },
        "required": ["type"],
    }


def _chat_request() -> Schema:
    choice = {
        "type": "object",
        "properties": {"type": {"const": "function"}, "function": result({"name": STRING})},
        "required": ["type", "function"],
    }
    return fields(
        {
            "messages": array(named("Message"), minItems=1),
            "model": STRING,
            "stream": FLAG,
            "stream_options": fields({"include_usage": FLAG}),
            "n": whole(1, 128),
            "max_tokens": whole(-2),
            "max_completion_tokens": whole(-2),
            "stop": STOPS,
            "logprobs": FLAG,
            "top_logprobs": whole(0, 20),
            "response_format": response_format(),
            "tools": array(named("Tool"), maxItems=128),
            "tool_choice": either(words("none", "auto", "required"), choice),
            "parallel_tool_calls": FLAG,
            "reasoning_effort": STRING,
            "user": STRING,
            "chat_template_kwargs": ANY_OBJECT,
            "add_generation_prompt": FLAG,
            "timings_per_token": FLAG,
            "return_progress": FLAG,
            **EXTRAS,
            **sampling_fields(),
        },
        "messages",
    )


def _chat_answer() -> Schema:
    message = result(
        {
            "role": {"const": "assistant"},
            "content": maybe(STRING),
            "refusal": {"type": "null"},
            "tool_calls": array(named("ToolCall")),
        },
        optional="tool_calls",
    )
    choice = {
        "index": COUNT,
        "message": message,
        "logprobs": maybe(result({"content": array(named("TokenLogprob")), "refusal": {"type": "null"}})),
        "finish_reason": words("stop", "length", "tool_calls", "content_filter"),
    }
    return _answer("chat.completion", choice)


def _answer(kind: str, choice: Schema) -> Schema:
    return result(
        {
            "id": STRING,
            "object": {"const": kind},
            "created": WHOLE,
            "model": STRING,
            "system_fingerprint": STRING,
            "choices": array(result(choice)),
            "usage": named("Usage"),
            "timings": named("Timings"),
        }
    )


def _completion_request() -> Schema:
    return fields(
        {
            "prompt": PROMPT,
            "model": STRING,
            "stream": FLAG,
            "stream_options": fields({"include_usage": FLAG}),
            "n": whole(1, 128),
            "best_of": whole(1, 128),
            "max_tokens": whole(-2),
            "echo": FLAG,
            "logprobs": either(whole(0, 20), FLAG),
            "stop": STOPS,
            "suffix": {
                "type": "string",
                "maxLength": 0,
                "description": "Not supported: these models fill in no middle.",
            },
            "response_format": response_format(),
            "user": STRING,
            **EXTRAS,
            **sampling_fields(),
        },
        "prompt",
    )


def _completion_answer() -> Schema:
    logprobs = {
        "tokens": array(STRING),
        "token_logprobs": array(maybe(NUMBER)),
        "top_logprobs": array(maybe({"type": "object", "additionalProperties": NUMBER})),
        "text_offset": array(COUNT),
        "content": array(named("TokenLogprob")),
    }
    choice = {
        "index": COUNT,
        "text": STRING,
        "logprobs": maybe(result(logprobs)),
        "finish_reason": words("stop", "length", "content_filter"),
    }
    return _answer("text_completion", choice)


def _embedding_request() -> Schema:
    return fields(
        {
            "input": PROMPT,
            "model": STRING,
            "encoding_format": words("float", "base64"),
            "dimensions": whole(1),
            "pooling": words("mean", "last", "cls"),
            "user": STRING,
        },
        "input",
    )


def _embedding_answer() -> Schema:
    entry = {"object": {"const": "embedding"}, "index": COUNT, "embedding": either(array(NUMBER), STRING)}
    usage = result({"prompt_tokens": COUNT, "total_tokens": COUNT})
    return result({"object": {"const": "list"}, "data": array(result(entry)), "model": STRING, "usage": usage})


def _responses_request() -> Schema:
    part = {
        "type": "object",
        "properties": {"type": words("input_text", "output_text"), "text": STRING},
        "required": ["type", "text"],
    }
    content = either(STRING, array(part))
    message = {
        "type": "object",
        "properties": {
            "type": {"const": "message"},
            "role": words("system", "developer", "user", "assistant"),
            "content": content,
        },
        "required": ["role", "content"],
    }
    call = {
        "type": "object",
        "properties": {
            "type": {"const": "function_call"},
            "call_id": STRING,
            "name": STRING,
            "arguments": {"const": "{}"},
        },
        "required": ["type", "call_id", "name", "arguments"],
    }
    output = {
        "type": "object",
        "properties": {"type": {"const": "function_call_output"}, "call_id": STRING, "output": content},
        "required": ["type", "call_id", "output"],
    }
    tool = fields({"type": {"const": "function"}, **TOOL}, "type name")
    format_ = {
        "type": "object",
        "properties": {"type": words("text", "json_object", "json_schema"), "name": STRING, "schema": ANY_OBJECT},
        "required": ["type"],
    }
    choice = {
        "type": "object",
        "properties": {"type": {"const": "function"}, "name": STRING},
        "required": ["type", "name"],
    }
    return fields(
        {
            "input": either(STRING, array(either(message, call, output), minItems=1)),
            "model": STRING,
            "instructions": STRING,
            "max_output_tokens": whole(1),
            "stream": FLAG,
            "text": {"type": "object", "properties": {"format": format_}},
            "tools": array(tool, maxItems=128),
            "tool_choice": either(words("none", "auto", "required"), choice),
            "parallel_tool_calls": FLAG,
            "top_logprobs": whole(0, 20),
            "include": array(STRING),
            "store": FLAG,
            "metadata": ANY_OBJECT,
            **sampling_fields(),
        },
        "input",
    )


def _responses_answer() -> Schema:
    known = {
        "id": STRING,
        "object": {"const": "response"},
        "created_at": WHOLE,
        "status": words("completed", "incomplete"),
        "model": STRING,
        "output": array({"type": "object", "required": ["type", "id", "status"]}),
        "usage": ANY_OBJECT,
    }
    return result(known)


def paths() -> dict[str, Any]:
    def native(summary: str, answer: Schema, body: Schema | None = None, **more: Any) -> Schema:
        return operation(summary, "OpenAI", answer, body, **more)

    hello = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64}
    chat = native("Answer a chat", _chat_answer(), _chat_request(), streams=EVENTS, example=hello)
    counted = result({"object": STRING, "input_tokens": COUNT})
    count = native("Count the tokens of a chat", counted, _chat_request())
    asked = {"input": "Why is the sky blue?"}
    respond = native("Answer", _responses_answer(), _responses_request(), streams=EVENTS, example=asked)
    count_items = native("Count the tokens of an input", counted, _responses_request())
    begun = {"prompt": "Once upon a time", "max_tokens": 32}
    complete = native("Go on from a text", _completion_answer(), _completion_request(), streams=EVENTS, example=begun)
    embed = native("Vectors of texts", _embedding_answer(), _embedding_request(), example={"input": "a text"})
    models = native("The model", result({"object": {"const": "list"}, "data": array(named("Model"))}))
    name = in_path("name", {"type": "string", "minLength": 1})
    model = native("The model, by its name", named("Model"), parameters=[name])
    return {
        "/v1/chat/completions": {"post": chat},
        "/chat/completions": {"post": chat},
        "/v1/chat/completions/input_tokens": {"post": count},
        "/chat/completions/input_tokens": {"post": count},
        "/v1/completions": {"post": complete},
        "/v1/embeddings": {"post": embed},
        "/v1/models": {"get": models},
        "/models": {"get": models},
        "/v1/models/{name}": {"get": model},
        "/models/{name}": {"get": model},
        "/v1/responses": {"post": respond},
        "/responses": {"post": respond},
        "/v1/responses/input_tokens": {"post": count_items},
        "/responses/input_tokens": {"post": count_items},
    }
