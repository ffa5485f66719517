"""A chat as it stands: its messages, what they are as token ids, and ways back.

What a turn shares with the turn before is not computed again: `completion.keep_common_prefix` compares token ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gemmafile.cli import confinement
from gemmafile.errors import BadFile, GemmafileError
from gemmafile.files.atomic import replace_file

if TYPE_CHECKING:
    from gemmafile.text.chat import ChatTemplate

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


class Conversation:
    """`messages`  role and content, the system prompt first if there is one."""

    def __init__(self, template: ChatTemplate, system: str | None = None):
        self.template = template
        self.messages: list[dict[str, str]] = []
        self.set_system(system)

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else None
        return first["content"] if first and first["role"] == SYSTEM else None

    def set_system(self, text: str | None) -> None:
        """Replace the system prompt; None or "" takes it away."""
        if self.system is not None:
            del self.messages[0]
        if text:
            self.messages.insert(0, {"role": SYSTEM, "content": text})

    def add(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})

    def encode(self) -> list[int]:
        """Token ids up to where the model's next turn begins."""
        return self.template.encode(self.messages)

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [message for message in self.messages[:1] if message["role"] == SYSTEM]

    def take_back_answer(self) -> str | None:
        """Drop the last answer, if the last message is one; returns it."""
        return self._take_back(ASSISTANT)

    def take_back_message(self) -> str | None:
        """Drop the last message of the user, with the answer to it if there is one; returns it."""
        self._take_back(ASSISTANT)
        return self._take_back(USER)

    def _take_back(self, role: str) -> str | None:
        is_last = bool(self.messages) and self.messages[-1]["role"] == role
        return self.messages.pop()["content"] if is_last else None

    def save(self, path: Path) -> None:
        """As JSON where the name ends in .json, else as text a person reads. Raises GemmafileError."""
        if path.suffix == ".json":
            text = json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n"
        else:
            text = "\n".join(f"## {message['role']}\n\n{message['content']}\n" for message in self.messages)
        if not path.name:
            raise GemmafileError(f"{path}: cannot be written: it is a directory")
        try:
            with replace_file(path) as out:
                out.write(text.encode())
        except BadFile as error:
            why = confinement.explain(error.__cause__) if isinstance(error.__cause__, OSError) else ""
            raise GemmafileError(f"{error}{why}") from None
