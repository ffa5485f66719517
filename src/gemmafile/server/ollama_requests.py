"""ollama's requests, read into a `Turn`: messages, options, format, tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from gemmafile.server.body import Fields
from gemmafile.server.constraints import close_objects
from gemmafile.server.errors import ApiError, bad_request
from gemmafile.server.openai_requests import MOST_TOKENS, MOST_TOP, read_stops, read_tools
from gemmafile.server.sampling_fields import read_sampling
from gemmafile.server.turns import Turn

if TYPE_CHECKING:
    from gemmafile.server.door import Door
    from gemmafile.settings import SamplingSettings

NOT_OURS: Final = frozenset("stop num_predict n_probs grammar json_schema".split())
"""Options that are read elsewhere, or that ollama does not have."""


def read_options(fields: Fields, door: Door) -> tuple[SamplingSettings, int, list[str]]:
    """Sampling, tokens at most and stop strings out of `options`. num_ctx and other words about loading are ignored:
    the model is loaded."""
    values = fields.object("options") or {}
    options = Fields({k: v for k, v in values.items() if k not in NOT_OURS}, "options.")
    sampling = read_sampling(options, door)
    options = Fields(values, "options.")
    n_predict = options.whole("num_predict", door.run.n_predict, -2, MOST_TOKENS)
    return sampling, n_predict, read_stops(options, door)


def read_probs(fields: Fields) -> int | None:
    """How many alternatives are shown of each token; None: no log-probabilities."""
    n_top = fields.whole("top_logprobs", 0, 0, MOST_TOP)
    return n_top if fields.flag("logprobs") else None


def read_format(fields: Fields) -> str | None:
    """JSON text of a schema: `format` is "json", a schema, or "" for none."""
    value = fields.raw("format")
    if value is None or value == "":
        return None
    if value == "json":
        return '{"type": "object"}'
    if not isinstance(value, dict):
        raise fields.wrong("format", '"json" or a JSON schema')
    return json.dumps(close_objects(value), ensure_ascii=False)


def read_chat_turn(fields: Fields, door: Door) -> Turn | None:
    """None where there are no messages: a request to load the model."""
    _refuse_thinking(fields)
    messages = [_read_message(item, f"messages[{place}]") for place, item in enumerate(fields.items("messages"))]
    sampling, n_predict, stops = read_options(fields, door)
    tools, choice = read_tools(Fields({"tools": fields.raw("tools")}))
    schema = read_format(fields)
    if not messages:
        return None
    return Turn(messages, sampling, n_predict, stops, tools, choice, True, schema)


def read_generate_turn(fields: Fields, door: Door) -> Turn:
    """A prompt, with the system message before it, as a chat of one message."""
    _refuse_thinking(fields)
    for name in ("suffix", "images", "template"):
        if fields.raw(name):
            raise bad_request(f"{name} is not supported by this model", name)
    sampling, n_predict, stops = read_options(fields, door)
    messages = [{"role": "user", "content": fields.required_text("prompt")}]
    if system := fields.text("system"):
        messages.insert(0, {"role": "system", "content": system})
    return Turn(messages, sampling, n_predict, stops, schema=read_format(fields))


def _refuse_thinking(fields: Fields) -> None:
    if fields.raw("think"):
        raise ApiError(400, f'"{fields.text("model")}" does not support thinking', param="think")


def _read_message(item: Any, where: str) -> Mapping[str, Any]:
    """ollama's messages are OpenAI's, but for images, and `tool_name`."""
    if not isinstance(item, dict):
        raise bad_request(f"{where}: expected an object", "messages")
    if item.get("images"):
        raise bad_request(f"{where}: images, but this model reads text only", "messages")
    message = {key: value for key, value in item.items() if key not in ("images", "thinking", "tool_name")}
    if item.get("role") == "tool" and isinstance(item.get("tool_name"), str):
        message["name"] = item["tool_name"]
    return message
