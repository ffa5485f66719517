"""One turn of a chat, whichever API asked for it: what all of them want of a model, and what comes back.

In: a `Turn`. `prepare` makes token ids, a grammar and stop strings of it (`Prepared`, which also counts the tokens);
`take` gives the answer as it comes: parts of text and of calls (tools.py), then one `Done`. The modules of the APIs
read their requests into a Turn and write these parts in their own shapes; next: openai_chat.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from gemmafile.engine.jobs import Progress
from gemmafile.server.answering import Ask, Finished, TextPiece, answer, chat_prompt, encode_away
from gemmafile.server.constraints import check_constraint, check_schema, close_objects, with_schema, without_default
from gemmafile.server.errors import ApiError, bad_request
from gemmafile.server.tools import (
    CallArguments,
    CallBegun,
    CallForm,
    CallReader,
    Text,
    Tool,
    ToolChoice,
    call_grammar,
    describe_tools,
    learned_form,
    plain_form,
    write_plain_messages,
)
from gemmafile.settings import SamplingSettings
from gemmafile.text.messages import read_messages

if TYPE_CHECKING:
    from gemmafile.server.door import Door

Reason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]

MOST_TOOLS: Final = 128
MOST_NAME_CHARS: Final = 128


@dataclass
class Turn:
    """What a chat API is asked for.

    max_tokens  of the answer; negative: until it ends by itself
    schema      JSON text of a schema that the answer has to follow
    several     more than one call in an answer is fine
    variables   reach the chat template
    options     further fields of Ask: cache_prompt, slot ...
    """

    messages: Sequence[Mapping[str, Any]]
    sampling: SamplingSettings
    max_tokens: int = -1
    stop: list[str] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    choice: ToolChoice = field(default_factory=ToolChoice)
    several: bool = False
    schema: str | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A turn as the engine gets it. `form`: how calls are written, None where there can be none."""

    ask: Ask
    form: CallForm | None

    @property
    def n_prompt(self) -> int:
        return len(self.ask.token_ids)


@dataclass(frozen=True)
class Said:
    """Text of the answer, and the tokens that made it."""

    text: str
    tokens: list[TextPiece]


@dataclass(frozen=True)
class Done:
    """The turn is over. `finished` has the counts and timings."""

    reason: Reason
    finished: Finished


TurnEvent: TypeAlias = Progress | Said | CallBegun | CallArguments | Done


async def prepare(door: Door, turn: Turn) -> Prepared:
    """Raises ApiError for what is wrong with the messages, the tools or the schema."""
    messages = read_messages(turn.messages)
    if door.system and all(message["role"] != "system" for message in messages):
        messages = [{"role": "system", "content": door.system}, *messages]
    tools = [] if turn.choice.mode == "none" else turn.tools
    variables = dict(turn.variables)
    form: CallForm | None = None
    told: list[dict[str, Any]] | None = None
    knows_tools = False
    if tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        knows_tools = await asyncio.to_thread(lambda: door.chat_template.takes_tools)
    if tools:
        learned = learned_form(door.chat_template.source) if knows_tools else None
        form = learned or plain_form(door.tokenizer)
        if learned is not None:
            told = [tool.as_json() for tool in tools]
            variables["parallel_tool_calls"] = turn.several
        else:
            system = describe_tools(tools, turn.choice, form, turn.several)
            messages = write_plain_messages(messages, system, form)
    elif not knows_tools:
        messages = write_plain_messages(messages, "", plain_form(door.tokenizer))
    sampling = without_default(turn.sampling, door.sampling) if tools or turn.schema is not None else turn.sampling
    is_free = turn.schema is None and not tools and sampling.grammar is None and sampling.json_schema is None
    if not is_free:
        sampling = await asyncio.to_thread(_constrain, dataclasses.replace(turn, sampling=sampling), tools, form)
    token_ids = await _encode(door, messages, told, variables)
    ask = Ask(token_ids, sampling, max_tokens=turn.max_tokens, stop=turn.stop, **turn.options)
    return Prepared(ask, form)


async def _encode(
    door: Door, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, variables: dict[str, Any]
) -> list[int]:
    """The prompt. An assistant's message at the end begins the answer, as in llama.cpp and in Anthropic's API."""
    last, asks = messages[-1], bool(variables.pop("add_generation_prompt", True))
    opens = len(messages) > 1 and last["role"] == "assistant" and not last.get("tool_calls")
    if not (opens and asks):
        return await chat_prompt(door, messages, tools, variables, asks)
    if messages[-2]["role"] == "assistant":
        raise bad_request("the last two messages are both the assistant's: only one can begin the answer", "messages")
    token_ids = await chat_prompt(door, messages[:-1], tools, variables)
    text = last["content"]
    return token_ids + await encode_away(lambda: door.tokenizer.encode(text, add_special=False), len(text))


def _constrain(turn: Turn, tools: list[Tool], form: CallForm | None) -> SamplingSettings:
    """The sampling of a turn with the grammar that its tools and its schema ask for."""
    given = turn.sampling
    if turn.schema is not None:
        by_schema = with_schema(given, turn.schema)
        check_schema(turn.schema, "response_format")
        if not tools:
            return by_schema
    if not tools:
        check_constraint(given)
        return given
    if given.grammar is not None or given.json_schema is not None:
        raise bad_request("tools and a grammar or json_schema were both given: tools make a grammar of their own")
    assert form is not None
    if turn.schema is not None and not form.trigger:
        raise bad_request("tools and a response_format cannot be had together with this model", "response_format")
    for place, tool in enumerate(tools):
        check_schema(json.dumps(dict(tool.parameters)), f"tools[{place}] ({tool.name}): parameters")
    grammar = call_grammar(tools, turn.choice, form, turn.several, turn.schema)
    return dataclasses.replace(given, grammar=grammar)


async def take(door: Door, prepared: Prepared) -> AsyncGenerator[TurnEvent, None]:
    """The answer. Raises ApiError; closing it cancels the answer."""
    reader = CallReader(prepared.form) if prepared.form is not None else None
    tokens: list[TextPiece] = []
    eog_ids = door.tokenizer.eog_ids
    pieces = answer(door, prepared.ask)
    try:
        async for piece in pieces:
            if isinstance(piece, TextPiece):
                if piece.token_id is not None and (piece.text or piece.token_id not in eog_ids):
                    tokens.append(piece)
                if not piece.text:
                    continue
                for part in [Text(piece.text)] if reader is None else reader.push(piece.text):
                    yield _with_tokens(part, tokens)
                    tokens = []
            elif isinstance(piece, Finished):
                for part in [] if reader is None else reader.flush():
                    yield _with_tokens(part, tokens)
                    tokens = []
                if tokens and piece.stop_text is None:
                    yield Said("", tokens)
                yield Done(_reason(piece, reader), piece)
            elif isinstance(piece, Progress):
                yield piece
    finally:
        await pieces.aclose()


def _with_tokens(part: Text | CallBegun | CallArguments, tokens: list[TextPiece]) -> Said | CallBegun | CallArguments:
    return Said(part.text, tokens) if isinstance(part, Text) else part


def _reason(finished: Finished, reader: CallReader | None) -> Reason:
    if finished.finish_reason != "stop":
        return finished.finish_reason
    return "tool_calls" if reader is not None and reader.n_calls else "stop"


@dataclass
class Call:
    """A call as a whole. `arguments` is JSON text, which breaks off where the answer did."""

    id: str
    name: str
    arguments: str = ""


class Whole:
    """A turn put together from its events. `reason` and `finished` are there after `Done`."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.tokens: list[TextPiece] = []
        self.calls: list[Call] = []
        self._done: Done | None = None

    def add(self, event: TurnEvent) -> None:
        match event:
            case Said():
                self._texts.append(event.text)
                self.tokens += event.tokens
            case CallBegun():
                self.calls.append(Call(event.id, event.name))
            case CallArguments():
                self.calls[event.index].arguments += event.text
            case Done():
                self._done = event

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def done(self) -> Done:
        if self._done is None:
            raise ApiError(500, "the answer broke off")
        return self._done

    @property
    def reason(self) -> Reason:
        return self.done.reason

    @property
    def finished(self) -> Finished:
        return self.done.finished


async def gather(events: AsyncGenerator[tuple[int, TurnEvent], None], n: int) -> list[Whole]:
    """The turns whose merged events these are."""
    turns = [Whole() for _ in range(n)]
    try:
        async for number, event in events:
            turns[number].add(event)
    finally:
        await events.aclose()
    return turns


def read_tool(name: Any, description: Any, parameters: Any, where: str) -> Tool:
    """A tool out of a request. Raises ApiError naming it."""
    if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME_CHARS or not name.isprintable():
        raise bad_request(f"{where}: name has to be a text of 1 to {MOST_NAME_CHARS} characters", "tools")
    if description is not None and not isinstance(description, str):
        raise bad_request(f"{where} ({name}): description has to be a text", "tools")
    if parameters is not None and not isinstance(parameters, dict):
        raise bad_request(f"{where} ({name}): parameters has to be a JSON schema, an object", "tools")
    schema = {"type": "object", **(parameters or {})}
    if schema["type"] != "object":
        raise bad_request(f"{where} ({name}): parameters has to be the schema of an object", "tools")
    return Tool(name, description or "", close_objects(schema))


def check_choice(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """Raises ApiError where what has to be called is not there."""
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_request("two tools have the same name", "tools")
    if len(tools) > MOST_TOOLS:
        raise bad_request(f"{len(tools)} tools: at most {MOST_TOOLS} can be offered", "tools")
    if choice.mode == "required" and not tools:
        raise bad_request("tool_choice asks for a call, and there are no tools", "tool_choice")
    if choice.name is not None and choice.name not in names:
        raise bad_request(f"tool_choice: there is no tool {choice.name!r}", "tool_choice")
