"""Grammars and schemas are looked at in the door before the engine sees them: an error names the field it came in, and
what llguidance cannot compile costs the engine nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from functools import cache
from typing import Any

from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from gemmafile.errors import BackendUnavailable, BadSettings
from gemmafile.server.errors import ApiError
from gemmafile.settings import SamplingSettings


def close_objects(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever properties are named and nothing is said of others.

    JSON Schema allows any others there; a model that may make up properties does, and never ends. Peers close them too,
    and what follows the closed schema follows the one that was given.
    """
    if not isinstance(schema, dict) or _holds(schema, _OPEN):
        return schema
    return _close(schema)


_OPEN = frozenset("additionalProperties patternProperties unevaluatedProperties allOf".split())
"""A schema with one of these anywhere has said what it means, or puts objects together from parts."""


def _holds(value: Any, keys: frozenset[str]) -> bool:
    if isinstance(value, dict):
        return bool(keys & value.keys()) or any(_holds(item, keys) for item in value.values())
    return isinstance(value, list) and any(_holds(item, keys) for item in value)


def _close(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_whole = "properties" in schema and not {"anyOf", "oneOf", "$ref"} & schema.keys()
    if "properties" in schema and not is_whole:
        return schema
    closed = {key: _close_at(key, value) for key, value in schema.items()}
    return {**closed, "additionalProperties": False} if is_whole else closed


def _close_at(key: str, value: Any) -> Any:
    if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {name: _close(item) for name, item in value.items()}
    return _close(value) if key in ("items", "prefixItems", "anyOf", "oneOf") else value


@cache
def _bytes() -> GrammarVocabulary:
    """A vocabulary of single bytes: whether a grammar compiles does not depend on the tokens. Raises
    BackendUnavailable."""
    vocabulary = GrammarVocabulary([bytes([i]) for i in range(256)], [], [])
    vocabulary.prepare()
    return vocabulary


def prepare() -> None:
    """Have ready what the first grammar needs. Where it cannot be had, that grammar says so."""
    with contextlib.suppress(BackendUnavailable):
        Grammar.from_json_schema({"type": "object"}, _bytes())


MOST_CHARS = 1_000_000


def check_schema(schema: str, where: str) -> None:
    """`schema`  JSON text · `where` it stood in the request. Raises ApiError 400: what is wrong, or not supported."""
    if len(schema) > MOST_CHARS:
        raise ApiError(400, f"{where}: the schema has more than {MOST_CHARS} characters")
    try:
        Grammar.from_json_schema(schema, _bytes())
    except BadSettings as error:
        message = str(error).removeprefix("json_schema").removeprefix(":").strip()
        raise ApiError(400, f"{where}: {message}", param=where.split("[")[0].split(":")[0]) from None
    except BackendUnavailable as error:
        raise ApiError(501, str(error)) from None


def without_default(sampling: SamplingSettings, default: SamplingSettings) -> SamplingSettings:
    """The settings without the grammar that the server was started with: a request that asks for a form of its own
    overrules it, as in llama.cpp."""
    given = sampling.grammar, sampling.json_schema
    if given == (None, None) or given != (default.grammar, default.json_schema):
        return sampling
    return replace(sampling, grammar=None, json_schema=None)


def with_schema(sampling: SamplingSettings, schema: str) -> SamplingSettings:
    """The settings with the schema of a response_format. Raises ApiError 400 where there is a grammar already."""
    if sampling.grammar is not None or sampling.json_schema is not None:
        raise ApiError(400, "response_format and a grammar or json_schema were both given: which one?")
    return replace(sampling, json_schema=schema)


async def check_away(sampling: SamplingSettings) -> None:
    """`check_constraint`, on another thread: a large grammar takes seconds until it is refused."""
    if sampling.grammar is not None or sampling.json_schema is not None:
        await asyncio.to_thread(check_constraint, sampling)


def check_constraint(sampling: SamplingSettings) -> None:
    """The grammar or the schema of a request's sampling settings. Raises ApiError 400."""
    if sampling.grammar is not None and sampling.json_schema is not None:
        raise ApiError(400, "grammar and json_schema were both given: which one?", param="grammar")
    if sampling.json_schema is not None:
        check_schema(sampling.json_schema, "json_schema")
    elif sampling.grammar is not None:
        try:
            Grammar.from_gbnf(sampling.grammar, _bytes())
        except BadSettings as error:
            raise ApiError(400, str(error), param="grammar") from None
        except BackendUnavailable as error:
            raise ApiError(501, str(error)) from None
