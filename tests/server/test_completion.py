"""llama.cpp's /completion."""

from __future__ import annotations

from tests.server.running import Running


def test_it_answers(server: Running) -> None:
    status, found = server.post("/completion", {"prompt": "the man", "n_predict": 5, "temperature": 0})
    assert status == 200
    assert found["stop"] is True
    assert found["tokens_predicted"] == 5
    assert found["stop_type"] == "limit"


def test_a_stream_says_the_same(server: Running) -> None:
    ask = {"prompt": "the man", "n_predict": 8, "temperature": 0}
    whole = server.post("/completion", ask).json
    events = server.post("/completion", {**ask, "stream": True}).events
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
