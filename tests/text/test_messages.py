from typing import Any

import pytest

from gemmafile.errors import BadSettings
from gemmafile.text.messages import Accepts, arrange_messages, read_messages

Turns = list[tuple[str, str]]


def chat(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def arrange(turns: Turns, accepts: Accepts, policy: str = "merge") -> Turns:
    arranged = arrange_messages(read_messages(chat(*turns)), accepts, policy)
    return [(message["role"], message["content"]) for message in arranged]


def strict(roles: tuple[str, ...]) -> bool:
    """As Gemma's template: user and assistant in turn, no others."""
    return all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))


def anything(roles: tuple[str, ...]) -> bool:
    return True


def system_first(roles: tuple[str, ...]) -> bool:
    return strict(roles[1:] if roles[0] == "system" else roles)


def test_roles_have_two_names_each() -> None:
    read = read_messages(chat(("developer", "a"), ("model", "b"), ("user", "c"), ("tool", "d")))
    assert [message["role"] for message in read] == ["system", "assistant", "user", "tool"]


def test_content_may_come_in_parts_or_not_at_all() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    read = read_messages([{"role": "user", "content": parts}, {"role": "assistant", "content": None}, {"role": "user"}])
    assert [message["content"] for message in read] == ["a\nb", "", ""]


def test_other_fields_stay_and_arguments_become_a_dict() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    message = {"role": "assistant", "content": None, "name": "Ann", "tool_calls": [call]}
    [read] = read_messages([message])
    assert read["name"] == "Ann"
    assert read["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert call["function"]["arguments"] == '{"x": 1}', "the client's own is left as it was"


BAD: list[tuple[Any, str]] = [
    ([], "expected a list such as"),
    ("hello", "expected a list such as"),
    ({"role": "user"}, "expected a list such as"),
    (["hello"], 'message 1: expected {"role": ..., "content": ...}, not a str'),
    (chat(("user", "a"), ("usr", "b")), "message 2: unknown role 'usr' (did you mean user?); known: system, developer"),
    (chat((None, "a")), "message 1: unknown role None; known:"),
    (chat(("user", 5)), "message 1: content must be a string or a list"),
    (chat(("user", ["a"])), "message 1: content must be a string or a list"),
    (chat(("user", [{"type": "image_url"}])), "a part of type 'image_url', but this model reads text only"),
    (chat(("user", [{"type": "text", "text": 1}])), "message 1: a text part without text"),
    ([{"role": "assistant", "tool_calls": 1}], "message 1: tool_calls must be a list"),
    ([{"role": "assistant", "tool_calls": ["x"]}], "message 1: a tool call must have"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "are not JSON"),
]


@pytest.mark.parametrize(("messages", "text"), BAD, ids=[text for _, text in BAD])
def test_what_is_wrong_with_a_message_is_said(messages: Any, text: str) -> None:
    with pytest.raises(BadSettings) as caught:
        read_messages(messages)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_template_takes_is_left_alone() -> None:
    turns: Turns = [("system", "s"), ("system", "t"), ("assistant", "a"), ("user", "u"), ("user", "v"), ("tool", "w")]
    assert arrange(turns, anything) == turns


MERGED: list[tuple[Turns, Turns]] = [
    ([("system", "s"), ("user", "u")], [("user", "s\n\nu")]),
    ([("system", "s"), ("system", "t"), ("user", "u")], [("user", "s\n\nt\n\nu")]),
    ([("system", ""), ("user", "u")], [("user", "u")]),
    ([("system", "s")], [("user", "s")]),
    ([("user", "u"), ("user", "v")], [("user", "u\n\nv")]),
    ([("user", "u"), ("assistant", "a"), ("assistant", "b")], [("user", "u"), ("assistant", "a\n\nb")]),
    ([("assistant", "a"), ("user", "u")], [("user", ""), ("assistant", "a"), ("user", "u")]),
    ([("system", "s"), ("assistant", "a")], [("user", "s"), ("assistant", "a")]),
    (
        [("user", "u"), ("assistant", "a"), ("system", "s"), ("user", "v")],
        [("user", "u"), ("assistant", "a"), ("user", "s\n\nv")],
    ),
    ([("user", "u"), ("system", "s")], [("user", "u\n\ns")]),
    (
        [("user", "u"), ("assistant", "a"), ("tool", "42")],
        [("user", "u"), ("assistant", "a"), ("user", "42")],
    ),
]


@pytest.mark.parametrize(("turns", "expected"), MERGED)
def test_a_strict_template_gets_alternating_turns(turns: Turns, expected: Turns) -> None:
    assert arrange(turns, strict) == expected


def test_a_late_system_message_moves_where_only_the_first_is_taken() -> None:
    turns: Turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("system", "t"), ("user", "v")]
    assert arrange(turns, system_first) == [*turns[:3], ("user", "t\n\nv")]
    assert arrange([("system", "s"), ("system", "t"), ("user", "u")], system_first) == [
        ("system", "s\n\nt"),
        ("user", "u"),
    ]


def test_a_call_is_written_out_for_a_template_without_tools() -> None:
    call = {"function": {"name": "f", "arguments": '{"x": "é"}'}}
    messages = [*chat(("user", "u")), {"role": "assistant", "tool_calls": [call]}, *chat(("tool", "42"))]
    arranged = arrange_messages(read_messages(messages), strict, "merge")
    assert [m["content"] for m in arranged] == ["u", '{"name": "f", "arguments": {"x": "é"}}', "42"]


def test_the_other_policies() -> None:
    turns: Turns = [("system", "s"), ("user", "u")]
    with pytest.raises(BadSettings, match="no system role: leave it out, or choose --system-policy merge"):
        arrange(turns, strict, "error")
    for policy in ("user-turn", "system-turn"):
        with pytest.raises(BadSettings, match=f"takes no {policy} for a system message: choose merge"):
            arrange(turns, strict, policy)

    def no_system(roles: tuple[str, ...]) -> bool:
        return "system" not in roles

    assert arrange(turns, no_system, "user-turn") == [("user", "s"), ("user", "u")]
