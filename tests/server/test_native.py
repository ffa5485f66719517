"""llama.cpp's native API, in the manner of its own server tests, on a small random model."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gemmafile.settings import ContextSettings, ServeSettings
from tests.server.running import Running, running

ASK = {"prompt": "the man", "n_predict": 8, "temperature": 0, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "Hi <|im_end|>"}]}


def completion(server: Running, **fields: Any) -> dict[str, Any]:
    found = server.post("/completion", {**ASK, **fields})
    assert found.status == 200, found.body
    answer: dict[str, Any] = found.json
    return answer


# --- completion ------------------------------------------------------------------------------------------------------


def test_the_fields_of_an_answer(server: Running) -> None:
    found = completion(server, return_tokens=True)
    assert len(found["tokens"]) == found["tokens_predicted"] == found["timings"]["predicted_n"] == 8
    assert found["tokens_evaluated"] == found["timings"]["prompt_n"] + found["timings"]["cache_n"]
    assert (found["stop"], found["stop_type"], found["stopping_word"]) == (True, "limit", "")
    assert (found["truncated"], found["index"]) == (False, 0)
    assert found["generation_settings"]["n_predict"] == 8
    assert found["generation_settings"]["temperature"] == 0
    text = server.post("/detokenize", {"tokens": found["tokens"]}).json["content"]
    assert text.strip() == found["content"].strip()


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_both_paths(server: Running, path: str) -> None:
    assert server.post(path, ASK).json["content"] == completion(server)["content"]


def test_the_last_event_of_a_stream_has_everything(server: Running) -> None:
    whole = completion(server)
    events = server.post("/completion", {**ASK, "stream": True}).events
    last = events[-1]
    assert set(whole) - set(last) == set()
    assert last["content"] == ""
    assert [token for event in events for token in event["tokens"]] == completion(server, return_tokens=True)["tokens"]
    assert "timings" not in events[0]
    timed = server.post("/completion", {**ASK, "stream": True, "timings_per_token": True}).events
    assert [event["timings"]["predicted_n"] for event in timed[:-1]] == [*range(1, len(timed))]


def test_a_stream_is_server_sent_events_without_done(server: Running) -> None:
    found = server.post("/completion", {**ASK, "stream": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.headers["cache-control"] == "no-cache"
    assert found.body.endswith(b"\n\n")
    assert b"[DONE]" not in found.body


def test_prompts_of_every_form(server: Running) -> None:
    ids = server.post("/tokenize", {"content": "the man", "add_special": True}).json["tokens"]
    text = completion(server)["content"]
    for prompt in (ids, ["the", *ids[1:]][:0] + ids, [*ids[:-1], ids[-1]]):
        assert completion(server, prompt=prompt)["content"] == text
    mixed = completion(server, prompt=["the ", *server.post("/tokenize", {"content": "man"}).json["tokens"]])
    assert mixed["tokens_evaluated"] >= 2
    assert completion(server, prompt={"prompt_string": "the man"})["content"] == completion(server)["content"]
    several = server.post("/completion", {**ASK, "prompt": [{"prompt_string": "the man"}, "the man", [1, "a"]]}).json
    assert several[0]["content"] == several[1]["content"]
    seen = server.post("/completion", {**ASK, "prompt": {"prompt_string": "a", "multimodal_data": ["aGk="]}})
    assert (seen.status, "reads text only" in seen.json["error"]["message"]) == (400, True)
    several = server.post("/completion", {**ASK, "prompt": ["the man", "the", ids]}).json
    assert [result["index"] for result in several] == [0, 1, 2]
    assert several[0]["content"] == several[2]["content"] == text
    events = server.post("/completion", {**ASK, "prompt": ["the man", "the"], "stream": True}).events
    assert {event["index"] for event in events} == {0, 1}
    parts = ["".join(event["content"] for event in events if event["index"] == i) for i in (0, 1)]
    assert parts == [several[0]["content"], several[1]["content"]]


def test_several_answers_to_one_prompt(server: Running) -> None:
    found = server.post("/completion", {**ASK, "n": 3, "temperature": 5.0, "top_k": 0, "min_p": 0, "seed": 1}).json
    assert len({result["content"] for result in found}) == 3


def test_stop_strings(server: Running) -> None:
    text = completion(server, n_predict=20)["content"]
    word = text[len(text) // 2 :][:3]
    found = completion(server, n_predict=20, stop=[word, "never"])
    assert found["content"] == text.partition(word)[0]
    assert (found["stop_type"], found["stopping_word"]) == ("word", word)
    streamed = server.post("/completion", {**ASK, "n_predict": 20, "stop": word, "stream": True}).events
    assert "".join(event["content"] for event in streamed) == found["content"]


def test_probabilities(server: Running) -> None:
    found = completion(server, n_probs=3)
    rows = found["completion_probabilities"]
    assert len(rows) == 8
    for row in rows:
        assert [top["logprob"] for top in row["top_logprobs"]] == sorted(
            (top["logprob"] for top in row["top_logprobs"]), reverse=True
        )
        assert row["id"] == row["top_logprobs"][0]["id"]
        assert bytes(row["bytes"]).decode("utf-8", "replace") == row["token"]
        assert row["logprob"] <= 0
    streamed = server.post("/completion", {**ASK, "n_probs": 3, "stream": True}).events
    assert [row["id"] for event in streamed for row in event.get("completion_probabilities", [])] == [
        row["id"] for row in rows
    ]
    assert "completion_probabilities" not in completion(server)


def test_probabilities_after_sampling(server: Running) -> None:
    found = completion(server, n_probs=10, post_sampling_probs=True, temperature=1.0, top_k=4, min_p=0, top_p=1)
    for row in found["completion_probabilities"]:
        assert len(row["top_probs"]) == 4
        assert sum(top["prob"] for top in row["top_probs"]) == pytest.approx(1.0)
        assert row["prob"] == next(top["prob"] for top in row["top_probs"] if top["id"] == row["id"])
    greedy = completion(server, n_probs=2, post_sampling_probs=True)["completion_probabilities"]
    assert all(row["prob"] == 1.0 and len(row["top_probs"]) == 1 for row in greedy)


def test_logit_bias_in_every_form(server: Running) -> None:
    first = completion(server, n_predict=1, return_tokens=True)["tokens"][0]
    for bias in ([[first, False]], [[first, -1000]], {str(first): -1000}, {str(first): False}):
        assert completion(server, n_predict=1, return_tokens=True, logit_bias=bias)["tokens"][0] != first
    ids = server.post("/tokenize", {"content": "man"}).json["tokens"]
    for bias in ([["man", 1000]], {"man": 1000}, {"man": 1000, "²": 0, "--5": 0}):  # no digit of an id, a text
        assert completion(server, n_predict=1, return_tokens=True, logit_bias=bias)["tokens"][0] in ids


def test_adapters_are_told_and_are_as_the_server_was_started(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(entries: Any) -> tuple[int, Any]:
        found = server.post("/lora-adapters", entries)
        return found.status, found.json

    assert server.get("/lora-adapters").json == []
    assert put([]) == (200, {"success": True})
    assert (
        put([{"id": 0, "scale": 1.0}])[0]
        == put({})[0]
        == put([{"id": True, "scale": 1}])[0]
        == put([{"id": 0}])[0]
        == 400
    )
    arguments = server.door.client.arguments
    given = {"lora": ["a.gguf"], "lora_scaled": ["b.gguf:0.5"]}
    monkeypatch.setitem(arguments, "context", {**arguments["context"], **given})
    expected = [{"id": 0, "path": "a.gguf", "scale": 1.0}, {"id": 1, "path": "b.gguf", "scale": 0.5}]
    assert server.get("/lora-adapters").json == expected
    same = [{"id": 1, "scale": 0.5}, {"id": 0, "scale": 1}]
    assert put(same) == (200, {"success": True})
    assert completion(server, lora=same)["stop"]
    status, body = put([{"id": 0, "scale": 1}])
    assert (status, "--lora-scaled FILE:SCALE" in body["error"]["message"]) == (400, True)
    assert server.post("/completion", {"prompt": "a", "lora": [{"id": 0, "scale": 0.2}]}).status == 400


def test_an_answer_that_has_begun_goes_on_within_its_grammar(server: Running) -> None:
    def tokens(text: str) -> list[int]:
        found: list[int] = server.post("/tokenize", {"content": text}).json["tokens"]
        return found

    def go_on(begun: str, **more: Any) -> Any:
        prompt = tokens("the man") + tokens(begun)
        return server.post("/completion", {"prompt": prompt, "n_predict": 40, "n_begun": len(tokens(begun)), **more})

    grammar = 'root ::= "ab" ("cd" | "ef") "!"'
    assert go_on("abe", grammar=grammar).json["content"] == "f!"
    assert go_on("", grammar=grammar).json["content"] in ("abcd!", "abef!")
    refused = go_on("ax", grammar=grammar)
    assert refused.status == 400
    assert "does not allow an answer that begins so: token 2 of 2" in refused.json["error"]["message"]
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    begun = '{"n": '
    assert json.loads(begun + go_on(begun, response_format=form).json["content"])["n"] in (1, 2)
    assert go_on("a", grammar=grammar, response_format=form).status == 400
    too_many = server.post("/completion", {"prompt": tokens("a"), "n_begun": 2, "grammar": grammar})
    assert (too_many.status, "the prompt has 1 token" in too_many.json["error"]["message"]) == (400, True)


def test_an_answer_that_has_begun_within_a_character(server: Running) -> None:
    ids = server.post("/tokenize", {"content": "a🦙"}).json["tokens"]
    assert len(ids) == 5
    asked = {"n_predict": 9, "grammar": 'root ::= "a🦙" "!"'}
    for n in range(1, 5):
        found = server.post("/completion", {"prompt": [*ids, *ids[:n]], "n_begun": n, **asked}).json
        assert found["content"] == ("🦙!" if n < 5 else "!"), n


def test_a_grammar_and_a_schema(server: Running) -> None:
    assert completion(server, grammar='root ::= "yes" | "no"', ignore_eos=False)["content"] in ("yes", "no")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    found = completion(server, json_schema=schema, n_predict=60, ignore_eos=False)
    assert json.loads(found["content"])["a"] in (1, 2)
    assert found["generation_settings"]["json_schema"] == schema


def test_samplers_in_any_order(server: Running) -> None:
    found = completion(server, samplers=["top_k", "temperature"], top_k=1, temperature=9.0)
    assert found["content"] == completion(server)["content"]
    assert found["generation_settings"]["samplers"] == ["top_k", "temperature"]
    assert completion(server, samplers="kt", top_k=1, temperature=9.0)["content"] == found["content"]


def test_the_same_seed_gives_the_same_answer(server: Running) -> None:
    texts = [completion(server, seed=5, temperature=3.0, top_k=0, min_p=0)["content"] for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] != completion(server, seed=6, temperature=3.0, top_k=0, min_p=0)["content"]


def test_only_the_fields_that_are_wanted(server: Running) -> None:
    found = completion(server, response_fields=["content", "generation_settings/n_predict", "nothing/at/all"])
    assert found == {"content": found["content"], "generation_settings/n_predict": 8}


def test_nothing_but_reading_the_prompt(server: Running) -> None:
    found = completion(server, n_predict=0)
    assert (found["content"], found["tokens_predicted"]) == ("", 0)


def test_the_context_is_full(server: Running) -> None:
    found = completion(server, prompt=[300] * 500, n_predict=-1)
    assert (found["truncated"], found["stop_type"]) == (True, "limit")
    assert 500 + found["tokens_predicted"] == 513


def test_a_further_turn_pays_for_what_is_new(server: Running) -> None:
    ids = [(7 * i) % 200 + 100 for i in range(300)]
    completion(server, prompt=ids)
    assert completion(server, prompt=[*ids, 101, 102])["timings"]["cache_n"] >= 256
    assert completion(server, prompt=[*ids, 101, 102], cache_prompt=False)["timings"]["cache_n"] == 0


def test_progress_of_reading(small_path: Path) -> None:
    with running(small_path, context=ContextSettings(backend="reference", context=512, ubatch=64)) as server:
        body = {**ASK, "prompt": [300 + i % 50 for i in range(400)], "stream": True, "return_progress": True}
        events = server.post("/completion", body).events
        told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
        assert [one["processed"] for one in told] == sorted({one["processed"] for one in told})
        assert len(told) >= 3
        assert told[-1]["processed"] == told[-1]["total"] == 400


def test_time_is_a_limit_once_a_line_is_whole(small_path: Path) -> None:
    with running(small_path, context=ContextSettings(backend="reference", context=4096)) as server:
        newline = server.post("/tokenize", {"content": "\n"}).json["tokens"][-1]
        body = {**ASK, "n_predict": 4000, "t_max_predict_ms": 100, "logit_bias": [[newline, 1000]]}
        found = server.post("/completion", body).json
        assert found["stop_type"] == "limit"
        assert 0 < found["tokens_predicted"] < 4000


def test_a_ceiling_on_every_answer(small_path: Path) -> None:
    with running(small_path, ServeSettings(max_tokens=3)) as server:
        assert completion(server)["tokens_predicted"] == 3
        assert completion(server, n_predict=-1)["tokens_predicted"] == 3
        assert completion(server, n_predict=2)["tokens_predicted"] == 2
    context = ContextSettings(backend="reference", context=8192)
    with running(small_path, ServeSettings(max_seconds=0.3), context) as server:
        found = completion(server, n_predict=8000)
        assert 0 < found["tokens_predicted"] < 8000
        assert found["stop_type"] == "limit"


def test_a_client_that_goes_away_ends_its_answer(small_path: Path) -> None:
    with running(small_path, context=ContextSettings(backend="reference", context=8192)) as server:
        for stream in (True, False):
            connection = server.connect()
            body = json.dumps({**ASK, "n_predict": 8000, "stream": stream})
            connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
            if stream:
                connection.getresponse().readline()
            end_s = time.monotonic() + 30
            while not any(slot["is_processing"] for slot in server.get("/slots").json):
                assert time.monotonic() < end_s
            assert connection.sock is not None
            connection.sock.close()
            connection.close()
            left_s = time.monotonic()
            while any(slot["is_processing"] for slot in server.get("/slots").json):
                assert time.monotonic() - left_s < 5
            assert not server.door.client.jobs


def test_many_at_once_each_as_if_alone(server: Running) -> None:
    prompts = [f"the man {i} and the {'sea ' * i}" for i in range(24)]
    alone = [completion(server, prompt=prompt)["content"] for prompt in prompts[:6]]
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        events = server.post("/completion", {**ASK, "prompt": prompts[i], "stream": True}).events
        found[i] = "".join(event["content"] for event in events)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 24
    assert [found[i] for i in range(6)] == alone


def test_a_queue_that_is_full_says_when_to_come_back(small_path: Path) -> None:
    settings = ServeSettings(parallel=1, max_queue=1)
    with running(small_path, settings, ContextSettings(backend="reference", context=8192)) as server:
        done: list[int] = []
        body = {**ASK, "n_predict": 8000, "stream": True}
        connections = []
        for _ in range(4):
            connection = server.connect()
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            connections.append(connection)
            time.sleep(0.2)
        found = server.post("/completion", ASK)
        assert found.status == 429
        assert int(found.headers["retry-after"]) >= 1
        assert found.json["error"]["type"] == "rate_limit_error"
        for connection in connections:
            connection.close()
        assert not done


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_and_back(server: Running) -> None:
    text = "What is the capital of Österreich? 東京 😀\n"
    ids = server.post("/tokenize", {"content": text}).json["tokens"]
    assert server.post("/detokenize", {"tokens": ids}).json["content"] == text
    bos = server.post("/tokenize", {"content": text, "add_special": True}).json["tokens"]
    assert bos == ids or bos[1:] == ids
    pieces = server.post("/tokenize", {"content": text, "with_pieces": True}).json["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert raw.decode() == text
    assert any(isinstance(p["piece"], list) for p in pieces)
    assert server.post("/tokenize", {}).json == {"tokens": []}
    assert server.post("/tokenize", {"content": ["a", 5]}).json["tokens"][-1] == 5


def test_llamafilers_ways_to_ask(server: Running) -> None:
    ids = server.post("/tokenize", {"content": "a b", "add_special": True}).json
    assert server.get("/tokenize?prompt=a%20b").json == ids
    plain = {"Content-Type": "text/plain"}
    assert server.request("POST", "/tokenize", b"a b", headers=plain).json == ids
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.request("POST", "/tokenize", b"prompt=a+b", headers=form).json == ids
    assert server.request("POST", "/tokenize", b'{"prompt": "a b"}', headers=form).json == ids
    assert server.request("POST", "/tokenize", b"\xff", headers=plain).status == 400


@pytest.mark.parametrize("tokens", [[-1], [10**9], ["x"], [True], [1.5], "x", {"a": 1}])
def test_what_is_no_token(server: Running, tokens: Any) -> None:
    assert server.post("/detokenize", {"tokens": tokens}).status == 400


def test_a_template_is_applied(server: Running) -> None:
    text = server.post("/apply-template", CHAT).json["prompt"]
    assert "Hi" in text
    shorter = server.post("/apply-template", {**CHAT, "add_generation_prompt": False}).json["prompt"]
    assert text.startswith(shorter)
    assert len(shorter) < len(text)
    for wrong in ({}, {"messages": []}, {"messages": [{"role": "king", "content": "x"}]}, {"messages": "x"}):
        assert server.post("/apply-template", wrong).status == 400


# --- embeddings ------------------------------------------------------------------------------------------------------


def test_embeddings(server: Running) -> None:
    found = server.post("/embedding", {"content": "the man"})
    (one,) = found.json
    (vector,) = one["embedding"]
    assert sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-4)
    several = server.post("/embeddings", {"input": ["the man", "the", [5, 6]]}).json
    assert [row["index"] for row in several] == [0, 1, 2]
    assert several[0]["embedding"] == one["embedding"]
    raw = server.post("/embedding", {"content": "the man", "embd_normalize": -1}).json[0]["embedding"][0]
    norm = sum(x * x for x in raw) ** 0.5
    assert [x / norm for x in raw] == pytest.approx(vector, abs=1e-5)
    largest = server.post("/embedding", {"content": "the man", "embd_normalize": 0}).json[0]["embedding"][0]
    assert max(map(abs, largest)) == pytest.approx(32760, rel=1e-3)
    for wrong in ({}, {"content": ""}, {"content": 5}, {"content": "x", "embd_normalize": -2}):
        assert server.post("/embedding", wrong).status == 400
