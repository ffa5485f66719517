"""The chat page and what it asks for, as OpenAPI describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmafile.server.openapi_shapes import (
    ANY_OBJECT,
    COUNT,
    FLAG,
    STRING,
    Schema,
    array,
    either,
    fields,
    in_path,
    maybe,
    named,
    operation,
    query,
    result,
    words,
)

if TYPE_CHECKING:
    from gemmafile.settings import ServeSettings


def paths(settings: ServeSettings) -> dict[str, Any]:
    """Nothing where the server has no page."""
    if not settings.webui or settings.path is not None:
        return {}

    def native(summary: str, answer: Schema | None, body: Schema | None = None, **more: Any) -> Schema:
        return operation(summary, "page", answer, body, **more)

    templates = {"prompt_template": STRING, "history_template": STRING, "user": STRING, "bot": STRING}
    prompt = fields(
        {
            "messages": array(named("Message"), minItems=1),
            "mode": words("model", "template", "literal"),
            "pieces": FLAG,
            **templates,
        },
        "messages",
    )
    built = result(
        {"tokens": array(COUNT), "stop": array(STRING), "warnings": array(STRING), "pieces": array(array({}))},
        optional="pieces",
    )
    texts = fields({"text": STRING, "texts": either(STRING, array(STRING, maxItems=400))})
    rendered = either(result({"html": array(STRING)}), result({"done": {}, "used": COUNT, "open": {}}))
    files = native("The text of a file", ANY_OBJECT, parameters=[query("name", STRING)])
    files["requestBody"] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    chat = {"message": STRING, "system": STRING, "user": maybe(STRING), "assistant": maybe(STRING)}
    plain = native("The next turn of a chat without JavaScript", None, media="text/html")
    for answer in plain["responses"].values():
        answer["content"] = {"text/html": {"schema": STRING}, "application/json": {"schema": named("Error")}}
    form = {"application/x-www-form-urlencoded": {"schema": {"type": "object", "properties": chat}}}
    return {
        "/": {"get": native("The chat page", None, media="text/html")},
        "/assets/{name}": {
            "get": native("A part of the page", None, media="*/*", parameters=[in_path("name", STRING)])
        },
        "/page/state": {"get": native("Is the engine there", ANY_OBJECT)},
        "/page/info": {"get": native("The model, for the page", ANY_OBJECT)},
        "/page/card": {"get": native("The model's card, licence and limits", ANY_OBJECT)},
        "/page/prompt": {"post": native("Token ids of a chat, by templates of the card's kind", built, prompt)},
        "/render": {"post": native("Markdown, code and formulas as HTML", rendered, texts)},
        "/files": {"post": files},
        "/plain": {
            "get": native("A chat without JavaScript", None, media="text/html"),
            "post": {**plain, "requestBody": {"content": form}},
        },
    }
