"""What requests of OpenAI's kind have in common, read into settings, schemas and tools. llama.cpp's extra fields are
fields here too.

In: `Fields`. Out: parts of a `Turn` or an `Ask`, or an ApiError naming the field.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final

from gemmafile.server.body import Fields
from gemmafile.server.constraints import close_objects
from gemmafile.server.errors import ApiError, bad_request
from gemmafile.server.sampling_fields import read_sampling
from gemmafile.server.tools import Tool, ToolChoice
from gemmafile.server.turns import Turn, check_choice, read_tool

if TYPE_CHECKING:
    from gemmafile.server.door import Door
    from gemmafile.settings import SamplingSettings

MOST_CHOICES: Final = 128
MOST_STOPS: Final = 64
MOST_TOP: Final = 20
MOST_TOKENS: Final = 2**31 - 1
TEMPLATE_NAMES: Final = frozenset("messages tools documents bos_token eos_token unk_token pad_token".split())
"""Variables of a template that come from the request itself, not from chat_template_kwargs."""


def read_options(fields: Fields) -> dict[str, Any]:
    """Further fields of `Ask`, under llama.cpp's names."""
    options: dict[str, Any] = {"cache_prompt": fields.flag("cache_prompt", True)}
    options["slot"] = fields.whole("id_slot", -1, -1, 1 << 20)
    if (ms := fields.whole("t_max_predict_ms", 0, -1)) > 0:
        options["deadline_s"] = ms / 1000
    return options


def read_stops(fields: Fields, door: Door, name: str = "stop") -> list[str]:
    """The request's stop strings, else those that the server was started with (-r)."""
    return [text for text in fields.texts(name, most=MOST_STOPS) if text] or door.run.reverse_prompts


def read_max_tokens(fields: Fields, default: int, *names: str) -> int:
    """The first of these fields that is there, else `default`. Negative: no limit."""
    name = next((name for name in names if name in fields), None)
    return default if name is None else fields.whole(name, 0, -2, MOST_TOKENS)


def read_probs(fields: Fields, sampling: SamplingSettings) -> tuple[SamplingSettings, int | None]:
    """`logprobs` and `top_logprobs` of a chat: the settings, and how many alternatives are shown. None: none at all.

    llama.cpp's `n_probs` asks for the same.
    """
    wanted = fields.flag("logprobs")
    n_top = fields.whole("top_logprobs", 0, 0, MOST_TOP)
    if n_top and not wanted:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    if not wanted and sampling.n_probs == 0:
        return sampling, None
    n_top = max(n_top, sampling.n_probs)
    return dataclasses.replace(sampling, n_probs=max(1, n_top)), n_top


def read_response_format(fields: Fields) -> str | None:
    """JSON text of the schema that response_format asks for; llama.cpp's `schema` beside `type` too."""
    value = fields.object("response_format")
    return None if value is None else read_format(value, "response_format")


def read_format(value: dict[str, Any], where: str) -> str | None:
    """Of {"type": "json_schema", ...}; the schema lies in `json_schema`, or beside `type`."""
    kind = value.get("type")
    if kind in (None, "text"):
        return None
    if kind not in ("json_object", "json_schema"):
        raise bad_request(f"{where}: type has to be text, json_object or json_schema, not {str(kind)[:60]!r}", where)
    inside = value.get("json_schema") if kind == "json_schema" else None
    if inside is not None and not isinstance(inside, dict):
        raise bad_request(f'{where}: json_schema has to be an object with a "schema"', where)
    schema = (inside or {}).get("schema", value.get("schema"))
    if schema is None:
        if kind == "json_schema":
            raise bad_request(f"{where}: there is no schema in it", where)
        schema = {"type": "object"}
    if not isinstance(schema, (dict, bool)):
        raise bad_request(f"{where}: schema has to be a JSON schema, an object", where)
    return json.dumps(close_objects(schema), ensure_ascii=False)


def read_tools(fields: Fields) -> tuple[list[Tool], ToolChoice]:
    """`tools` and `tool_choice` of a chat."""
    for name in ("functions", "function_call"):
        if name in fields:
            raise bad_request(f"{name} is not supported any more: use tools and tool_choice", name)
    tools = [_read_tool(item, f"tools[{place}]") for place, item in enumerate(fields.items("tools"))]
    choice = _read_choice(fields.raw("tool_choice"))
    check_choice(tools, choice)
    return tools, choice


def _read_tool(item: Any, where: str) -> Tool:
    function = item.get("function") if isinstance(item, dict) and item.get("type", "function") == "function" else None
    if not isinstance(function, dict):
        raise bad_request(f'{where}: expected {{"type": "function", "function": {{"name": ...}}}}', "tools")
    return read_tool(function.get("name"), function.get("description"), function.get("parameters"), where)


def _read_choice(value: Any) -> ToolChoice:
    if value is None or value in ("auto", "none", "required"):
        return ToolChoice(value or "auto")
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        expected = 'none, auto, required or {"type": "function", "function": {"name": ...}}'
        raise bad_request(f"tool_choice: expected {expected}", "tool_choice")
    return ToolChoice("required", name)


def read_variables(fields: Fields) -> dict[str, Any]:
    """What reaches the chat template beside the messages."""
    variables = {k: v for k, v in (fields.object("chat_template_kwargs") or {}).items() if k not in TEMPLATE_NAMES}
    if "reasoning_effort" in fields:
        variables.setdefault("reasoning_effort", fields.text("reasoning_effort"))
    variables["add_generation_prompt"] = fields.flag("add_generation_prompt", True)
    return variables


def _read_messages(fields: Fields) -> list[Any]:
    """The list as it came. Raises ApiError for a message that says nothing and calls nothing: null would be well."""
    messages = fields.items("messages")
    for place, message in enumerate(messages):
        speaks = isinstance(message, dict) and message.get("role") not in (None, "assistant", "model")
        if speaks and "content" not in message:
            raise bad_request(f"messages[{place}]: content is missing", "messages")
    return messages


def read_chat(fields: Fields, door: Door) -> tuple[Turn, int | None]:
    """A chat's request as a Turn, and how many alternatives of each token are shown. Raises ApiError."""
    if "messages" not in fields:
        raise bad_request("messages is missing: a list of messages is expected", "messages")
    if "audio" in (modalities := fields.texts("modalities")) or "audio" in fields:
        raise ApiError(400, "this model writes text only, no audio", param="modalities" if modalities else "audio")
    sampling = read_sampling(fields, door)
    sampling, n_top = read_probs(fields, sampling)
    tools, choice = read_tools(fields)
    turn = Turn(
        _read_messages(fields),
        sampling,
        read_max_tokens(fields, door.run.n_predict, "max_completion_tokens", "max_tokens", "n_predict"),
        read_stops(fields, door),
        tools,
        choice,
        fields.flag("parallel_tool_calls"),
        read_response_format(fields),
        read_variables(fields),
        read_options(fields),
    )
    return turn, n_top
