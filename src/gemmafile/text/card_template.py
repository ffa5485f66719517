"""The prompt and history templates of a llamafile's model card, as the old llama.cpp web page filled them in.

For pages and sessions made for that page only. It expands `{{...}}` inside what it has put in, users' messages too, so
a message can say `{{prompt}}`; and the names it puts in are "Llama" and "User" unless the session says otherwise, not
the roles a model knows. A chat is better rendered by `chat.py`.
Source: llama.cpp, examples/server/public/index.html, `template` and `chat`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from gemmafile.errors import BadSettings

_FIELD: Final = re.compile("\\{\\{([^\n\r\u2028\u2029]*?)\\}\\}")
_FIRST_SPACE: Final = re.compile("^[\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]")
_MAX_DEPTH: Final = 50
_MAX_FIELDS: Final = 100_000


def render_card_template(prompt_template: str, history_template: str, session: Mapping[str, Any]) -> str:
    """The prompt the old page sends for this session, byte for byte.

    `session`  prompt, char ("Llama"), user ("User"), transcript: [[name, text or [{"content": piece}, ...]], ...],
    where a name is "{{user}}" or "{{char}}" and the last text is the message being sent.
    Raises BadSettings where a text expands without end (there, the page dies).
    """
    settings: dict[str, Any] = {"char": "Llama", "user": "User", "transcript": [], "type": "chat", "image_selected": ""}
    settings |= {"template": prompt_template, "historyTemplate": history_template, **session}
    page = _Page(settings)
    turns = _read_turns(settings["transcript"])
    history = "\n".join(page.expand(history_template, {"name": name, "message": text}) for name, text in turns)
    return page.expand(prompt_template, {"message": turns[-1][1] if turns else "", "history": history})


class _Page:
    """The page's `template` function over one session, with an end to its patience."""

    def __init__(self, settings: Mapping[str, Any]):
        self.settings, self.n_fields = settings, 0

    def expand(self, text: Any, extra: Mapping[str, Any] | None = None, depth: int = 0) -> str:
        """`extra` holds for the fields of `text` itself, not for those of what they expand to."""
        values = {**self.settings, **(extra or {})}

        def fill(match: re.Match[str]) -> str:
            self.n_fields += 1
            if depth > _MAX_DEPTH or self.n_fields > _MAX_FIELDS:
                raise BadSettings(f"the prompt template expands without end at {match[0][:80]!r}")
            return self.expand(values.get(match[1], _UNDEFINED), depth=depth + 1)

        return _FIELD.sub(fill, _write_as_javascript(text))


_UNDEFINED: Final = object()


def _read_turns(transcript: Any) -> list[tuple[str, Any]]:
    """(name, text) of each turn; an answer may come in the pieces it was streamed in."""
    turns = []
    for turn in transcript:
        if not (isinstance(turn, (list, tuple)) and len(turn) == 2 and isinstance(turn[0], str)):
            raise BadSettings('transcript: expected a list of [name, text], such as [["{{user}}", "Hello"]]')
        name, data = turn
        if isinstance(data, list):
            pieces = [str(piece.get("content") or "") for piece in data if isinstance(piece, Mapping)]
            data = _FIRST_SPACE.sub("", "".join(pieces))
        turns.append((name, data))
    return turns


def _write_as_javascript(value: Any) -> str:
    """String(value)."""
    if isinstance(value, list):
        return ",".join("" if item is None else _write_as_javascript(item) for item in value)
    if isinstance(value, dict):
        return "[object Object]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "undefined" if value is _UNDEFINED else str(value)
