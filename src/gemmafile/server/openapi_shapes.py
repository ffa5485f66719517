"""Building blocks of the OpenAPI document: schemas in few words, operations with all the errors that they share."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from gemmafile.engine.sampling_options import ALIASES
from gemmafile.settings import SamplingSettings

Schema: TypeAlias = dict[str, Any]

STRING: Final[Schema] = {"type": "string"}
WHOLE: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
FLAG: Final[Schema] = {"type": "boolean"}
ANY_OBJECT: Final[Schema] = {"type": "object"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
TEXTS: Final[Schema] = {"anyOf": [STRING, {"type": "array", "items": STRING}]}
EVENTS: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"
LARGEST: Final = 2**31 - 1


def whole(low: int, high: int = LARGEST) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def number(low: float, high: float | None = None) -> Schema:
    return {"type": "number", "minimum": low} | ({} if high is None else {"maximum": high})


def words(*choices: str) -> Schema:
    return {"type": "string", "enum": list(choices)}


def array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def maybe(schema: Schema) -> Schema:
    """null is the same as absence."""
    return {"anyOf": [schema, {"type": "null"}]}


def fields(properties: Mapping[str, Schema], required: str = "") -> Schema:
    """A request's object: fields that are not required may be null, and others are ignored."""
    needed = required.split()
    found = {name: schema if name in needed else maybe(schema) for name, schema in properties.items()}
    return {"type": "object", "properties": found} | ({"required": needed} if needed else {})


def result(properties: Mapping[str, Schema], optional: str = "") -> Schema:
    """A response's object: all of its fields are there, but for the optional ones."""
    needed = [name for name in properties if name not in optional.split()]
    return {"type": "object", "properties": dict(properties), "required": needed}


def named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def sampling_fields() -> dict[str, Schema]:
    """The fields of SamplingSettings, which every API has under the same names."""
    kinds: dict[Any, Schema] = {bool: FLAG, int: WHOLE, float: NUMBER, list[str]: array(STRING)}
    hints = typing.get_type_hints(SamplingSettings)
    found = {}
    for field in dataclasses.fields(SamplingSettings):
        schema = _LIMITED.get(field.name) or kinds.get(hints[field.name], STRING)
        found[field.name] = {**schema, "description": str(field.metadata["help"])}
    return found


_BIAS = either(NUMBER, {"const": False})
_LIMITED: Final[dict[str, Schema]] = {
    "seed": {"type": "integer", "minimum": -(2**63), "maximum": 2**63},
    "top_k": whole(-LARGEST),
    "top_p": number(0, 1),
    "min_p": number(0, 1),
    "typical_p": number(0, 1),
    "xtc_probability": number(0, 1),
    "xtc_threshold": number(0, 1),
    "dynatemp_range": number(0),
    "dynatemp_exponent": number(0),
    "repeat_penalty": {"type": "number", "exclusiveMinimum": 0},
    "repeat_last_n": whole(-1),
    "dry_multiplier": number(0),
    "dry_base": number(0),
    "dry_allowed_length": whole(0),
    "dry_penalty_last_n": whole(-1),
    "dry_sequence_breakers": array({"type": "string", "minLength": 1}),
    "mirostat": {"type": "integer", "enum": [0, 1, 2]},
    "mirostat_tau": number(0),
    "mirostat_eta": number(0),
    "min_keep": whole(0),
    "n_probs": whole(0, 1000),
    "samplers": either(array(words(*sorted(ALIASES))), {"type": "string", "pattern": "^[edskypmxt]*$"}),
    "logit_bias": either(
        {"type": "object", "additionalProperties": _BIAS},
        array({"type": "array", "prefixItems": [either(COUNT, STRING), _BIAS], "minItems": 2, "maxItems": 2}),
    ),
    "json_schema": either(ANY_OBJECT, FLAG),
}
"""What the type of a field does not say."""


# --- operations -------------------------------------------------------------------------------------------------------

_ERRORS: Final[dict[int, str]] = {
    400: "Something in the request is wrong; the message names the field.",
    401: "The API key is missing or wrong.",
    403: "The Host or the Origin is not one that this server answers to.",
    404: "There is no such thing.",
    408: "The request took too long to arrive.",
    413: "The request is too large.",
    429: "Too many requests are waiting already.",
    500: "The engine died in the middle of this, or there is a bug.",
    501: "This server was started without it.",
    503: "The model is being loaded, or the engine started again.",
}


def operation(
    summary: str,
    tag: str,
    answer: Schema | None,
    body: Schema | None = None,
    *,
    streams: str | None = None,
    error: str = "Error",
    parameters: Iterable[Schema] = (),
    example: Any = None,
    media: str = "application/json",
) -> Schema:
    """An operation of a path.

    answer   schema of a 200's body; None: `media` of any kind · `streams` media type of an answer in pieces
    error    name of the API's error schema
    """
    content: Schema = {media: {"schema": answer if answer is not None else {"type": "string"}}}
    if streams:
        content[streams] = {"schema": {"description": "The answer in pieces, as they come."}}
    responses: Schema = {"200": {"description": "The answer.", "content": content}}
    for status, description in _ERRORS.items():
        headers = {"Retry-After": {"schema": WHOLE}} if status in (429, 503) else {}
        told = {"application/json": {"schema": named(error)}}
        responses[str(status)] = {"description": description, "content": told} | (
            {"headers": headers} if headers else {}
        )
    found: Schema = {"summary": summary, "tags": [tag], "responses": responses}
    if list(parameters):
        found["parameters"] = list(parameters)
    if body is not None:
        shown: Schema = {"schema": body} | ({"example": example} if example is not None else {})
        found["requestBody"] = {"required": True, "content": {"application/json": shown}}
    return found


def query(name: str, schema: Schema, description: str = "") -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}
