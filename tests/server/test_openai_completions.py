"""/v1/completions, /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Running, running
from tests.tiny import write_small

COMPLETE, EMBED = "/v1/completions", "/v1/embeddings"
ASK: dict[str, Any] = {"prompt": "the man", "max_tokens": 6, "temperature": 0}


def text_of(events: list[Any], index: int = 0) -> str:
    return "".join(c["text"] for event in events[:-1] for c in event["choices"] if c["index"] == index)


def test_an_answer_and_its_stream(server: Running) -> None:
    status, found = server.post(COMPLETE, ASK)
    assert status == 200
    assert found["object"] == "text_completion"
    assert found["id"].startswith("cmpl-")
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 6
    events = server.post(COMPLETE, {**ASK, "stream": True, "stream_options": {"include_usage": True}}).events
    assert text_of(events) == found["choices"][0]["text"]
    assert len({event["id"] for event in events[:-1]}) == 1
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["completion_tokens"] == 6


def test_sixteen_tokens_where_none_are_named(server: Running) -> None:
    found = server.post(COMPLETE, {"prompt": "the man", "temperature": 0, "ignore_eos": True}).json
    assert found["usage"]["completion_tokens"] == 16


def test_prompts_of_every_form(server: Running) -> None:
    ids = server.post("/tokenize", {"content": "the man", "add_special": True}).json["tokens"]
    text = server.post(COMPLETE, ASK).json["choices"][0]["text"]
    assert server.post(COMPLETE, {**ASK, "prompt": ids}).json["choices"][0]["text"] == text
    found = server.post(COMPLETE, {**ASK, "prompt": ["the man", "a dog"]}).json
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert found["choices"][0]["text"] == text
    both = server.post(COMPLETE, {**ASK, "prompt": [ids, ids]}).json
    assert [choice["text"] for choice in both["choices"]] == [text, text]
    assert both["usage"]["prompt_tokens"] == 2 * len(ids)


def test_several_choices_of_several_prompts_in_a_stream(server: Running) -> None:
    ask = {**ASK, "prompt": ["the man", "a dog"], "n": 2, "seed": 4, "temperature": 1.5}
    whole = [choice["text"] for choice in server.post(COMPLETE, ask).json["choices"]]
    events = server.post(COMPLETE, {**ask, "stream": True}).events
    assert [text_of(events, index) for index in range(4)] == whole
    assert whole[0] != whole[1]


def test_best_of(server: Running) -> None:
    ask = {**ASK, "n": 4, "seed": 4, "temperature": 2, "logprobs": 0}

    def likelihood(choice: dict[str, Any]) -> float:
        found = choice["logprobs"]["token_logprobs"]
        return float(sum(found) / len(found))

    choices = server.post(COMPLETE, ask).json["choices"]
    best = server.post(COMPLETE, {**ask, "n": 1, "best_of": 4}).json
    assert best["choices"][0]["text"] == max(choices, key=likelihood)["text"]
    assert len(best["choices"]) == 1
    assert best["usage"]["completion_tokens"] == 24


def test_logprobs(server: Running) -> None:
    found = server.post(COMPLETE, {**ASK, "logprobs": 2}).json["choices"][0]
    logprobs = found["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == 6
    assert logprobs["text_offset"][0] == 0
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert len(top) <= 2
        assert top[token] == logprob == max(top.values())


def test_offsets_point_into_the_text(tmp_path: Path) -> None:
    """Where the prompt has a BOS in front, which is no text."""
    with running(write_small(tmp_path / "spm.gguf", "gemma2")) as server:
        for stream in (False, True):
            ask = {"prompt": "the man of the house", "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 1}
            found = server.post(COMPLETE, {**ask, "stream": stream})
            chunks = [found.json] if not stream else [chunk for chunk in found.events if chunk != "[DONE]"]
            parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
            text = "".join(part["text"] for part in parts)
            tokens = [token for part in parts for token in part["logprobs"]["tokens"]]
            offsets = [at for part in parts for at in part["logprobs"]["text_offset"]]
            assert tokens[0] == "<bos>"
            assert offsets[0] == 0
            shown = [(token, at) for token, at in zip(tokens[2:], offsets[2:], strict=True) if token.isascii()]
            assert len(shown) > 5
            assert all(text[at : at + len(token)] == token for token, at in shown), (text, shown)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_tells_how_likely_the_prompt_was(server: Running, stream: bool) -> None:
    """max_tokens 0 scores a text; what is scored is what would have been written."""
    written = server.post(COMPLETE, {**ASK, "logprobs": 1}).json["choices"][0]
    native = {"prompt": "the man", "n_predict": 6, "temperature": 0, "return_tokens": True}
    ids = server.post("/tokenize", {"content": "the man", "add_special": True}).json["tokens"]
    ids += server.post("/completion", native).json["tokens"]
    ask = {**ASK, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1, "stream": stream}
    answer = server.post(COMPLETE, ask)
    choice = answer.events[0]["choices"][0] if stream else answer.json["choices"][0]
    scored = choice["logprobs"]
    assert choice["text"].endswith(written["text"])
    assert len(scored["tokens"]) == len(ids)
    assert scored["token_logprobs"][0] is None
    assert scored["token_logprobs"][-6:] == pytest.approx(written["logprobs"]["token_logprobs"], abs=1e-5)
    told = written["logprobs"]["top_logprobs"]
    assert scored["top_logprobs"][-6:] == [pytest.approx(top, abs=1e-5) for top in told]


def test_echo_without_scores(server: Running) -> None:
    text = server.post(COMPLETE, ASK).json["choices"][0]["text"]
    assert server.post(COMPLETE, {**ASK, "echo": True}).json["choices"][0]["text"] == "the man" + text
    assert text_of(server.post(COMPLETE, {**ASK, "echo": True, "stream": True}).events) == "the man" + text


def test_a_grammar(server: Running) -> None:
    ask = {**ASK, "grammar": 'root ::= "yes" | "no"', "temperature": 1, "max_tokens": 20}
    found = server.post(COMPLETE, ask).json["choices"][0]
    assert found["text"] in ("yes", "no")
    assert found["finish_reason"] == "stop"


def test_a_grammar_in_llguidances_notation(server: Running) -> None:
    ask = {**ASK, "grammar": '%llguidance {}\nstart: "a" NUMBER\nNUMBER: /[0-9]{3}/', "max_tokens": 20}
    assert server.post(COMPLETE, ask).json["choices"][0]["text"][1:].isdecimal()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt is missing"),
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": []}, "prompt is []"),
    ({"prompt": [[]]}, "prompt is empty"),
    ({"prompt": [1.5]}, "prompt is [1.5]"),
    ({"prompt": [99999999]}, "there is no token 99999999"),
    ({"prompt": ["x"] * 257}, "at most 256"),
    ({"suffix": "end"}, "suffix is not supported"),
    ({"n": 3, "best_of": 2}, "best_of is 2"),
    ({"best_of": 2, "stream": True}, "cannot be streamed"),
    ({"logprobs": 21}, "from 0 to 20"),
    ({"response_format": {"type": "json_object"}, "json_schema": {}}, "which one?"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said(server: Running, change: dict[str, Any], message: str) -> None:
    status, found = server.post(COMPLETE, {**ASK, **change})
    assert status == 400
    assert message in found["error"]["message"]


# --- embeddings -----------------------------------------------------------------------------------------------------


def test_embeddings_are_unit_vectors(server: Running) -> None:
    status, found = server.post(EMBED, {"input": ["a cat", "a cat", "the dog"]})
    assert status == 200
    vectors = [entry["embedding"] for entry in found["data"]]
    assert [entry["index"] for entry in found["data"]] == [0, 1, 2]
    for vector in vectors:
        assert len(vector) == 64
        assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
    assert vectors[0] == vectors[1] != vectors[2]
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 3


def test_embeddings_in_base64_are_the_same(server: Running) -> None:
    plain = server.post(EMBED, {"input": "a cat"}).json["data"][0]["embedding"]
    packed = server.post(EMBED, {"input": "a cat", "encoding_format": "base64"}).json["data"][0]["embedding"]
    assert list(struct.unpack("<64f", base64.b64decode(packed))) == plain


def test_embeddings_of_token_ids(server: Running) -> None:
    ids = server.post("/tokenize", {"content": "a cat", "add_special": True}).json["tokens"]
    text, tokens, both = (
        [entry["embedding"] for entry in server.post(EMBED, {"input": each}).json["data"]]
        for each in ("a cat", ids, [ids, ids])
    )
    assert text == tokens
    assert both == tokens * 2


def test_fewer_dimensions_are_a_unit_vector_too(server: Running) -> None:
    whole = server.post(EMBED, {"input": "a cat"}).json["data"][0]["embedding"]
    cut = server.post(EMBED, {"input": "a cat", "dimensions": 8}).json["data"][0]["embedding"]
    assert sum(x * x for x in cut) == pytest.approx(1, abs=1e-5)
    assert [x / cut[0] for x in cut] == pytest.approx([x / whole[0] for x in whole[:8]], rel=1e-3)


def test_poolings_differ(server: Running) -> None:
    kinds = ("mean", "last", "cls")
    vectors = [server.post(EMBED, {"input": "a cat", "pooling": kind}).json["data"][0]["embedding"] for kind in kinds]
    assert len({tuple(vector) for vector in vectors}) == 3
    assert server.post(EMBED, {"input": "a cat"}).json["data"][0]["embedding"] == vectors[0]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({}, "input is missing"),
        ({"input": []}, "input is []"),
        ({"input": ""}, "input is empty"),
        ({"input": "x", "dimensions": 65}, "this model's vectors have 64"),
        ({"input": "x", "dimensions": 0}, "dimensions is 0"),
        ({"input": "x", "encoding_format": "hex"}, "one of float, base64"),
        ({"input": "x", "pooling": "max"}, "one of mean, last, cls"),
        ({"input": "words " * 600}, "tokens and the context holds"),
    ],
)
def test_embeddings_that_cannot_be(server: Running, ask: dict[str, Any], message: str) -> None:
    status, found = server.post(EMBED, ask)
    assert status == 400
    assert message in found["error"]["message"]


# --- models ---------------------------------------------------------------------------------------------------------


def test_the_model(server: Running) -> None:
    for path in ("/v1/models", "/models"):
        found = server.get(path).json
        assert found["object"] == "list"
        assert found["data"][0]["id"] == "small"
        assert found["data"][0]["meta"]["n_embd"] == 64
    assert server.get("/v1/models/small").json == found["data"][0]
    status, wrong = server.get("/v1/models/gpt-4")
    assert status == 404
    assert wrong["error"]["type"] == "not_found_error"


def test_a_bias_against_all_that_a_grammar_allows(server: Running) -> None:
    """Its own answer ends, by the fault of who asked."""
    status, found = server.post(COMPLETE, {**ASK, "grammar": 'root ::= "x"+', "logit_bias": [["x", False]]})
    assert status == 400
    assert "no token can be chosen" in found["error"]["message"]


def test_norms_of_high_order_are_the_largest_value(server: Running) -> None:
    (found,) = server.post("/embedding", {"content": "a cat", "embd_normalize": 900}).json
    assert max(abs(x) for x in found["embedding"][0]) == pytest.approx(1, abs=0.01)
