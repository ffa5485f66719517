"""A chat to a prompt: `ChatTemplate` renders messages as the model was trained to see them, and encodes them so that
nothing in a message can pass for structure.

How `encode` knows a template's own `<end_of_turn>` from one that a user pasted: the template is compiled a second
time, with every control token in it replaced by a mark nobody can guess. What the output marks, the template wrote;
all else is plain text. Where control tokens are spelled outside the marks, by a template that builds them from pieces
or by a user, the messages are marked instead. When neither tells them apart, they are plain text. `messages.py`
arranges the messages, `sandbox.py` runs the template.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gemmafile.errors import BadFile, BadSettings, GemmafileError, nearest
from gemmafile.text.messages import SYSTEM_POLICIES, Message, arrange_messages, read_messages
from gemmafile.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

Pieces: TypeAlias = list[str | int]
"""A prompt as texts, which are only text, and control tokens between them."""

_Chat: TypeAlias = dict[str, Any]

BUILT_IN: Final = ("chatml", "gemma", "llama2", "llama3", "zephyr")

_NONCE: Final = str(secrets.randbelow(10**20))
"""Digits: no filter changes them. Never leaves the process."""
_CONTROL_MARK: Final = re.compile(f"\ue000{_NONCE}:(\\d+)\ue001")
_ANY_MARK: Final = re.compile(rf"(?:\ue000|\\ue000){_NONCE}(?::(\d+)|[()])(?:\ue001|\\ue001)")
"""Also as repr() spells it, in Jinja's messages."""
_BEGIN, _END = f"\ue000{_NONCE}(\ue001", f"\ue000{_NONCE})\ue001"


class ChatTemplate:
    """Renders and encodes chats. `stop_ids` end an answer."""

    def __init__(self, source: str | None, architecture: str, tokenizer: Tokenizer, system_policy: str = "merge"):
        """`source`  name of a built-in template, or Jinja; None: the model's own, else the one for its architecture.

        Raises BadFile if the model's own does not compile, BadSettings for any other source or policy.
        """
        if system_policy not in SYSTEM_POLICIES:
            known = ", ".join(SYSTEM_POLICIES)
            raise BadSettings(
                f"--system-policy {system_policy!r}: expected {known}{nearest(system_policy, SYSTEM_POLICIES)}"
            )
        self.tokenizer, self.system_policy, self.stop_ids = tokenizer, system_policy, tokenizer.eog_ids
        own = tokenizer.vocabulary.chat_template if source is None else None
        self._path = tokenizer.vocabulary.path if own is not None else None
        self.source = own if own is not None else _find_source(source or _choose_built_in(architecture, tokenizer))
        self._accepted: dict[tuple[str, ...], bool] = {}
        self._template = self._compile()

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt as text. `variables` reach the template (tools, enable_thinking, ...).

        Raises BadSettings for messages that are malformed or that the template refuses; where the model's own
        template fails, BadFile.
        """
        from gemmafile.text.bounds import share_time

        with share_time():
            return self._run(self._template, self._chat(messages, add_generation_prompt, variables))

    def encode(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Token ids of the prompt, BOS where the model wants it. Text of messages never becomes a control token.

        Raises as `render`.
        """
        from gemmafile.text.bounds import share_time

        with share_time():
            pieces = self._find_pieces(self._chat(messages, add_generation_prompt, variables))
        ids: list[int] = []
        for piece in pieces:
            ids += [piece] if isinstance(piece, int) else self.tokenizer.encode(piece, add_special=False)
        bos_id = self.tokenizer.bos_id
        if self.tokenizer.add_bos and bos_id is not None and ids[:1] != [bos_id]:
            return [bos_id, *ids]
        if not ids:
            raise self._failure("it writes nothing for these messages", 0)
        return ids

    # --- rendering ---------------------------------------------------------------------------------------------

    def _chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, variables: _Chat) -> _Chat:
        """All that the template is given, but for the names of tokens."""
        arranged = arrange_messages(read_messages(messages), self._accepts, self.system_policy)
        return {**variables, "messages": arranged, "add_generation_prompt": add_generation_prompt}

    def _run(self, template: Template, chat: _Chat, write_control: Callable[[str], str] = str) -> str:
        """`write_control` spells the tokens that a template takes from variables, such as `bos_token`."""
        from gemmafile.text.sandbox import TemplateFailure, render

        tokens = {"bos": self.tokenizer.bos_id, "eos": self.tokenizer.eos_id}
        tokens |= {"unk": self.tokenizer.unk_id, "pad": self.tokenizer.pad_id}
        spelled = {name: "" if i is None else write_control(self.tokenizer.token_text(i)) for name, i in tokens.items()}
        given: dict[str, Any] = {f"{name}_token": text for name, text in spelled.items()}
        given |= {"tools": None, "documents": None, **chat}
        given["system_turns"] = self.system_policy == "system-turn"
        given["free_turns"] = self.system_policy in ("user-turn", "system-turn")
        try:
            return render(template, given, sum(map(len, _texts_in(chat))))
        except TemplateFailure as error:
            what = _ANY_MARK.sub(lambda mark: self.tokenizer.token_text(int(mark[1])) if mark[1] else "", error.what)
            if error.is_refusal:
                raise BadSettings(f"{self._name}{_at_line(error.line)}: {what}") from None
            raise self._failure(what, error.line) from None

    def _failure(self, what: str, line: int) -> GemmafileError:
        """The template is wrong: the file's fault, or the caller's."""
        if self._path is None:
            return BadSettings(f"the chat template{_at_line(line)}: {what}")
        field = f"tokenizer.chat_template{_at_line(line)}"
        return BadFile(self._path, f"{what}; --chat-template gives another", field=field)

    def _accepts(self, roles: tuple[str, ...]) -> bool:
        """Does the template take messages in these roles, and write all their texts? ("calling": a tool call)"""
        if roles not in self._accepted:
            messages = [_make_probe(role, f"probe{i}") for i, role in enumerate(roles)]
            expected = ".*".join(message["content"] for message in messages if message["content"])
            try:
                text = self._run(self._template, {"messages": messages, "add_generation_prompt": False})
            except GemmafileError:
                text = ""
            self._accepted[roles] = re.search(expected, text, re.DOTALL) is not None
        return self._accepted[roles]

    @cached_property
    def takes_tools(self) -> bool:
        """Does the template tell the model of the `tools` it is given?"""
        name = "probe_of_tools"
        function = {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}
        chat = {"messages": [_make_probe("user", "probe0")], "add_generation_prompt": True}
        try:
            text = self._run(self._template, {**chat, "tools": [{"type": "function", "function": function}]})
        except GemmafileError:
            return False
        return name in text

    @property
    def _name(self) -> str:
        return "the chat template" if self._path is None else "the model's chat template"

    def _compile(self, rewrite: Any = None) -> Template:
        from gemmafile.text.sandbox import TemplateFailure, compile_template

        try:
            return _compile_plain(self.source) if rewrite is None else compile_template(self.source, rewrite)
        except TemplateFailure as error:
            if self._path is not None:
                raise self._failure(error.what, error.line) from None
            raise BadSettings(f"--chat-template{_at_line(error.line)}: {error.what}") from None

    # --- what is structure, what is text -------------------------------------------------------------------------

    def _find_pieces(self, chat: _Chat) -> Pieces:
        pieces = self._mark(chat)
        if self._has_unmarked_control(pieces) and self._builds_control(chat):
            return self._find_pieces_by_texts(chat) or pieces
        return pieces

    def _mark(self, chat: _Chat) -> Pieces:
        """The prompt, cut at the control tokens that the template's source spells."""
        marked = self._run(self._marked_template, chat, self._mark_control)
        pieces = _CONTROL_MARK.split(marked)  # text, id, text, id, ..., text
        return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]

    def _has_unmarked_control(self, pieces: Pieces) -> bool:
        return any(self.tokenizer.has_control(piece) for piece in pieces if isinstance(piece, str))

    def _builds_control(self, chat: _Chat) -> bool:
        """Does the template spell control tokens from parts, for a chat like this one with harmless texts?"""
        try:
            return self._has_unmarked_control(self._mark(self._map_texts(chat, lambda text: "probe")))
        except GemmafileError:
            return False

    def _find_pieces_by_texts(self, chat: _Chat) -> Pieces | None:
        """The prompt, cut at the control tokens outside the texts of the chat: these are marked, and the marks must
        come out in pairs, around the text that comes out without them. None where they do not.
        """
        outside, *chunks = self._run(self._template, self._map_texts(chat, _surround_text)).split(_BEGIN)
        plain, pieces = outside, self.tokenizer.split_control(outside)
        for chunk in chunks:
            inside, end, outside = chunk.partition(_END)
            if not end:
                return None
            plain += inside + outside
            pieces += [inside, *self.tokenizer.split_control(outside)]
        return _join_texts(pieces) if plain == self._run(self._template, chat) else None

    def _map_texts(self, value: Any, change: Callable[[str], str], key: object = "") -> Any:
        """The value with all texts in it changed, but for names that templates look at and nothing can be built of."""
        if isinstance(value, str):
            return value if key in ("role", "type") and self._is_harmless_name(value) else change(value)
        if isinstance(value, Mapping):
            changed = {k: self._map_texts(item, change, k) for k, item in value.items()}
            return {k if self._is_harmless_name(k) else change(k): item for k, item in changed.items()}
        return [self._map_texts(item, change) for item in value] if isinstance(value, (list, tuple)) else value

    def _is_harmless_name(self, name: str) -> bool:
        return name.isidentifier() and name not in self._control_names

    @cached_property
    def _control_names(self) -> frozenset[str]:
        """The control tokens without their brackets: end_of_turn, im_start, ..."""
        return frozenset(re.sub(r"^\W+|\W+$", "", text) for text in self.tokenizer.control_texts())

    @cached_property
    def _marked_template(self) -> Template:
        return self._compile(self._mark_control)

    def _mark_control(self, text: str) -> str:
        """The text with each control token in it replaced by its mark."""
        pieces = self.tokenizer.split_control(text)
        return "".join(piece if isinstance(piece, str) else f"\ue000{_NONCE}:{piece}\ue001" for piece in pieces)


@lru_cache(maxsize=16)
def _compile_plain(source: str) -> Template:
    from gemmafile.text.sandbox import compile_template

    return compile_template(source)


def _find_source(name_or_source: str) -> str:
    if name_or_source in BUILT_IN:
        return files("gemmafile.text").joinpath("templates", f"{name_or_source}.jinja").read_text(encoding="utf-8")
    if "{{" in name_or_source or "{%" in name_or_source:
        return name_or_source
    near = nearest(name_or_source, BUILT_IN)
    raise BadSettings(
        f"--chat-template {name_or_source[:80]!r} is neither a built-in template{near} nor Jinja; "
        f"built in: {', '.join(BUILT_IN)}"
    )


def _choose_built_in(architecture: str, tokenizer: Tokenizer) -> str:
    """For a model without a template: by its architecture, else by the turn markers of its vocabulary."""
    markers = {"<start_of_turn>": "gemma", "<|start_header_id|>": "llama3", "<|im_start|>": "chatml"}
    if architecture.startswith("gemma"):
        return "gemma"
    return next((name for marker, name in markers.items() if tokenizer.find_token(marker) is not None), "chatml")


def _join_texts(pieces: Pieces) -> Pieces:
    """The pieces with neighbouring texts made one."""
    joined: Pieces = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, str) and isinstance(last, str):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    return joined


def _surround_text(text: str) -> str:
    """Marks inside the white space at the ends, so that a template may trim the text."""
    core = text.strip()
    return text.replace(core, f"{_BEGIN}{core}{_END}", 1) if core else text


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts_in([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)


def _make_probe(role: str, content: str) -> Message:
    if role == "calling":
        call = {"id": "probe0000", "type": "function", "function": {"name": "probe", "arguments": {}}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    extra = {"name": "probe", "tool_call_id": "probe0000"} if role == "tool" else {}
    return {"role": role, "content": content, **extra}


def _at_line(line: int) -> str:
    return f", line {line}" if line else ""
