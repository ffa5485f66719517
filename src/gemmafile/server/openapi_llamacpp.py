"""llama.cpp's own endpoints, as OpenAPI describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gemmafile.server.openapi_openai import EXTRAS, IDS, response_format
from gemmafile.server.openapi_shapes import (
    ANY_OBJECT,
    COUNT,
    EVENTS,
    FLAG,
    NUMBER,
    STRING,
    Schema,
    array,
    either,
    fields,
    in_path,
    named,
    operation,
    query,
    result,
    sampling_fields,
    whole,
    words,
)

if TYPE_CHECKING:
    from gemmafile.settings import ServeSettings

MIXED: Final = either(
    STRING,
    result({"prompt_string": STRING}),
    array(either(STRING, COUNT), minItems=1),
    array(either(STRING, IDS), minItems=1, maxItems=64),
)
YES: Final = words("true", "false", "1", "0")


def _completion_request() -> Schema:
    return fields(
        {
            "prompt": MIXED,
            "n_predict": whole(-2),
            "stream": FLAG,
            "stop": either(STRING, array(STRING, maxItems=1000)),
            "n_cmpl": whole(1, 64),
            "n_keep": whole(-1),
            "n_indent": whole(0),
            "n_begun": whole(0),
            "response_format": response_format(),
            "return_tokens": FLAG,
            "timings_per_token": FLAG,
            "return_progress": FLAG,
            "response_fields": array(STRING, maxItems=100),
            **{name: schema for name, schema in EXTRAS.items() if name != "n_predict"},
            **sampling_fields(),
        },
        "prompt",
    )


def _completion_answer() -> Schema:
    one = {
        "type": "object",
        "description": "Fields that response_fields does not name are left out.",
        "properties": {
            "content": STRING,
            "tokens": array(COUNT),
            "stop": FLAG,
            "stop_type": words("none", "eos", "limit", "word"),
            "tokens_predicted": COUNT,
            "tokens_evaluated": COUNT,
            "timings": named("Timings"),
        },
    }
    return either(one, array(one))


def _template_request() -> Schema:
    variables = {"chat_template_kwargs": ANY_OBJECT, "add_generation_prompt": FLAG, "tools": array(named("Tool"))}
    return fields({"messages": array(named("Message"), minItems=1), **variables}, "messages")


def paths(settings: ServeSettings) -> dict[str, Any]:
    """What this server was started with: other paths say that they are not offered."""

    def native(summary: str, answer: Schema | None, body: Schema | None = None, **more: Any) -> Schema:
        return operation(summary, "llama.cpp", answer, body, **more)

    health = native("Is there an engine?", result({"status": {"const": "ok"}}))
    complete = native(
        "Go on from a prompt", _completion_answer(), _completion_request(), streams=EVENTS,
        example={"prompt": "Once upon a time", "n_predict": 32},
    )  # fmt: skip
    flags = {"add_special": FLAG, "parse_special": FLAG, "with_pieces": FLAG}
    tokens = array(either(COUNT, result({"id": COUNT, "piece": either(STRING, array(COUNT))})))
    told = result({"tokens": tokens})
    text = {"content": either(STRING, array(either(STRING, COUNT)))}
    tokenize = native("Token ids of a text", told, fields({**text, **flags}))
    asked = [query("prompt", STRING), *(query(name, YES) for name in flags)]
    detokenize = native("The text of token ids", result({"content": STRING}), fields({"tokens": array(COUNT)}))
    embed = native(
        "Vectors of texts",
        array(result({"index": COUNT, "embedding": array(array(NUMBER))})),
        fields({"content": MIXED, "embd_normalize": whole(-1, 1000)}, "content"),
    )
    entry = {"type": "object", "properties": {"id": COUNT, "scale": NUMBER}, "required": ["id", "scale"]}
    adapters = native("Adapters in force", array(ANY_OBJECT))
    set_adapters = native("Adapters, as they are in force", result({"success": FLAG}), array(entry))
    # The 503 of fail_on_no_slot is what was asked for: no parameter for those who try all and take any 5xx for a fault.
    slots = native("What each slot is doing; ?fail_on_no_slot=1: 503 where none is free", array(ANY_OBJECT))
    action = {**query("action", words("save", "restore", "erase")), "required": True}
    named_file = {"type": "object", "properties": {"filename": {"type": "string", "minLength": 1, "maxLength": 200}}}
    slot = in_path("slot", whole(0))
    change = native("Save, restore or erase a slot", ANY_OBJECT, named_file, parameters=[slot, action])
    found = {
        "/health": {"get": health},
        "/v1/health": {"get": health},
        "/props": {"get": native("The model and the defaults", ANY_OBJECT)},
        "/completion": {"post": complete},
        "/completions": {"post": complete},
        "/tokenize": {"get": native("Token ids of a text", told, parameters=asked), "post": tokenize},
        "/detokenize": {"post": detokenize},
        "/apply-template": {"post": native("The prompt of a chat", result({"prompt": STRING}), _template_request())},
        "/embedding": {"post": embed},
        "/embeddings": {"post": embed},
        "/lora-adapters": {"get": adapters, "post": set_adapters},
        "/flagz": {"get": native("llamafiler's settings", ANY_OBJECT)},
    }
    if settings.slots:
        found |= {"/slots": {"get": slots}, "/slotz": {"get": slots}}
    if settings.slot_save_path is not None:
        found["/slots/{slot}"] = {"post": change}
    if settings.metrics:
        found["/metrics"] = {"get": native("Figures for Prometheus", None, media="text/plain")}
    return found
