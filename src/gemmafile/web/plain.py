"""The chat without JavaScript: a form, for text browsers and whoever turns scripts off.

The conversation travels in hidden fields, so the server keeps nothing. The answer is sent block by block as it is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from gemmafile.errors import GemmafileError
from gemmafile.server.answering import Ask, Finished, TextPiece, answer, chat_prompt
from gemmafile.server.body import read_body
from gemmafile.server.errors import ApiError, as_api_error, bad_request
from gemmafile.server.streaming import EventStream, begin
from gemmafile.web.render import MAX_CHARS

if TYPE_CHECKING:
    from gemmafile.server.answering import Event
    from gemmafile.server.door import Door

Render = Callable[..., Awaitable[Any]]
"""`render(function, **arguments)`: one of worker.py's FUNCTIONS, in the process that renders."""

MAX_TURNS: Final = 400
_ROLES: Final = {"u": "user", "a": "assistant"}
_NAMES: Final = {"user": "You", "assistant": "Answer"}


@dataclass
class Chat:
    """What the form brought. `turns` (role, text), the last of them the new message once it is added."""

    system: str = ""
    message: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)


def plain_routes(door: Door, render: Render, headers: Mapping[str, str]) -> list[BaseRoute]:
    """`headers`  of every response"""

    async def show(request: Request) -> Response:
        return HTMLResponse(_head(door) + _form(Chat(system=door.system or "")) + _END, headers=headers)

    async def send(request: Request) -> Response:
        chat = Chat()
        try:
            chat = read_chat(await read_body(request, door.limits))
            if not chat.message.strip():
                raise bad_request("the message is empty", "message")
            asked = Chat(chat.system, "", [*chat.turns, ("user", chat.message)])
            messages = [{"role": role, "content": text} for role, text in asked.turns]
            if chat.system.strip():
                messages.insert(0, {"role": "system", "content": chat.system})
            token_ids = await chat_prompt(door, messages)
            events = await begin(answer(door, Ask(token_ids, door.sampling, max_tokens=door.run.n_predict)))
        except GemmafileError as error:
            problem = f'<p class="error" role="alert">{escape(str(error))}</p>\n'
            page = _head(door) + await _history(chat, render) + problem + _form(chat) + _END
            status = as_api_error(error).status
            return HTMLResponse(page, status, headers=headers)
        chunks = _answer(door, asked, events, render)
        return EventStream(chunks, "text/html", timeout_s=float(door.settings.timeout), headers=headers)

    return [Route("/plain", show), Route("/plain", send, methods=["POST"])]


def read_chat(raw: bytes) -> Chat:
    """The form's fields. Raises ApiError for a form that is not this page's."""
    try:
        text = raw.decode("ascii")
        fields = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_TURNS + 8)
    except (UnicodeDecodeError, ValueError) as error:
        raise bad_request(f"the form cannot be read: {error}") from None
    chat = Chat()
    for name, value in fields:
        value = value.replace("\r\n", "\n")
        if name == "message":
            chat.message = value
        elif name == "system":
            chat.system = value
        elif name in _ROLES:
            chat.turns.append((_ROLES[name], value))
    return chat


async def _history(chat: Chat, render: Render) -> str:
    """The turns so far: the model's as HTML, the user's as they were typed."""
    shown = [text for role, text in chat.turns if role == "assistant"]
    html = iter(await _render_all(render, shown))
    parts = [
        _turn(role, next(html) if role == "assistant" else f'<p class="typed">{escape(text)}</p>')
        for role, text in chat.turns
    ]
    return "".join(parts)


def _turn(role: str, html: str) -> str:
    return f'<article class="{role} content"><h2>{_NAMES[role]}</h2>\n{html}</article>\n'


async def _render_all(render: Render, texts: list[str]) -> list[str]:
    """HTML of each text; as it stands where there are too many of them, or nobody to render them."""
    if sum(map(len, texts)) < MAX_CHARS:
        with contextlib.suppress(GemmafileError):
            html: list[str] = await render("render", texts=texts)
            return html
    return [f'<div class="plain">{escape(text)}</div>' for text in texts]


async def _answer(
    door: Door, chat: Chat, events: AsyncGenerator[Event, None], render: Render
) -> AsyncGenerator[bytes, None]:
    """The whole page, its last turn as it is made. What is unfinished waits until it is finished."""
    try:
        yield (
            _head(door) + await _history(chat, render) + '<article class="assistant content"><h2>Answer</h2>\n'
        ).encode()
        text, waiting, problem = "", "", ""
        try:
            async for event in events:
                if isinstance(event, TextPiece):
                    text += event.text
                    waiting += event.text
                    if "\n" in event.text and "\n\n" in waiting:  # a block ends with a line, at the earliest
                        html, waiting = await _take_finished(render, waiting)
                        if html:
                            yield html.encode()
                elif isinstance(event, Finished) and event.finish_reason == "length":
                    problem = '<p class="note">The answer was cut at its limit.</p>\n'
        except ApiError as error:
            problem = f'<p class="error" role="alert">{escape(str(error))}</p>\n'
        rest = (await _render_all(render, [waiting]))[0] if waiting.strip() else ""
        next_chat = Chat(chat.system, "", [*chat.turns, ("assistant", text)])
        yield (rest + "</article>\n" + problem + _form(next_chat) + _END).encode()
    finally:
        await events.aclose()


async def _take_finished(render: Render, text: str) -> tuple[str, str]:
    """HTML of the blocks of a text that goes on which are finished, and the text of the others."""
    try:
        done, used, _ = await render("render_open", text=text)
    except GemmafileError:
        return "", text
    return done, text.encode("utf-16-le")[2 * used :].decode("utf-16-le")


def _head(door: Door) -> str:
    name = escape(door.model_name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{name}</title>\n<link rel="icon" href="assets/icon.svg" type="image/svg+xml">\n'
        '<link rel="stylesheet" href="assets/style.css">\n'
        '<link rel="stylesheet" href="assets/content.css"></head>\n'
        f'<body class="plain-page"><main><h1>{name}</h1>\n'
    )


def _form(chat: Chat) -> str:
    letters = {role: letter for letter, role in _ROLES.items()}
    turns = "".join(
        f'<input type="hidden" name="{letters[role]}" value="{escape(text)}">\n'
        for role, text in chat.turns[-MAX_TURNS:]
    )
    system = (
        f'<input type="hidden" name="system" value="{escape(chat.system)}">\n'
        if chat.turns
        else '<p><label for="system">System prompt (may be empty)</label><br>\n'
        f'<textarea id="system" name="system" rows="2" cols="60" dir="auto">\n{escape(chat.system)}</textarea></p>\n'
    )
    again = '<p><a href="plain">New conversation</a> · <a href="./">The page with JavaScript</a></p>\n'
    return (
        f'<form method="post" action="plain" accept-charset="utf-8">\n{turns}{system}'
        '<p><label for="message">Message</label><br>\n'
        f'<textarea id="message" name="message" rows="5" cols="60" dir="auto" required autofocus>\n'
        f"{escape(chat.message)}</textarea></p>\n"
        f'<p><button type="submit">Send</button></p>\n</form>\n{again}'
    )


_END: Final = "</main></body></html>\n"
