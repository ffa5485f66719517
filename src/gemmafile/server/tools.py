"""Calling functions: what a model is told of them, the grammar that keeps its calls well formed, and the reader that
finds the calls in its answer. Every chat API goes through here with its own fields.

A call is text, in one of a few forms. A model whose template knows tools has learned one of them (`learned_form`);
all others are told of ours in the system message (`describe_tools`). Either way the answer follows a grammar: free
text, and from the mark that opens a call nothing but a call of a tool that there is, with arguments that its schema
allows.

In: tools as JSON, then text as it comes. Out: a Lark grammar for llguidance, `Text`, `CallBegun` and `CallArguments`.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from gemmafile.completion import overlap
from gemmafile.engine.grammar import JSON_RULES, LARK

if TYPE_CHECKING:
    from gemmafile.text.tokenizer import Tokenizer

Mode: TypeAlias = Literal["none", "auto", "required"]

MOST_CALLS: Final = 16
"""Calls in one answer, where several are asked for: a model that does not stop calling is stopped."""


@dataclass(frozen=True)
class Tool:
    """A function that may be called. `parameters` is the JSON schema of its arguments, an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As OpenAI's API writes it, which is what templates expect."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools are called. `name`: only this one may be."""

    mode: Mode = "auto"
    name: str | None = None


@dataclass(frozen=True)
class CallForm:
    """How a call is written: `begin` {"name": NAME, `key`: ARGUMENTS} `end`.

    trigger       the start of `begin` that makes a text a call; "": a call is an answer that starts with "{"
    may_repeat    several calls may follow one another
    """

    begin: str
    end: str
    key: str
    trigger: str
    may_repeat: bool

    def head(self, name: str) -> str:
        """A call up to its arguments."""
        return f'{self.begin}{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.key}": '

    def write(self, name: str, arguments: Any) -> str:
        return f"{self.head(name)}{json.dumps(arguments, ensure_ascii=False)}}}{self.end}"


MARKED: Final = CallForm("<tool_call>\n", "\n</tool_call>", "arguments", "<tool_call>", True)
"""What Hermes, Qwen and SmolLM were trained on, and what other models are told."""
BARE: Final = CallForm("", "", "arguments", "", False)
"""For a vocabulary where <tool_call> is a control token, which a model of ours does not write."""
LLAMA: Final = CallForm("", "", "parameters", "", False)
"""Llama 3.1 and later."""


def learned_form(template_source: str) -> CallForm | None:
    """The form in which a template that knows tools wants calls; None for one we do not have."""
    if "<tool_call>" in template_source:
        return MARKED
    return LLAMA if re.search(r'function name, \\?"parameters\\?"', template_source) else None


def plain_form(tokenizer: Tokenizer) -> CallForm:
    """The form that a model without one is told."""
    token_id = tokenizer.find_token(MARKED.trigger)
    return BARE if token_id is not None and tokenizer.is_control(token_id) else MARKED


# --- the prompt of a model whose template knows no tools --------------------------------------------------------------


def describe_tools(tools: Sequence[Tool], choice: ToolChoice, form: CallForm, several: bool) -> str:
    """What is put into the system message."""
    lines = "\n".join(json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in tools)
    example = form.head("NAME") + '{"ARGUMENT": VALUE}}' + form.end
    count = "one or more functions, one after another," if several and form.may_repeat else "a function"
    if choice.mode == "required":
        only = f"the function {choice.name}" if choice.name else count
        how = f"Answer by calling {only} in this form, and write nothing else:"
        otherwise = ""
    else:
        how = f"To call {count} answer in this form, and write nothing else:"
        otherwise = " Where no function helps, answer in plain words."
    results = "What a function returns comes back between <tool_response> and </tool_response>."
    return f"You can call these functions:\n<tools>\n{lines}\n</tools>\n{how}\n{example}\n{results}{otherwise}"


def write_plain_messages(messages: Sequence[Mapping[str, Any]], system: str, form: CallForm) -> list[dict[str, Any]]:
    """The messages without tool calls and roles for tools: written out as texts; `system` joins the system message.

    `messages`  checked by text.messages.read_messages
    """
    plain: list[dict[str, Any]] = [_write_plain(message, form) for message in messages]
    if not system:
        return plain
    if plain and plain[0]["role"] == "system":
        first = "\n\n".join(filter(None, [plain[0]["content"], system]))
        return [{**plain[0], "content": first}, *plain[1:]]
    return [{"role": "system", "content": system}, *plain]


def _write_plain(message: Mapping[str, Any], form: CallForm) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    written = [form.write(call["name"], call.get("arguments")) for call in calls]
    return {"role": message["role"], "content": "\n".join([*filter(None, [message["content"]]), *written])}


# --- the grammar ------------------------------------------------------------------------------------------------------


def call_grammar(
    tools: Sequence[Tool], choice: ToolChoice, form: CallForm, several: bool, content_schema: str | None = None
) -> str:
    """A Lark grammar of the whole answer. `content_schema`: JSON that an answer without a call has to be."""
    chosen = [tool for tool in tools if choice.name is None or tool.name == choice.name]
    most = MOST_CALLS if several and form.may_repeat else 1
    rules = [LARK + " {}"]
    for n, tool in enumerate(chosen):
        head = form.head(tool.name).removeprefix(form.trigger)
        arguments = json.dumps({"x-guidance": JSON_RULES, **tool.parameters})
        rules.append(f"call{n}: {_literal(head)} %json {arguments} {_literal('}' + form.end)}")
    rules.append("call: " + " | ".join(f"call{n}" for n in range(len(chosen))))
    rest = f"({_literal(chr(10) + form.trigger)} call){{0,{most - 1}}}" if most > 1 else ""
    if choice.mode == "required":
        rules.append(f"start: {_literal(form.trigger)} call {rest}")
    elif content_schema is not None:
        content = _with_rules(content_schema)
        rules += [f"start: content | {_literal(form.trigger)} call {rest}", f"content: %json {content}"]
    elif form.trigger:
        # The head is lazy: text ends with the first mark, and after a mark there is no way but a call.
        rules += [f"start: TEXT | head call {rest}", f"head[lazy]: TEXT {_literal(form.trigger)}", "TEXT: /(.|\\n)*/"]
    else:
        rules += ["start: TEXT | call", "TEXT: /([^{](.|\\n)*)?/"]
    return "\n".join(rules) + "\n"


def _with_rules(schema: str) -> str:
    parsed = json.loads(schema)
    return json.dumps({"x-guidance": JSON_RULES, **parsed}) if isinstance(parsed, dict) else json.dumps(parsed)


def _literal(text: str) -> str:
    return json.dumps(text)


# --- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """`index` counts the calls of an answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of a call's arguments. `is_last`: they are whole."""

    index: int
    text: str
    is_last: bool


Part: TypeAlias = Text | CallBegun | CallArguments


class CallReader:
    """Cuts an answer that follows `call_grammar` into text and calls while it comes. White space before a call is no
    text; a call that breaks off is left as far as it came.
    """

    def __init__(self, form: CallForm):
        self._form = form
        self._held = ""
        self._state: Literal["text", "head", "arguments", "tail"] = "text"
        self._head = re.compile(
            re.escape(form.begin.removeprefix(form.trigger)) + rf'\{{"name": ("(?:[^"\\]|\\.)*"), "{form.key}": '
        )
        self._is_first = True
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self.n_calls = 0

    def push(self, text: str) -> Iterator[Part]:
        self._held += text
        while self._held:
            before = (self._state, self._held)
            yield from getattr(self, f"_read_{self._state}")()
            if (self._state, self._held) == before:
                return

    def flush(self) -> Iterator[Part]:
        """What was held back, now that nothing follows."""
        if self._state == "text" and self._held:
            yield Text(self._held)
        self._held = ""

    def _read_text(self) -> Iterator[Part]:
        trigger = self._form.trigger
        if not trigger:
            yield from self._read_unmarked()
            return
        at = self._held.find(trigger)
        if at >= 0:
            shown, self._held = self._held[:at].rstrip(), self._held[at + len(trigger) :]
            self._state = "head"
        else:
            keep = overlap(self._held, trigger)
            shown = self._held[: len(self._held) - keep].rstrip()
            self._held = self._held[len(shown) :]
        if shown:
            yield Text(shown)

    def _read_unmarked(self) -> Iterator[Part]:
        """Without a mark the first character decides."""
        if self._is_first and self._held.startswith("{"):
            self._state = "head"
            return
        self._is_first = False
        yield Text(self._held)
        self._held = ""

    def _read_head(self) -> Iterator[Part]:
        match = self._head.match(self._held)
        if match is None:
            return
        self._held = self._held[match.end() :]
        self._state, self._depth = "arguments", 0
        self.n_calls += 1
        yield CallBegun(self.n_calls - 1, make_call_id(), json.loads(match[1]))

    def _read_arguments(self) -> Iterator[Part]:
        if self._depth == 0:
            self._held = self._held.lstrip()
        for at, c in enumerate(self._held, 1):
            if self._in_string:
                self._in_string = self._is_escaped or c != '"'
                self._is_escaped = c == "\\" and not self._is_escaped
            elif c == '"':
                self._in_string = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if self._depth == 0:
                    text, self._held = self._held[:at], self._held[at:]
                    self._state = "tail"
                    yield CallArguments(self.n_calls - 1, text, True)
                    return
        if self._held:
            text, self._held = self._held, ""
            yield CallArguments(self.n_calls - 1, text, False)

    def _read_tail(self) -> Iterator[Part]:
        """Up to the mark of another call, if there is one."""
        trigger = self._form.trigger
        at = self._held.find(trigger) if trigger else -1
        if at >= 0:
            self._held = self._held[at + len(trigger) :]
            self._state = "head"
        return
        yield


def make_call_id() -> str:
    letters = string.ascii_letters + string.digits
    return "call_" + "".join(secrets.choice(letters) for _ in range(24))
