"""What tells of the server: /props, /slots and their files, /metrics, the log; a folder of pages of one's own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, ServeSettings
from tests.server.running import Running, running
from tests.server.test_native import completion


@pytest.fixture(scope="module")
def own(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With everything on that is off by default."""
    folder = tmp_path_factory.mktemp("slots")
    settings = ServeSettings(metrics=True, slot_save_path=str(folder), parallel=2, alias="tiny")
    run = RunSettings(n_predict=4, reverse_prompts=["never said"], system_prompt="Be brief.")
    with running(small_path, settings, run=run, sampling=SamplingSettings(temperature=0.0, top_k=7)) as server:
        yield server


def test_props_tell_what_requests_start_from(own: Running) -> None:
    found = own.get("/props").json
    assert (found["total_slots"], found["model_alias"]) == (2, "tiny")
    params = found["default_generation_settings"]["params"]
    assert (params["top_k"], params["n_predict"], params["stop"]) == (7, 4, ["never said"])
    assert found["default_generation_settings"]["n_ctx"] == 512
    assert "{%" in found["chat_template"]
    assert own.post("/completion", {"prompt": "x", "ignore_eos": True}).json["tokens_predicted"] == 4
    assert own.post("/props", {}).status == 405


def test_slots(own: Running) -> None:
    slots = own.get("/slots").json
    assert [slot["id"] for slot in slots] == [0, 1]
    assert not any(slot["is_processing"] for slot in slots)
    assert own.get("/health?include_slots=1").json["slots_idle"] == 2


def test_a_slot_outlives_what_is_in_the_cache(own: Running) -> None:
    ids = [(11 * i) % 200 + 100 for i in range(300)]
    body = {"prompt": ids, "n_predict": 4, "temperature": 0, "ignore_eos": True, "id_slot": 1}
    text = own.post("/completion", body).json["content"]
    saved = own.post("/slots/1?action=save", {"filename": "a.slot"}).json
    assert (saved["id_slot"], saved["filename"]) == (1, "a.slot")
    assert saved["n_saved"] >= 256
    assert saved["n_written"] > 0
    erased = own.post("/slots/1?action=erase", {}).json
    assert (erased["id_slot"], erased["n_erased"] >= 256) == (1, True)
    assert own.post("/completion", {**body, "prompt": ids[:290]}).json["timings"]["cache_n"] == 0
    own.post("/slots/1?action=erase", {})
    restored = own.post("/slots/1?action=restore", {"filename": "a.slot"}).json
    assert restored["n_restored"] == saved["n_saved"]
    again = own.post("/completion", body).json
    assert again["timings"]["cache_n"] >= 256
    assert again["content"] == text
    assert own.post("/slots/1?action=restore", {"filename": "none.slot"}).status == 400
    own.post("/slots/0?action=erase", {})
    assert own.post("/slots/0?action=save", {"filename": "b.slot"}).status == 400


def test_prompts_outlive_the_server(small_path: Path, tmp_path: Path) -> None:
    body = {"prompt": [(13 * i) % 200 + 100 for i in range(1000)], "n_predict": 3, "temperature": 0}
    context = ContextSettings(backend="reference", context=2048)
    settings = ServeSettings(cache_disk=str(tmp_path / "kept"))
    with running(small_path, settings, context) as server:
        text = server.post("/completion", body).json["content"]
        end_s = time.monotonic() + 30
        while not list((tmp_path / "kept").glob("*")) and time.monotonic() < end_s:
            time.sleep(0.05)
        time.sleep(0.5)
    with running(small_path, settings, context) as server:
        found = server.post("/completion", body).json
        assert found["timings"]["cache_n"] >= 512
        assert found["content"] == text


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "..", "x\x00", "a\\b", "con:", " x", "x" * 300, "ä" * 101, None, 5]
)
def test_names_that_would_leave_the_folder(own: Running, name: Any) -> None:
    assert own.post("/slots/0?action=save", {"filename": name}).status == 400


def test_metrics(own: Running) -> None:
    before = _metrics(own)
    found = own.post("/completion", {"prompt": "the man", "n_predict": 3, "ignore_eos": True}).json
    after = _metrics(own)
    assert after["llamacpp:tokens_predicted_total"] - before["llamacpp:tokens_predicted_total"] == 3
    n_read = after["llamacpp:prompt_tokens_total"] - before["llamacpp:prompt_tokens_total"]
    assert n_read == found["timings"]["prompt_n"]
    assert after['gemmafile:responses_total{route="/completion",status="200"}'] >= 1
    assert after["gemmafile:first_token_seconds_count"] >= 1
    end_s = time.monotonic() + 10
    while (settled := _metrics(own))["llamacpp:requests_processing"] or not settled["llamacpp:n_decode_total"]:
        assert time.monotonic() < end_s  # the engine tells it when it has nothing else to do
    assert 0 <= after["llamacpp:kv_cache_usage_ratio"] <= 1
    assert 1 <= settled["llamacpp:n_busy_slots_per_decode"] <= 2


def _metrics(server: Running) -> dict[str, float]:
    found = server.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in found.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_the_log_says_nothing_of_what_was_said(small_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(small_path, ServeSettings(log_requests="json")) as server:
        capfd.readouterr()
        completion(server, prompt="secret words", n_predict=3)
        (line,) = [text for text in _settle(capfd).splitlines() if "/completion" in text]
    found = json.loads(line)
    assert (found["path"], found["status"], found["tokens"], found["ends"]) == ("/completion", 200, 3, ["limit"])
    assert found["first_ms"] <= found["ms"]
    assert "secret" not in line


def test_the_log_says_all_of_it_where_asked(small_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(small_path, ServeSettings(log_requests="line", log_text=True)) as server:
        capfd.readouterr()
        text = completion(server, prompt="secret words")["content"]
        (line,) = [text for text in _settle(capfd).splitlines() if "/completion" in text]
    assert "secret words" in line
    assert "path=/completion status=200" in line
    assert json.dumps(text, ensure_ascii=False)[1:-1].strip()[:4] in line.replace('\\"', '"').replace("\\\\", "\\")


def _settle(capfd: pytest.CaptureFixture[str]) -> str:
    """stderr, once the line that follows a response is there."""
    text = ""
    end_s = time.monotonic() + 10
    while "/completion" not in text and time.monotonic() < end_s:
        time.sleep(0.02)
        text += capfd.readouterr().err
    return text


def test_files_of_a_folder(small_path: Path, tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public/index.html").write_text("<p>mine")
    (tmp_path / "secret").write_text("no")
    (tmp_path / "public/link").symlink_to(tmp_path / "secret")
    with running(small_path, ServeSettings(path=str(tmp_path / "public"))) as server:
        assert server.get("/").body == b"<p>mine"
        assert server.get("/health").status == 200
        for path in ("/../secret", "/%2e%2e/secret", "/link", "/nothing"):
            assert server.get(path).status == 404


def test_a_form_that_is_asked_for_overrules_the_servers_grammar(small_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40}
    with running(small_path, sampling=SamplingSettings(temperature=0.0, grammar='root ::= "yes"')) as server:
        assert server.post("/v1/chat/completions", chat).json["choices"][0]["message"]["content"] == "yes"
        for path, asked in (
            ("/v1/chat/completions", chat), ("/v1/completions", {"prompt": "a", "max_tokens": 40}),
            ("/completion", {"prompt": "a", "n_predict": 40}),
        ):  # fmt: skip
            found = server.post(path, {**asked, "response_format": form}).json
            choice = found["choices"][0] if "choices" in found else {"text": found["content"]}
            assert json.loads(choice.get("text") or choice["message"]["content"])["n"] in (1, 2), path
            both = {**asked, "response_format": form, "grammar": 'root ::= "no"'}
            assert server.post(path, both).status == 400, path
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        found = server.post("/v1/chat/completions", {**chat, "tools": [tool], "tool_choice": "required"}).json
        assert found["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
