"""The page over HTTP: its files, and what it asks of the server beside the APIs.

GET  /  /assets/NAME      the page
GET  /page/state          is the engine there? (200 always: a browser tells its console of every 503 of /health)
GET  /page/info           model, settings and their defaults, templates (model_info.py)
GET  /page/card           card, limits, licence and notice, rendered
POST /page/prompt         a conversation to token ids (prompts.py)
POST /render              Markdown to HTML (render.py, in a process of its own)
POST /files               a dropped file to text (documents.py, the same)
GET, POST /plain          the page without JavaScript (plain.py)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.errors import GemmafileError
from gemmafile.server.body import Fields, read_body, read_json
from gemmafile.server.door import Door
from gemmafile.server.errors import ApiError, bad_request
from gemmafile.server.json_response import Json
from gemmafile.web import documents, render
from gemmafile.web.assets import POLICY, asset_names, find_asset
from gemmafile.web.model_info import Papers, describe, describe_papers, read_papers
from gemmafile.web.plain import plain_routes
from gemmafile.web.prompts import CardTemplates, build_prompt
from gemmafile.web.worker import Worker

RENDER_SECONDS, EXTRACT_SECONDS = 4.0, 60.0
"""After which the process is ended; the renderer gives up by itself long before."""
MAX_TEXTS = 400

PAGE_HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin", "Cache-Control": "no-cache"}
"""`same-origin`: under no-referrer a browser hides the origin of a form, which then looks like one from elsewhere."""


def routes(door: Door) -> list[BaseRoute]:
    """All of the page; nothing where the server was started without it."""
    if not door.settings.webui or door.settings.path is not None:
        return []
    page = Page(door)
    return [
        Route("/", page.index),
        Route("/assets/{name}", page.asset),
        Route("/page/state", page.state),
        Route("/page/info", page.info),
        Route("/page/card", page.card),
        Route("/page/prompt", page.prompt, methods=["POST"]),
        Route("/render", page.render, methods=["POST"]),
        Route("/files", page.files, methods=["POST"]),
        *plain_routes(door, page.work, PAGE_HEADERS),
    ]


class Page:
    """What the routes share: the two child processes, which start when they are first needed, and the papers."""

    def __init__(self, door: Door):
        self.door = door
        self.renderer, self.reader = Worker(), Worker()
        door.closers += [self.renderer.close, self.reader.close]
        self._papers: Papers | None = None
        self._warming: asyncio.Task[None] | None = None

    async def index(self, request: Request) -> Response:
        return _send_asset(request, "index.html")

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        return _send_asset(request, name if name in asset_names() else "")

    async def state(self, request: Request) -> Response:
        client = self.door.client
        found = {"state": client.state, "progress": client.progress, "restarts": client.n_restarts}
        return Json({**found, "line": client.line if client.state == "loading" else ""})

    async def papers(self) -> Papers:
        if self._papers is None:
            self._papers = await asyncio.to_thread(read_papers, self.door.model.path)
        return self._papers

    async def info(self, request: Request) -> Response:
        """The renderer is started beside it: the first words of an answer need not wait for it."""
        if self._warming is None:
            self._warming = asyncio.create_task(self._warm())
        papers = await self.papers()
        return Json(await asyncio.to_thread(describe, self.door, papers))

    async def _warm(self) -> None:
        with contextlib.suppress(GemmafileError):
            await self.work("render", texts=[""])

    async def work(self, function: str, **arguments: Any) -> Any:
        """What the process that renders makes of it. Raises BadSettings, WorkerBusy."""
        seconds = RENDER_SECONDS + render.MAX_SECONDS * len(arguments.get("texts", ()))
        return await self.renderer.call(function, seconds, **arguments)

    async def card(self, request: Request) -> Response:
        texts = describe_papers(self.door, await self.papers())
        shown = await self.work("render", texts=[texts["card"], texts["limits"]])
        return Json({**texts, "card": shown[0], "limits": shown[1]})

    async def prompt(self, request: Request) -> Response:
        fields = Fields(await read_json(request, self.door.limits))
        templates = CardTemplates(
            fields.text("prompt_template") or "",
            fields.text("history_template") or "",
            fields.text("user") or "",
            fields.text("bot") or "",
        )
        messages = fields.items("messages")
        if not all(isinstance(message, dict) for message in messages):
            raise bad_request("messages has to be a list of objects", "messages")
        mode = fields.text("mode") or "model"
        built = await asyncio.to_thread(build_prompt, self.door.chat_template, mode, messages, templates)
        reply: dict[str, Any] = {"tokens": built.token_ids, "stop": built.stop, "warnings": built.warnings}
        if fields.flag("pieces"):
            reply["pieces"] = self._pieces(built.token_ids)
        return Json(reply)

    def _pieces(self, token_ids: list[int]) -> list[tuple[str, bool]]:
        """(text, is it a control token) of each token, as the exact prompt is shown."""
        tokenizer = self.door.tokenizer
        decoder = tokenizer.stream(special=True, at_start=False)
        return [(decoder.push(i), tokenizer.is_control(i)) for i in token_ids]

    async def render(self, request: Request) -> Response:
        """{"text"} of an answer that goes on -> {"done", "used", "open"}; {"texts"} -> {"html": [...]}"""
        fields = Fields(await read_json(request, self.door.limits))
        if "texts" in fields:
            texts = fields.texts("texts", MAX_TEXTS)
            if sum(map(len, texts)) > 4 * render.MAX_CHARS:
                raise ApiError(413, f"at most {4 * render.MAX_CHARS} characters at a time")
            return Json({"html": await self.work("render", texts=texts)})
        text = fields.text("text") or ""
        if len(text) > 2 * render.MAX_CHARS:
            raise ApiError(413, f"at most {2 * render.MAX_CHARS} characters at a time")
        done, used, rest = await self.work("render_open", text=text)
        return Json({"done": done, "used": used, "open": rest})

    async def files(self, request: Request) -> Response:
        """The file is the body; `?name=` or the header X-File-Name says what it is called."""
        limits = self.door.limits
        raw = await read_body(request, replace(limits, max_bytes=documents.MAX_BYTES))
        name = (request.query_params.get("name") or unquote(request.headers.get("x-file-name", "")) or "file")[:200]
        data = await asyncio.to_thread(lambda: base64.b64encode(raw).decode())
        found = await self.reader.call("extract", EXTRACT_SECONDS, name=name, data=data)
        text = found["text"]
        tokenizer = self.door.tokenizer
        n_tokens = await asyncio.to_thread(lambda: len(tokenizer.encode(text, add_special=False)))
        return Json({"name": name, **found, "n_tokens": n_tokens})


def _send_asset(request: Request, name: str) -> Response:
    asset = find_asset(name)
    if asset is None:
        raise ApiError(404, f"there is no file {name[:100]!r}")
    headers = {**PAGE_HEADERS, "ETag": asset.etag, "Vary": "Accept-Encoding"}
    if asset.etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.gzipped, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.raw, media_type=asset.media_type, headers=headers)
