"""Calls in a model's answer: the grammar allows nothing else, and the reader finds them however the text is cut."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest

from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from gemmafile.server.constraints import close_objects
from gemmafile.server.tools import (
    BARE,
    LLAMA,
    MARKED,
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
    write_plain_messages,
)

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
ADD = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
TOOLS = [Tool("get", "Gets", ADD), Tool("get_weather", "Weather", CITY), Tool('odd "name"', "", {"type": "object"})]

PIECES = [
    "<tool",
    "<tool_call>",
    "</tool_call>",
    '\n{"name": "',
    "get",
    "_weather",
    '", "arguments": {',
    '"}',
    "}}",
    " city",
    "hello ",
]
TOKENS = [bytes([i]) for i in range(256)] + [piece.encode() for piece in PIECES]
EOS = len(TOKENS)


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    return GrammarVocabulary([*TOKENS, b"<eos>"], [EOS], [EOS])


def read(form: CallForm, text: str, choose: random.Random | None = None) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls of an answer that comes in pieces."""
    reader, shown, calls = CallReader(form), "", []
    while text:
        n = choose.randint(1, 9) if choose else len(text)
        parts = list(reader.push(text[:n]))
        text = text[n:]
        if not text:
            parts += reader.flush()
        for part in parts:
            match part:
                case Text():
                    shown += part.text
                case CallBegun():
                    calls.append((part.name, ""))
                case CallArguments():
                    calls[part.index] = (calls[part.index][0], calls[part.index][1] + part.text)
    return shown, calls


def answers(grammar: str, vocabulary: GrammarVocabulary, text: str) -> bool:
    """May this be an answer?"""
    state = Grammar.from_gbnf(grammar, vocabulary)
    for byte in text.encode():
        if not state.allows(byte):
            return False
        state.accept(byte)
    return state.may_end


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "a}\\"{"}}\n</tool_call>'


@pytest.mark.parametrize("seed", range(5))
def test_the_reader_does_not_mind_how_a_text_is_cut(seed: int) -> None:
    text = "Let me < see <tool_box>:\n " + CALL + "\n" + CALL.replace("get_weather", 'odd \\"name\\"')
    shown, calls = read(MARKED, text, random.Random(seed))
    assert shown == "Let me < see <tool_box>:"
    assert calls == [("get_weather", '{"city": "a}\\"{"}'), ('odd "name"', '{"city": "a}\\"{"}')]


def test_text_without_calls_comes_out_whole() -> None:
    for text in ("", "  two\n\n", "a <tool_cal", "<", "{x}"):
        assert read(MARKED, text, random.Random(1)) == (text, [])
    assert read(LLAMA, "no {call}", random.Random(1)) == ("no {call}", [])


def test_a_call_without_marks() -> None:
    text = '{"name": "get", "parameters": {"n": 1}}'
    assert read(LLAMA, text, random.Random(1)) == ("", [("get", '{"n": 1}')])


def test_a_call_that_breaks_off_is_left_as_far_as_it_came() -> None:
    assert read(MARKED, CALL[:62], random.Random(1)) == ("", [("get_weather", CALL[CALL.index('{"city') : 62])])
    assert read(MARKED, CALL[:20]) == ("", [])


def test_the_grammar_allows_text_or_a_call_and_nothing_between(vocabulary: GrammarVocabulary) -> None:
    grammar = call_grammar(TOOLS, ToolChoice("auto"), MARKED, several=False)
    for good in ("", "hello", "a <tool", CALL, "text " + CALL):
        assert answers(grammar, vocabulary, good), good
    bad = [
        CALL[:-1],
        CALL + "x",
        CALL + "\n" + CALL,
        CALL.replace("get_weather", "other"),
        CALL.replace("city", "town"),
    ]
    bad += ["<tool_call>", "<tool_call>no", CALL.replace('"a}\\"{"', "1"), CALL.replace("get_weather", "get")]
    for text in bad:
        assert not answers(grammar, vocabulary, text), text


def test_several_calls_where_they_are_wanted(vocabulary: GrammarVocabulary) -> None:
    grammar = call_grammar(TOOLS, ToolChoice("required"), MARKED, several=True)
    assert answers(grammar, vocabulary, CALL + "\n" + CALL)
    assert not answers(grammar, vocabulary, "text " + CALL)
    assert not answers(grammar, vocabulary, "")


def test_only_the_function_that_is_asked_for(vocabulary: GrammarVocabulary) -> None:
    grammar = call_grammar(TOOLS, ToolChoice("required", "get"), MARKED, several=False)
    assert not answers(grammar, vocabulary, CALL)
    assert answers(grammar, vocabulary, '<tool_call>\n{"name": "get", "arguments": {"n":1}}\n</tool_call>')


def test_a_call_or_an_answer_that_follows_a_schema(vocabulary: GrammarVocabulary) -> None:
    grammar = call_grammar(TOOLS, ToolChoice("auto"), MARKED, False, '{"type": "integer"}')
    assert answers(grammar, vocabulary, "12")
    assert answers(grammar, vocabulary, CALL)
    assert not answers(grammar, vocabulary, "twelve")


@pytest.mark.parametrize("form", [MARKED, BARE, LLAMA])
def test_whatever_is_chosen_the_calls_are_sound(form: CallForm, vocabulary: GrammarVocabulary) -> None:
    """Answers drawn at random from the masks: each call names a tool, and its arguments follow its schema."""
    start = Grammar.from_gbnf(call_grammar(TOOLS, ToolChoice("required"), form, several=True), vocabulary)
    draw = np.random.default_rng(3)
    n_calls = 0
    for _ in range(12):
        state, text = start.copy(), b""
        for _ in range(200):
            allowed = np.flatnonzero(state.allowed())
            # Marks that close are likelier than chance: the walks are to end.
            closing = [i for i in allowed if i == EOS or bytes(([*TOKENS, b""])[i])[-1:] in b'}"']
            token_id = int(draw.choice(closing if closing and draw.random() < 0.5 else allowed))
            if token_id == EOS:
                break
            state.accept(token_id)
            text += TOKENS[token_id]
        shown, calls = read(form, text.decode(errors="replace"), random.Random(2))
        assert shown == ""
        if not state.may_end:
            calls = calls[:-1]
        for name, arguments in calls:
            tool = next(tool for tool in TOOLS if tool.name == name)
            jsonschema.validate(json.loads(arguments), dict(tool.parameters))
            n_calls += 1
    assert n_calls > 5


def test_templates_that_know_tools() -> None:
    assert learned_form("... <tool_call>\\n{...}") is MARKED
    assert learned_form('in the format {"name": function name, "parameters": dictionary}') is LLAMA
    assert learned_form("{% if tools %}[AVAILABLE_TOOLS]{% endif %}") is None


def test_what_a_model_without_tools_in_its_template_reads() -> None:
    calls = [{"id": "x", "type": "function", "function": {"name": "get", "arguments": {"n": 1}}}]
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "x", "content": "7"},
    ]
    told = describe_tools(TOOLS, ToolChoice("auto"), MARKED, several=False)
    plain = write_plain_messages(messages, told, MARKED)
    assert [message["role"] for message in plain] == ["system", "user", "assistant", "user"]
    assert plain[0]["content"].startswith("Be kind.\n\nYou can call these functions:")
    assert plain[2]["content"] == '<tool_call>\n{"name": "get", "arguments": {"n": 1}}\n</tool_call>'
    assert plain[3]["content"] == "<tool_response>\n7\n</tool_response>"


def test_objects_are_closed_where_nothing_else_is_said() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "string"}}}
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": inner}}}
    closed = close_objects(schema)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["items"]["additionalProperties"] is False
    for said in ({**schema, "additionalProperties": {"type": "string"}}, {"allOf": [schema]}, {"type": "object"}, True):
        assert close_objects(said) == said
    combined = {"properties": {"a": True}, "anyOf": [{"properties": {"b": True}}]}
    assert close_objects(combined) == combined
