"""llama.cpp's own API: /health, /completion, /tokenize, /detokenize, /apply-template, /embedding, /props, /slots ...

What a model like this has no use for (infill, rerank, adapters) is refused in its words, with 501.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile import __version__
from gemmafile.engine.jobs import SlotDone
from gemmafile.server.adapters import adapters_in_force, check_adapters
from gemmafile.server.answering import Ask, encode_away
from gemmafile.server.body import Fields, json_object, parse_json, read_body, read_json
from gemmafile.server.client import STILL_S
from gemmafile.server.door import Door
from gemmafile.server.embedding import as_list, embed, normalize
from gemmafile.server.errors import ApiError, bad_request
from gemmafile.server.json_response import Json
from gemmafile.server.metrics import CONTENT_TYPE
from gemmafile.server.native_completion import completion, generation_settings, read_prompts
from gemmafile.server.streaming import until_disconnect

MOST_INPUTS = 2048
_NEW_NAME = re.compile(r"[^\x00-\x1f\x7f/\\:*?\"<>|]+")
"""What a saved slot may be called, as in llama.cpp: a name, not a path."""
MOST_NAME_BYTES = 200
"""Of a saved slot's name: file systems end at 255, and what is being written has more around it."""


def routes(door: Door) -> list[BaseRoute]:
    """All routes; each method below answers one."""
    native = Native(door)
    table: list[tuple[str, Any, list[str]]] = [
        ("/health", native.health, ["GET"]),
        ("/v1/health", native.health, ["GET"]),
        ("/props", native.props, ["GET"]),
        ("/completion", native.completion, ["POST"]),
        ("/completions", native.completion, ["POST"]),
        ("/tokenize", native.tokenize, ["GET", "POST"]),
        ("/detokenize", native.detokenize, ["POST"]),
        ("/apply-template", native.apply_template, ["POST"]),
        ("/embedding", native.embedding, ["POST"]),
        ("/embeddings", native.embedding, ["POST"]),
        ("/slots", native.slots, ["GET"]),
        ("/slots/{slot}", native.change_slot, ["POST"]),
        ("/metrics", native.metrics, ["GET"]),
        ("/lora-adapters", native.adapters, ["GET", "POST"]),
        ("/flagz", native.flagz, ["GET"]),
        ("/slotz", native.slots, ["GET"]),
        *((path, native.not_here, ["POST"]) for path in _NOT_HERE),
    ]
    return [Route(path, answer, methods=methods) for path, answer, methods in table]


_NOT_HERE = {
    "/infill": "this model does not fill in the middle of a text",
    "/rerank": "this model does not rank documents",
    "/reranking": "this model does not rank documents",
    "/v1/rerank": "this model does not rank documents",
    "/v1/reranking": "this model does not rank documents",
}


class Native:
    """The answers."""

    def __init__(self, door: Door):
        self.door = door

    # --- the server --------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """200 when there is an engine; 503 in llama.cpp's words while there is none."""
        client = self.door.client
        client.require_ready()
        if client.silent_s >= STILL_S:
            raise ApiError(503, f"the engine has not moved for {client.silent_s} s", retry_after=5)
        found: dict[str, Any] = {"status": "ok"}
        if {"include_slots", "fail_on_no_slot"} & set(request.query_params):
            slots = await self.door.client.slots()
            busy = sum(bool(slot.get("is_processing")) for slot in slots)
            if len(slots) == busy and "fail_on_no_slot" in request.query_params:
                raise ApiError(503, "no slot available", retry_after=1)
            found |= {"slots_idle": len(slots) - busy, "slots_processing": busy}
            if "include_slots" in request.query_params and self.door.settings.slots:
                found["slots"] = slots
        return Json(found)

    async def props(self, request: Request) -> Response:
        info = self.door.client.require_ready()
        door, tokenizer = self.door, self.door.tokenizer

        def spelled(token_id: int | None) -> str:
            return "" if token_id is None else tokenizer.token_text(token_id)

        return Json({
            "default_generation_settings": {"params": self._default_params(), "n_ctx": info.n_ctx},
            "total_slots": info.n_slots,
            "model_alias": door.model_name,
            "model_path": door.model.path,
            "modalities": {"vision": False, "audio": False},
            "endpoint_slots": door.settings.slots,
            "endpoint_metrics": door.settings.metrics,
            "endpoint_props": False,
            "webui": door.settings.webui,
            "chat_template": door.chat_template.source,
            "chat_template_caps": {"supports_system_role": True, "supports_typed_content": True},
            "bos_token": spelled(tokenizer.bos_id),
            "eos_token": spelled(tokenizer.eos_id),
            "build_info": f"gemmafile {__version__}",
            "is_sleeping": False,
            "system_prompt": door.system or "",
        })  # fmt: skip

    def _default_params(self) -> dict[str, Any]:
        run = self.door.run
        return generation_settings(
            self.door, Ask([], self.door.sampling, max_tokens=run.n_predict, stop=run.reverse_prompts)
        )

    async def metrics(self, request: Request) -> Response:
        if not self.door.settings.metrics:
            raise ApiError(501, "This server does not support metrics endpoint. Start it with `--metrics`")
        client = self.door.client
        text = self.door.metrics.text(client.stats, len(client.jobs), client.n_restarts)
        return Response(text, media_type=CONTENT_TYPE)

    async def flagz(self, request: Request) -> Response:
        sampling = self.door.sampling
        names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
        found = {name: getattr(sampling, name) for name in names}
        return Json({"model": self.door.model_name, "prompt": self.door.system or "", "is_base_model": False, **found})

    async def adapters(self, request: Request) -> Response:
        if request.method == "POST":
            raw = await read_body(request, self.door.limits)
            check_adapters(self.door, parse_json(raw, self.door.limits.depth))
            return Json({"success": True})
        return Json(adapters_in_force(self.door))

    async def not_here(self, request: Request) -> Response:
        raise ApiError(501, _NOT_HERE[request.scope["path"]])

    # --- text and tokens ---------------------------------------------------------------------------------------

    async def completion(self, request: Request) -> Response:
        return await completion(request, self.door)

    async def tokenize(self, request: Request) -> Response:
        """llama.cpp's, and llamafiler's, which says `prompt`: by GET, in a form, or as plain text."""
        fields = Fields(await _read_any(request, self.door))
        is_llamafiler = "content" not in fields and "prompt" in fields
        content = fields.raw("prompt" if is_llamafiler else "content", "")
        add_special = fields.flag("add_special", is_llamafiler)
        parse_special = fields.flag("parse_special", not is_llamafiler)
        ids: list[int] = []
        encode = self.door.tokenizer.encode
        for place, item in enumerate(content if isinstance(content, list) else [content]):
            if isinstance(item, str):
                ask = partial(encode, item, add_special and place == 0, parse_special)
                ids += await encode_away(ask, len(item))
            elif isinstance(item, int) and not isinstance(item, bool) and 0 <= item < self.door.tokenizer.n_tokens:
                ids.append(item)
            else:
                raise fields.wrong("content", "a string, or a list of strings and token ids")
        if not fields.flag("with_pieces"):
            return Json({"tokens": ids})
        return Json({"tokens": [{"id": i, "piece": self._piece(i)} for i in ids]})

    def _piece(self, token_id: int) -> str | list[int]:
        """A token's text, or its bytes where these are no text."""
        raw = self.door.tokenizer.piece_bytes(token_id, True)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return list(raw)

    async def detokenize(self, request: Request) -> Response:
        fields = Fields(await read_json(request, self.door.limits))
        ids = fields.items("tokens")
        n_tokens = self.door.tokenizer.n_tokens
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < n_tokens for i in ids):
            raise bad_request(f"tokens has to be a list of token ids from 0 to {n_tokens - 1}", "tokens")
        return Json({"content": self.door.tokenizer.decode(ids, special=True)})

    async def apply_template(self, request: Request) -> Response:
        """The prompt of a chat as text, as the model's template writes it."""
        fields = Fields(await read_json(request, self.door.limits))
        kwargs = dict(fields.object("chat_template_kwargs") or {})
        for name in ("messages", "add_generation_prompt", "tools"):
            kwargs.pop(name, None)
        if "tools" in fields:
            kwargs["tools"] = fields.items("tools")
        if "messages" not in fields:
            raise bad_request("messages is missing: a list of messages is expected", "messages")
        add = fields.flag("add_generation_prompt", True)
        render = self.door.chat_template.render
        return Json({"prompt": await asyncio.to_thread(render, fields.items("messages"), add, **kwargs)})

    async def embedding(self, request: Request) -> Response:
        fields = Fields(await read_json(request, self.door.limits))
        name = next((name for name in ("content", "input", "prompt") if name in fields), None)
        if name is None:
            raise bad_request("content is missing: a string, token ids, or a list of them is expected", "content")
        prompts = await read_prompts(fields.raw(name), self.door, MOST_INPUTS)
        kind = fields.whole("embd_normalize", self.door.settings.embd_normalize, -1, 1000)
        vectors = await until_disconnect(request.receive, embed(self.door, prompts))
        return Json([{"index": i, "embedding": [as_list(normalize(v, kind))]} for i, v in enumerate(vectors)])

    # --- slots -------------------------------------------------------------------------------------------------

    async def slots(self, request: Request) -> Response:
        if not self.door.settings.slots:
            raise ApiError(501, "This server does not support slots endpoint. Start it without `--no-slots`")
        slots = await self.door.client.slots()
        if request.query_params.get("fail_on_no_slot") and all(slot.get("is_processing") for slot in slots):
            raise ApiError(503, "no slot available", retry_after=1)
        params = self._default_params()
        n_ctx = self.door.n_context
        return Json([{"n_ctx": n_ctx, "speculative": False, "params": params, **slot} for slot in slots])

    async def change_slot(self, request: Request) -> Response:
        action = request.query_params.get("action", "")
        if action not in ("save", "restore", "erase"):
            raise bad_request("action has to be save, restore or erase", "action")
        text = request.path_params["slot"]
        info = self.door.client.require_ready()
        if re.fullmatch("[0-9]{1,9}", text) is None or int(text) >= info.n_slots:
            raise bad_request(f"there is no slot {text[:20]!r}: they go from 0 to {info.n_slots - 1}", "id_slot")
        filename = None
        if action != "erase":
            if self.door.settings.slot_save_path is None:
                raise ApiError(501, "This server does not support slots action. Start it with `--slot-save-path`")
            filename = Fields(await read_json(request, self.door.limits)).required_text("filename")
            is_long = len(filename.encode()) > MOST_NAME_BYTES
            if is_long or not _NEW_NAME.fullmatch(filename) or filename.strip(". ") != filename:
                raise bad_request("Invalid filename", "filename")
        stream = self.door.client.slot_action(int(text), action, filename)
        try:
            async for event in stream:
                if isinstance(event, SlotDone):
                    return Json(_described(event, filename))
        finally:
            await stream.aclose()
        raise ApiError(500, "the engine did not say what became of the slot")


def _described(done: SlotDone, filename: str | None) -> dict[str, Any]:
    """llama.cpp's words for what was done to a slot."""
    ms = round(done.ms, 3)
    if done.action == "save":
        return {"id_slot": done.slot, "filename": filename, "n_saved": done.n_tokens, "n_written": done.n_bytes,
                "timings": {"save_ms": ms}}  # fmt: skip
    if done.action == "restore":
        return {"id_slot": done.slot, "filename": filename, "n_restored": done.n_tokens, "n_read": done.n_bytes,
                "timings": {"restore_ms": ms}}  # fmt: skip
    return {"id_slot": done.slot, "n_erased": done.n_tokens}


async def _read_any(request: Request, door: Door) -> dict[str, Any]:
    """Fields of a request however it brings them: in its address, a form, plain text (`prompt`), or JSON."""
    flags = {"true": True, "1": True, "false": False, "0": False}

    def typed(pairs: list[tuple[str, str]]) -> dict[str, Any]:
        return {k: flags.get(v, v) if k not in ("prompt", "content") else v for k, v in pairs}

    if request.method == "GET":
        return typed(list(request.query_params.items()))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("text/plain", "application/x-www-form-urlencoded"):
        return await read_json(request, door.limits)
    raw = await read_body(request, door.limits)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8 at byte {error.start}") from None
    if kind == "text/plain":
        return {"prompt": text}
    if text.lstrip().startswith("{"):  # curl -d calls everything a form
        return json_object(raw, door.limits)
    try:
        return typed(parse_qsl(text, keep_blank_values=True, max_num_fields=100))
    except ValueError as error:
        raise bad_request(f"the form cannot be read: {error}") from None
