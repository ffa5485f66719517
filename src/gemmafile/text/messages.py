"""The messages of a chat, checked and arranged so that a template takes them.

Clients send what their own model's template allows: system messages, two user turns in a row, a greeting first. A
template says yes or no to a sequence of roles (`accepts`); what it refuses is put into a form it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias

from gemmafile.errors import BadSettings, nearest

Message: TypeAlias = dict[str, Any]
Accepts: TypeAlias = Callable[[tuple[str, ...]], bool]

ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
}
"""The roles a client may send -> the roles a template sees."""

SYSTEM_POLICIES: Final = ("merge", "user-turn", "error", "system-turn")
"""What becomes of a system message where the template has no system role: joined to the next user message, a user
turn of its own, refused, or a system turn all the same."""


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Checked copies: `role` is one of system, user, assistant, tool; `content` is a string; other fields stay.

    Raises BadSettings naming the message and what is wrong with it.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise BadSettings('messages: expected a list such as [{"role": "user", "content": "Hello"}]')
    return [_read_message(message, f"message {i}") for i, message in enumerate(messages, 1)]


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise BadSettings(f'{where}: expected {{"role": ..., "content": ...}}, not a {type(message).__name__}')
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadSettings(f"{where}: unknown role {role!r}{nearest(str(role), ROLES)}; known: {', '.join(ROLES)}")
    checked = {**message, "role": ROLES[role], "content": _read_content(message.get("content"), where)}
    if message.get("tool_calls"):
        if not isinstance(message["tool_calls"], Sequence):
            raise BadSettings(f"{where}: tool_calls must be a list")
        checked["tool_calls"] = [_read_tool_call(call, where) for call in message["tool_calls"]]
    return checked


def _read_content(content: Any, where: str) -> str:
    """A string, or text parts joined by newlines; nothing is an empty string."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise BadSettings(f'{where}: content must be a string or a list of {{"type": "text", "text": ...}}')
    for part in content:
        if part.get("type") != "text":
            raise BadSettings(f"{where}: a part of type {part.get('type')!r}, but this model reads text only")
        if not isinstance(part.get("text"), str):
            raise BadSettings(f"{where}: a text part without text")
    return "\n".join(part["text"] for part in content)


def _read_tool_call(call: Any, where: str) -> dict[str, Any]:
    """A call whose arguments are a dict, as templates expect; clients send them as a JSON string."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadSettings(f'{where}: a tool call must have {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise BadSettings(f"{where}: the arguments of a tool call are not JSON") from None
    return {**call, "function": {**function, "arguments": arguments}}


def arrange_messages(messages: list[Message], accepts: Accepts, system_policy: str) -> list[Message]:
    """The messages in a form the template takes: each kind of trouble is looked for only where it could arise.

    Joined texts are separated by an empty line. Raises BadSettings where `system_policy` says so.
    """
    if any(message["role"] == "tool" for message in messages) and not accepts(("user", "calling", "tool")):
        messages = [_write_tool_message(message) for message in messages]
    if any(message["role"] == "system" for message in messages):
        messages = _place_system(messages, accepts, system_policy)
    if messages[0]["role"] == "assistant" and not accepts(("assistant", "user")):
        messages = [{"role": "user", "content": ""}, *messages]
    for role, pattern in (("user", ("user", "user")), ("assistant", ("user", "assistant", "assistant"))):
        if _repeats(messages, role) and not accepts(pattern):
            messages = _join_repeats(messages, role)
    return messages


def _write_tool_message(message: Message) -> Message:
    """For a template without tools: a tool's answer becomes a user turn, a call its JSON."""
    if message["role"] == "tool":
        return {"role": "user", "content": message["content"]}
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", [])]
    return {"role": message["role"], "content": "\n".join([*filter(None, [message["content"]]), *calls])}


def _place_system(messages: list[Message], accepts: Accepts, system_policy: str) -> list[Message]:
    if accepts(("system", "user")):
        first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        head = messages[:first]
        if len(head) > 1 and not accepts(("system", "system", "user")):
            head = _join_repeats(head, "system")
        tail = messages[first:]
        late = any(message["role"] == "system" for message in tail)
        return head + (_fold_system(tail) if late and not accepts(("user", "assistant", "system", "user")) else tail)
    if system_policy == "error":
        raise BadSettings("this model has no system role: leave it out, or choose --system-policy merge")
    if system_policy == "user-turn" and accepts(("user", "user")):
        return [{**message, "role": "user"} if message["role"] == "system" else message for message in messages]
    if system_policy != "merge":
        raise BadSettings(f"this model's template takes no {system_policy} for a system message: choose merge, or "
                          "--chat-template with one that does")  # fmt: skip
    return _fold_system(messages)


def _fold_system(messages: list[Message]) -> list[Message]:
    """System text goes in front of the user message that follows it; where another follows, it is a user turn."""
    folded: list[Message] = []
    waiting: list[str] = []
    for message in [*messages, {"role": "end"}]:
        if message["role"] == "system":
            waiting.append(message["content"])
            continue
        if message["role"] == "user":
            message = {**message, "content": _join_texts([*waiting, message["content"]])}
        elif waiting:
            folded.append({"role": "user", "content": _join_texts(waiting)})
        folded.append(message)
        waiting = []
    return folded[:-1]


def _repeats(messages: list[Message], role: str) -> bool:
    return any(a["role"] == b["role"] == role for a, b in pairwise(messages))


def _join_repeats(messages: list[Message], role: str) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"] == role:
            both = joined[-1] | {k: v for k, v in message.items() if k != "content"}
            joined[-1] = {**both, "content": _join_texts([joined[-1]["content"], message["content"]])}
        else:
            joined.append(message)
    return joined


def _join_texts(texts: list[str]) -> str:
    return "\n\n".join(text for text in texts if text)
