"""The prompt of a chat as token ids: by the model's own template, or by a model card's two templates.

A card's templates ("Prompt template" and "Chat history template") know `{{prompt}}` the system prompt, `{{history}}`
all turns, `{{name}}` and `{{message}}` of a turn, `{{char}}` and `{{user}}` the names of the two. Here they are filled
in once: what a template writes may be a control token, what people and the model write is only text. `literal` renders
as the page did that the templates were made for (text/card_template.py), where a message can write anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal

from gemmafile.errors import BadSettings, GemmafileError
from gemmafile.text.card_template import render_card_template
from gemmafile.text.chat import ChatTemplate
from gemmafile.text.tokenizer import Tokenizer

Mode = Literal["model", "template", "literal"]
MODES: Final = ("model", "template", "literal")

OLD_USER, OLD_BOT = "User", "Llama"
"""Names that the old page puts in where nobody gave others."""

_FIELD: Final = re.compile(r"\{\{[ \t]*([^{}\n]*?)[ \t]*\}\}")
_LOOKS_LIKE_CONTROL: Final = re.compile(r"<\|[\w./-]{1,40}\|>|</?[a-z]{1,12}(?:_[a-z]+){1,4}>|</?s>|<(?:bos|eos|pad)>")
_KNOWN: Final = frozenset({"prompt", "history", "message", "name", "char", "user"})


@dataclass(frozen=True)
class CardTemplates:
    """Both templates, and the names of the two who talk; an empty name is the mode's default."""

    prompt: str
    history: str
    user: str = ""
    bot: str = ""


@dataclass
class Prompt:
    """Token ids, the texts that end an answer beside the model's own tokens, and what is odd about this prompt."""

    token_ids: list[int]
    stop: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedFormat:
    """What the model's own template looks like.

    user, bot        the names it gives to the two ("user", "model")
    opening, middle, closing   around a turn: opening, name, middle, text, closing; "" where it has no such shape
    has_bos          it writes BOS in front itself
    """

    user: str
    bot: str
    opening: str = ""
    middle: str = ""
    closing: str = ""
    has_bos: bool = False


def build_prompt(
    chat: ChatTemplate, mode: str, messages: Sequence[Mapping[str, Any]], templates: CardTemplates | None = None
) -> Prompt:
    """The prompt for the next answer.

    `messages`  role ("system" first if at all, "user", "assistant") and content
    Raises BadSettings for an unknown mode, malformed messages, templates that expand without end.
    """
    if mode not in MODES:
        raise BadSettings(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    if mode == "model":
        return Prompt(chat.encode(messages))
    if templates is None:
        raise BadSettings("this mode needs a prompt template and a history template")
    system, turns = _split_system(messages)
    names = name_pair(chat, mode, templates)
    if mode == "literal":
        parts = [(_render_literally(templates, system, turns, names), True)]
    else:
        parts = fill_in(templates, system, turns, names)
    token_ids = _encode(chat, parts)
    stop = _stop_strings(mode, templates, names)
    return Prompt(token_ids, stop, _find_oddities(chat, mode, messages, templates, names, parts, token_ids))


def name_pair(chat: ChatTemplate, mode: str, templates: CardTemplates) -> tuple[str, str]:
    """Names of user and bot: as given, else the ones that the model knows, or of the old page if `literal`."""
    trained = find_trained_format(chat)
    default = (OLD_USER, OLD_BOT) if mode == "literal" else (trained.user, trained.bot)
    return templates.user or default[0], templates.bot or default[1]


def _split_system(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]]]:
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    for message in messages:
        role, text = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(text, str):
            raise BadSettings("messages: each needs a role (system, user or assistant) and a content that is a string")
        if role == "system":
            system.append(text)
        else:
            turns.append((str(role), text))
    return "\n\n".join(system), turns


def _encode(chat: ChatTemplate, parts: Sequence[tuple[str, bool]]) -> list[int]:
    """Parts are (text, may it hold control tokens). BOS comes in front where the model wants it, and not twice."""
    tokenizer = chat.tokenizer
    token_ids = tokenizer.encode_parts(parts)
    bos_id = tokenizer.bos_id
    if bos_id is not None and (tokenizer.add_bos or find_trained_format(chat).has_bos) and token_ids[:1] != [bos_id]:
        token_ids.insert(0, bos_id)
    if not token_ids:
        raise BadSettings("the prompt template writes nothing: put {{history}} into it")
    return token_ids


# --- filling in ------------------------------------------------------------------------------------------------------


def fill_in(
    templates: CardTemplates, system: str, turns: Sequence[tuple[str, str]], names: tuple[str, str]
) -> list[tuple[str, bool]]:
    """The prompt in parts: (text, True) where a template wrote it, (text, False) where somebody else did."""
    who = {"user": names[0], "char": names[1]}
    history: list[tuple[str, bool]] = []
    for i, (role, text) in enumerate(turns):
        values = {**who, "name": names[0] if role == "user" else names[1], "message": text, "prompt": system}
        history += [("\n", True)] if i else []
        history += _fill(templates.history, {name: [(value, False)] for name, value in values.items()})
    last = turns[-1][1] if turns else ""
    plain = {name: [(value, False)] for name, value in {**who, "prompt": system, "message": last}.items()}
    return _join(_fill(templates.prompt, {**plain, "history": history}))


def _fill(template: str, values: Mapping[str, list[tuple[str, bool]]]) -> list[tuple[str, bool]]:
    """A field nobody knows stays as it is written."""
    parts: list[tuple[str, bool]] = []
    at = 0
    for match in _FIELD.finditer(template):
        if match[1] in values:
            parts.append((template[at : match.start()], True))
            parts += values[match[1]]
            at = match.end()
    return [*parts, (template[at:], True)]


def _join(parts: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Without empty parts, neighbours of one kind as one."""
    joined: list[tuple[str, bool]] = []
    for text, trusted in parts:
        if joined and joined[-1][1] == trusted:
            joined[-1] = (joined[-1][0] + text, trusted)
        elif text:
            joined.append((text, trusted))
    return joined


def _render_literally(
    templates: CardTemplates, system: str, turns: Sequence[tuple[str, str]], names: tuple[str, str]
) -> str:
    transcript = [["{{user}}" if role == "user" else "{{char}}", text] for role, text in turns]
    session = {"prompt": system, "user": names[0], "char": names[1], "transcript": transcript}
    return render_card_template(templates.prompt, templates.history, session)


def _stop_strings(mode: str, templates: CardTemplates, names: tuple[str, str]) -> list[str]:
    """The old page's; else a turn's `name:`, where the history is written that way."""
    if mode == "literal":
        return ["</s>", f"{names[1]}:", f"{names[0]}:"]
    return [f"\n{name}:" for name in dict.fromkeys(names)] if re.search(r"\}\}\s*:", templates.history) else []


# --- what the model was trained on -----------------------------------------------------------------------------------

_PROBES: Final = ("qZ1x", "aZ2x", "qZ3x")


@lru_cache(maxsize=4)
def find_trained_format(chat: ChatTemplate) -> TrainedFormat:
    """From how the template renders three known messages."""
    roles = ("user", "assistant", "user")
    try:
        text = chat.render([{"role": r, "content": c} for r, c in zip(roles, _PROBES, strict=True)])
    except GemmafileError:
        return TrainedFormat("user", "assistant")
    bos_id = chat.tokenizer.bos_id
    bos = None if bos_id is None else chat.tokenizer.token_text(bos_id)
    has_bos = bos is not None and text.startswith(bos)
    places = [text.find(probe) for probe in _PROBES]
    if min(places) < 0:
        return TrainedFormat("user", "assistant", has_bos=has_bos)
    to_bot = text[places[0] + len(_PROBES[0]) : places[1]]
    to_user = text[places[1] + len(_PROBES[1]) : places[2]]
    n_head = _n_common(to_bot, to_user)
    n_end = _n_common(to_bot[n_head:][::-1], to_user[n_head:][::-1])
    head, middle = to_bot[:n_head], to_bot[len(to_bot) - n_end :]
    bot, user = to_bot[n_head : len(to_bot) - n_end], to_user[n_head : len(to_user) - n_end]
    closing, newline, opening = head.rpartition("\n")
    if not (newline and bot.isidentifier() and user.isidentifier()):
        names = [name if name.isidentifier() else other for name, other in ((user, "user"), (bot, "assistant"))]
        return TrainedFormat(names[0], names[1], has_bos=has_bos)
    if bos is not None and opening.startswith(bos):  # ChatML: BOS is what opens a turn
        has_bos = False
    return TrainedFormat(user, bot, opening, middle, closing, has_bos)


def _n_common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def derive_templates(chat: ChatTemplate) -> CardTemplates | None:
    """The model's own format in the words of a card, for a file without a card; None where they cannot say it."""
    trained = find_trained_format(chat)
    if not trained.opening:
        return None
    history = f"{trained.opening}{{{{name}}}}{trained.middle}{{{{message}}}}{trained.closing}"
    prompt = f"{{{{history}}}}\n{trained.opening}{{{{char}}}}{trained.middle}"
    system = f"{trained.opening}system{trained.middle}{{{{prompt}}}}{trained.closing}\n{prompt}"
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    messages.append({"role": "user", "content": "d"})
    for text, first in ((system, [{"role": "system", "content": "e"}]), (prompt, [])):
        templates = CardTemplates(text, history)
        asked = [*first, *messages]
        try:
            if build_prompt(chat, "template", asked, templates).token_ids == chat.encode(asked):
                return templates
        except GemmafileError:
            continue
    return None


# --- warnings --------------------------------------------------------------------------------------------------------


def _find_oddities(
    chat: ChatTemplate,
    mode: str,
    messages: Sequence[Mapping[str, Any]],
    templates: CardTemplates,
    names: tuple[str, str],
    parts: Sequence[tuple[str, bool]],
    token_ids: list[int],
) -> list[str]:
    """Where this prompt is not what the model was trained on, in words; none where it is, token for token."""
    tokenizer = chat.tokenizer
    found: list[str] = []
    written = templates.prompt + templates.history
    unknown = sorted({m[1] for m in _FIELD.finditer(written)} - _KNOWN)
    if unknown:
        found.append("Unknown fields: " + ", ".join(f"{{{{{name}}}}}" for name in unknown[:5]) + ".")
    if "{{history}}" not in templates.prompt.replace(" ", ""):
        found.append("The prompt template has no {{history}}: the model will not see the conversation.")
    if mode == "literal" and _has_injection(tokenizer, messages):
        found.append("A message spells control tokens, and in literal mode they count.")
    try:
        if chat.encode(messages) == token_ids:
            return found
    except GemmafileError:
        pass
    foreign = [t for t in dict.fromkeys(_LOOKS_LIKE_CONTROL.findall(written)) if tokenizer.find_token(t) is None]
    if foreign:
        found.append(f"Not control tokens of this model, so they are sent as text: {' '.join(foreign[:6])}.")
    system = any(m.get("role") == "system" and m.get("content") for m in messages)
    if system and "{{prompt}}" not in templates.prompt.replace(" ", ""):
        found.append("The template has no {{prompt}}: the system prompt is not sent.")
    found += _find_role_oddities(chat, parts)
    if not found or found == [w for w in found if w.startswith("Unknown")]:
        found.append(_first_difference(chat, messages, token_ids))
    return found


def _has_injection(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(tokenizer.has_control(str(message.get("content"))) for message in messages)


def _find_role_oddities(chat: ChatTemplate, parts: Sequence[tuple[str, bool]]) -> list[str]:
    """Turns in names that the model never saw, and an end that is not the one it answers to."""
    trained = find_trained_format(chat)
    if not trained.opening:
        return []
    known = {trained.user, trained.bot} | ({"system"} if _takes_system(chat, trained) else set())
    text = "".join(part for part, _ in parts)
    opened = re.findall(re.escape(trained.opening) + r"([^\n<]{0,40})", text)
    strange = [name for name in dict.fromkeys(name.strip() for name in opened) if name and name not in known]
    found = []
    if strange:
        shown = ", ".join(repr(name) for name in strange[:4])
        expected = " and ".join(sorted(known))
        found.append(f"Turns of {shown}: the model was trained on turns of {expected} only.")
    end = f"{trained.opening}{trained.bot}{trained.middle}"
    if opened and not text.endswith(end):
        tail = text[text.rfind(trained.opening) :][:60]
        found.append(f"The prompt ends in {tail!r}; the model was trained to answer after {end!r}.")
    return found


def _takes_system(chat: ChatTemplate, trained: TrainedFormat) -> bool:
    """Does the model's own template write a turn of `system`?"""
    try:
        text = chat.render([{"role": "system", "content": _PROBES[0]}, {"role": "user", "content": _PROBES[1]}])
    except GemmafileError:
        return False
    return f"{trained.opening}system{trained.middle}{_PROBES[0]}" in text


def _first_difference(chat: ChatTemplate, messages: Sequence[Mapping[str, Any]], token_ids: list[int]) -> str:
    try:
        expected = chat.encode(messages)
    except GemmafileError as error:
        return f"The model's own template refuses this conversation: {error}"
    at = next((i for i, (a, b) in enumerate(zip(token_ids, expected, strict=False)) if a != b), None)
    if at is None:
        at = min(len(token_ids), len(expected))
    decode = chat.tokenizer.decode
    ours, theirs = (decode(ids[at : at + 8], special=True, at_start=False) for ids in (token_ids, expected))
    return f"This leaves the format that the model was trained on: {ours!r} stands where {theirs!r} is expected."
