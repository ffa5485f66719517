"""The page's routes, over HTTP from a real server."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

from gemmafile.server.answering import Event, TextPiece
from gemmafile.settings import RunSettings, SamplingSettings, ServeSettings
from gemmafile.web.assets import asset_names, find_asset
from gemmafile.web.model_info import describe_sampling, find_chapter
from gemmafile.web.plain import Chat, Render, _answer
from gemmafile.web.worker import FUNCTIONS, WorkerBusy
from tests.server.running import Answer, Running, running
from tests.web.test_documents import make_pdf

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", *[f"/assets/{name}" for name in asset_names()]])
def test_every_file_comes_compressed_and_once(server: Running, path: str) -> None:
    plain = server.get(path)
    packed = server.get(path, headers={"Accept-Encoding": "gzip, br"})
    assert (plain.status, packed.status) == (200, 200)
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    again = server.get(path, headers={"If-None-Match": plain.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert "script-src 'self'" in plain.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/assets/render.py", "/assets/..%2frender.py", "/assets/index.html", "/assets/x.js"])
def test_nothing_else_is_a_file(server: Running, path: str) -> None:
    assert server.get(path).status == 404


def test_the_page_weighs_less_than_100_kb() -> None:
    assets = [find_asset(name) for name in ("index.html", *asset_names())]
    assert sum(len(asset.gzipped) for asset in assets if asset) < 100_000


def test_the_policy_forbids_inline_and_foreign_things(server: Running) -> None:
    answer = server.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    html = answer.body.decode()
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|https?://", html)


def test_files_of_the_page_name_no_other_host() -> None:
    for name in asset_names():
        asset = find_asset(name)
        assert asset is not None
        addresses = set(re.findall(rb"https?://[^\"'\s)]*", asset.raw))
        assert addresses <= {b"http://www.w3.org/2000/svg"}, name


def test_no_page_when_it_is_not_wanted(small_path: object) -> None:
    with running(small_path, ServeSettings(webui=False)) as server:  # type: ignore[arg-type]
        assert server.get("/").status == 404
        assert server.post("/render", {"text": "x"}).status == 404


def test_the_page_below_a_prefix(small_path: object) -> None:
    with running(small_path, ServeSettings(prefix="/chat")) as server:  # type: ignore[arg-type]
        assert server.get("/chat").headers["location"] == "/chat/"
        assert server.get("/chat/").status == server.get("/chat/assets/app.js").status == 200
        assert server.get("/").status == 404


def test_the_state_is_told_without_an_error(small_path: object) -> None:
    with running(small_path, wait=False) as server:  # type: ignore[arg-type]
        assert server.get("/page/state").status == 200
    with running(small_path) as server:  # type: ignore[arg-type]
        assert server.get("/page/state").json["state"] == "ready"


# --- what the page asks ----------------------------------------------------------------------------------------------


def test_info_shows_the_servers_own_defaults(small_path: object) -> None:
    sampling, run = SamplingSettings(temperature=0.25), RunSettings(n_predict=7)
    with running(small_path, sampling=sampling, run=run) as server:  # type: ignore[arg-type]
        info = server.get("/page/info").json
    controls = {one["name"]: one for one in info["sampling"]}
    assert controls["temperature"]["default"] == 0.25
    assert controls["top_k"]["default"] == 40
    assert info["n_predict"] == 7
    assert info["templates"]["source"] == "model"
    assert dict(info["facts"])["Architecture"].startswith("llama")


def test_every_sampling_setting_has_a_control() -> None:
    from dataclasses import fields

    names = {one["name"] for one in describe_sampling(SamplingSettings())}
    elsewhere = {"grammar", "json_schema", "n_probs", "samplers", "logit_bias", "dry_sequence_breakers", "min_keep"}
    assert names == {field.name for field in fields(SamplingSettings)} - elsewhere


def test_render_a_growing_text(server: Running) -> None:
    status, body = server.post("/render", {"text": "# a\n\nb *c*"})
    assert (status, body) == (200, {"done": "", "used": 0, "open": "<h3>a</h3>\n<p>b <em>c</em></p>\n"})
    assert server.post("/render", {"text": "a\n\nb\n"}).json["used"] == 3


def test_render_whole_texts(server: Running) -> None:
    assert server.post("/render", {"texts": ["*a*", "<b>"]}).json == {
        "html": ["<p><em>a</em></p>\n", "<p>&lt;b&gt;</p>\n"]
    }


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": 1}, 400), ({"texts": [1]}, 400), ({"texts": ["x"] * 1000}, 400), ({"text": "x" * 1_000_000}, 413),
        ({"texts": ["x" * 300_000] * 20}, 413), (b"{", 400),
    ],
)  # fmt: skip
def test_bad_texts_are_refused(server: Running, body: object, status: int) -> None:
    assert server.post("/render", body).status == status


def test_a_prompt_is_the_one_that_chats_get(server: Running) -> None:
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    found = server.post("/page/prompt", {"messages": messages, "pieces": True}).json
    assert found["tokens"] == server.door.chat_template.encode(messages)
    assert len(found["pieces"]) == len(found["tokens"])
    assert found["warnings"] == []


@pytest.mark.parametrize(
    "body",
    [{"messages": "x"}, {"messages": ["x"]}, {"mode": "other"}, {"mode": "template", "messages": [{}]}, {"user": 1}],
)
def test_bad_prompts_are_refused(server: Running, body: object) -> None:
    assert server.post("/page/prompt", body).status == 400


def test_files_become_text_with_a_count(server: Running) -> None:
    found = server.request("POST", "/files?name=a%20b.txt", "Grüße".encode()).json
    assert (found["name"], found["text"], found["kind"]) == ("a b.txt", "Grüße", "text")
    assert found["n_tokens"] == len(server.door.tokenizer.encode("Grüße", add_special=False))
    odd = server.request("POST", "/files?name=100%2525%20a%2520b", b"x").json
    assert odd["name"] == "100%25 a%20b"
    pdf = server.request("POST", "/files?name=a.pdf", make_pdf("Hello")).json
    assert (pdf["text"], pdf["pages"]) == ("Hello", 1)


def test_a_file_without_text_is_refused(server: Running) -> None:
    answer = server.request("POST", "/files?name=a.png", b"\x89PNG\r\n\x1a\n")
    assert answer.status == 400
    assert "picture" in answer.json["error"]["message"]


CARD = "---\na: b\n---\n# Model\n\n## Usage and Limitations\n\nmind\n\n### More\n\nthis\n\n## Next\n\nnot this"


def test_the_chapter_on_limits_is_found() -> None:
    assert (
        find_chapter(CARD, "usage and limitations|limits") == "## Usage and Limitations\n\nmind\n\n### More\n\nthis\n"
    )
    assert find_chapter("no headings", "limits") == ""


# --- without JavaScript ----------------------------------------------------------------------------------------------


class Form(HTMLParser):
    """The fields of the first form of a page, as a text browser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[tuple[str, str]] = []
        self.action = self.method = ""
        self.area: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.action, self.method = given["action"], given["method"]
        elif tag == "input":
            self.fields.append((given["name"], given["value"]))
        elif tag == "textarea":
            self.area = given["name"]
            self.fields.append((given["name"], ""))

    def handle_data(self, data: str) -> None:
        if self.area is not None:
            self.fields[-1] = (self.area, data.removeprefix("\n"))

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self.area = None

    def fill(self, **values: str) -> bytes:
        return urlencode(
            [(name, values.get(name, value).replace("\n", "\r\n")) for name, value in self.fields]
        ).encode()


def read_form(answer: Answer) -> Form:
    form = Form()
    form.feed(answer.body.decode())
    return form


def test_a_conversation_by_forms_alone(small_path: object) -> None:
    with running(small_path, run=RunSettings(n_predict=5)) as server:  # type: ignore[arg-type]
        form = read_form(server.get("/plain"))
        assert (form.action, form.method) == ("plain", "post")
        first = server.request("POST", "/plain", form.fill(message='Hi\n<b>"&', system="Be kind"), headers=FORM)
        assert first.status == 200
        assert "<b>" not in first.body.decode()
        form = read_form(first)
        assert dict(form.fields)["u"] == 'Hi\n<b>"&'
        assert dict(form.fields)["system"] == "Be kind"
        second = read_form(server.request("POST", "/plain", form.fill(message="And?"), headers=FORM))
        assert [name for name, _ in second.fields] == ["u", "a", "u", "a", "system", "message"]


def plain_answer(text: str, render: Render) -> str:
    """The page of a chat by forms whose answer comes letter by letter."""

    async def events() -> AsyncGenerator[Event, None]:
        for letter in text:
            yield TextPiece(letter, 5)

    async def collect() -> str:
        door: Any = SimpleNamespace(model_name="m")
        chat = Chat(turns=[("user", "hi"), ("assistant", "*a*")])
        return b"".join([part async for part in _answer(door, chat, events(), render)]).decode()

    with ThreadPoolExecutor(1) as thread:  # Playwright, where its tests ran before, leaves a loop in this one
        return thread.submit(asyncio.run, collect()).result()


def test_a_long_answer_by_forms_is_rendered_elsewhere_and_not_at_every_letter() -> None:
    calls: list[str] = []

    async def render(function: str, **arguments: Any) -> Any:
        calls.append(function)
        return FUNCTIONS[function](**arguments)

    page = plain_answer("- one\n\n- two 🖼\n\n" * 30 + "end\n\n*last* <b>", render)
    assert page.count("<li>") == 60
    assert "<em>last</em> &lt;b&gt;" in page
    assert calls.count("render_open") <= 122  # one a line


def test_an_answer_by_forms_outlives_who_renders_it() -> None:
    async def render(function: str, **arguments: Any) -> Any:
        raise WorkerBusy("too many texts")

    page = plain_answer("one\n\ntwo\n\n<b>three", render)
    assert '<div class="plain">one\n\ntwo\n\n&lt;b&gt;three</div>' in page
    assert dict(read_form(Answer(200, {}, page.encode())).fields)["a"] == "one\n\ntwo\n\n<b>three"


def test_the_page_itself_holds_the_form_for_browsers_without_scripts(server: Running) -> None:
    html = server.get("/").body.decode()
    form = Form()
    form.feed(html[html.index("<noscript>") : html.index("</noscript>")])
    assert (form.action, form.method, [name for name, _ in form.fields]) == ("plain", "post", ["system", "message"])


def test_an_error_keeps_what_was_written(server: Running) -> None:
    sent = urlencode([("u", "one"), ("a", "*two*"), ("system", "s"), ("message", " ")]).encode()
    answer = server.request("POST", "/plain", sent, headers=FORM)
    assert answer.status == 400
    assert "the message is empty" in answer.body.decode()
    assert "<em>two</em>" in answer.body.decode()
    assert dict(read_form(answer).fields)["u"] == "one"


def test_a_form_that_is_none_is_refused(server: Running) -> None:
    for raw in (b"\xff\xfe", b"&".join(b"u=x" for _ in range(5000)), b"message=%ff"):
        assert server.request("POST", "/plain", raw, headers=FORM).status == 400


def test_names_of_models_are_only_text(server: Running) -> None:
    assert "<title>small &amp; &lt;b&gt;</title>" in server.get("/plain").body.decode()
