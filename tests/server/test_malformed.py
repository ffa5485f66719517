"""Whatever comes, the right status, and the server goes on: bodies, heads, speeds, sizes."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmafile.server import http_protocol
from gemmafile.settings import ServeSettings
from tests.server.running import Running, running

DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.fixture(autouse=True)
def alive_afterwards(server: Running) -> Iterator[None]:
    yield
    assert server.get("/health").status == 200


BODIES: list[tuple[bytes, str]] = [
    (b"", "no body"),
    (b"   ", "no body"),
    (b'{"prompt": "x"', "not valid JSON"),
    (b'{"prompt": "x"} y', "not valid JSON"),
    (b"[1]", "JSON object, not a list"),
    (b"null", "not null"),
    (b'"x"', "not a string"),
    (b'{"prompt": "\xff"}', "not UTF-8"),
    (b'{"prompt": "\\ud800"}', "half a character"),
    (b'{"\\udfff": 1}', "half a character"),
    (b'{"prompt": NaN}', "NaN is no JSON"),
    (b'{"prompt": "x", "temperature": -Infinity}', "no JSON"),
    (b'{"prompt": "x", "temperature": 1e999}', "too large"),
    (b'{"prompt": "x", "n_predict": ' + b"9" * 500 + b"}", "too large"),
    (b'{"prompt": "x", "n_predict": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    (DEEP, "nested more than"),
    (b'{"a": ' * 70 + b"1" + b"}" * 70, "nested more than"),
    (b"{}", "prompt is missing"),
    (b'{"prompt": {}}', "prompt holds"),
    (b'{"prompt": [true]}', "prompt holds"),
    (b'{"prompt": [-1]}', "token ids from 0"),
    (b'{"prompt": [99999999999999999999]}', "token ids from 0"),
    (b'{"prompt": ""}', "prompt is empty"),
    (b'{"prompt": []}', "prompt is empty"),
    (b'{"prompt": "x", "temperature": "hot"}', 'temperature is "hot": expected a number'),
    (b'{"prompt": "x", "temperature": true}', "temperature is true"),
    (b'{"prompt": "x", "temperature": 1e300}', "temperature"),
    (b'{"prompt": "x", "top_p": 1.5}', "top_p is 1.5"),
    (b'{"prompt": "x", "top_k": 1e10}', "top_k"),
    (b'{"prompt": "x", "n_predict": 1.5}', "whole number"),
    (b'{"prompt": "x", "n_predict": -3}', "n_predict is -3"),
    (b'{"prompt": "x", "stop": [1]}', "stop is [1]"),
    (b'{"prompt": "x", "stream": "yes"}', "true or false"),
    (b'{"prompt": "x", "logit_bias": [[1]]}', "logit_bias"),
    (b'{"prompt": "x", "logit_bias": [[99999999, 1]]}', "no token 99999999"),
    (b'{"prompt": "x", "logit_bias": {"1": true}}', "logit_bias"),
    (b'{"prompt": "x", "logit_bias": {"' + b"9" * 5000 + b'": "1"}}', "logit_bias"),
    (b'{"prompt": "x", "samplers": ["top_q"]}', "no sampler 'top_q'"),
    (b'{"prompt": "x", "n_probs": 100000}', "n_probs"),
    (b'{"prompt": "x", "grammar": "root ::= (", "n_predict": 2}', "grammar"),
    (b'{"prompt": "x", "json_schema": 3}', "json_schema"),
    (b'{"prompt": "x", "json_schema": {"type": "thing"}}', "json_schema"),
    (b'{"prompt": "x", "grammar": "root ::= \\"a\\"", "json_schema": {}}', "not both"),
    (b'{"prompt": "x", "id_slot": -5}', "id_slot"),
    (b'{"prompt": ["a", "b"], "n": 100}', "at most"),
    (b'{"prompt": "' + b"the man " * 2000 + b'"}', "tokens and the context holds"),
]


@pytest.mark.parametrize(("body", "expected"), BODIES, ids=[f"{i}" for i in range(len(BODIES))])
def test_a_wrong_body_is_told_what_is_wrong(server: Running, body: bytes, expected: str) -> None:
    found = server.post("/completion", body)
    assert found.status == 400
    error = found.json["error"]
    assert expected in error["message"]
    assert error["code"] == 400
    assert error["type"] in ("invalid_request_error", "exceed_context_size_error")


def test_both_counts_of_a_prompt_that_does_not_fit(server: Running) -> None:
    error = server.post("/completion", {"prompt": [5] * 600}).json["error"]
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 600, 512)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_byte_has_its_status(server: Running, stream: bool) -> None:
    body = {"prompt": "x", "grammar": 'root ::= "\\', "stream": stream}
    assert server.post("/completion", body).status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/completion", 405), ("DELETE", "/props", 405), ("GET", "/nothing", 404),
        ("POST", "/../etc/passwd", 404),
        ("GET", "/%00", 404), ("GET", "/%ff%fe", 404), ("BREW", "/health", 405), ("POST", "/infill", 501),
        ("GET", "/metrics", 501), ("POST", "/slots/0?action=save", 501), ("POST", "/slots/99?action=erase", 400),
        ("POST", "/slots/x?action=erase", 400), ("POST", f"/slots/{'9' * 5000}?action=erase", 400),
        ("POST", "/slots/%C2%B2?action=erase", 400), ("POST", "/slots/0", 400), ("POST", "/v1/rerank", 501),
    ],
)  # fmt: skip
def test_paths_and_methods(server: Running, method: str, path: str, status: int) -> None:
    found = server.request(method, path, {})
    assert found.status == status
    assert found.json["error"]["message"]


def test_a_hundred_megabytes_are_refused_and_not_kept(server: Running) -> None:
    before = _resident_mb()
    found = server.post("/completion", b'{"prompt": "' + b"x" * 100_000_000 + b'"}')
    assert found.status == 413
    assert found.json["error"]["type"] == "invalid_request_error"
    assert _resident_mb() - before < 150  # this process made the body, too


def test_a_body_without_a_length_is_bounded_too(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(_head("POST", "/completion", "transfer-encoding: chunked"))
        block = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(300):
            client.sendall(block)
        client.sendall(b"0\r\n\r\n")
        assert _status(client) == 413


RAW: list[tuple[bytes, int]] = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", 400),  # TLS
    (b"GET / HTTP/x\r\n\r\n", 400),
    (b"GARBAGE\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 200_000 + b"\r\n\r\n", 400),
    (b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (b"GET /health HTTP/1.0\r\n\r\n", 200),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 200),
]


@pytest.mark.parametrize(("raw", "status"), RAW, ids=[str(i) for i in range(len(RAW))])
def test_what_is_no_http_gets_a_400(server: Running, raw: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(raw)
        assert _status(client) == status


def test_a_head_that_never_ends_is_given_up(small_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow loris: a byte now and then keeps nothing open for long, and nobody else waits for it."""
    monkeypatch.setattr(http_protocol.BoundedProtocol, "head_seconds", 1.0)
    with running(small_path) as server:
        lorises = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(50)]
        start_s = time.monotonic()
        for loris in lorises:
            loris.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(3):
            time.sleep(0.2)
            for loris in lorises:
                loris.sendall(b"x: y\r\n")
        assert server.get("/health").status == 200
        assert [_status(loris) for loris in lorises] == [408] * 50
        assert time.monotonic() - start_s < 20
        for loris in lorises:
            loris.close()


def test_a_body_that_never_ends_is_given_up(small_path: Path) -> None:
    with running(small_path) as server:
        from dataclasses import replace

        server.door.__dict__["limits"] = replace(server.door.limits, seconds=0.5)
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(_head("POST", "/completion", "content-length: 100") + b'{"prompt"')
            assert _status(client) == 408


def test_too_many_connections_are_told_so(small_path: Path) -> None:
    with running(small_path, ServeSettings(max_connections=4)) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(4)]
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as one_more:
            assert _status(one_more) == 503
        for connection in idle:
            connection.close()
        time.sleep(0.2)
        assert server.get("/health").status == 200


def _head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode()


def _status(client: socket.socket) -> int:
    """The status of the response, all of which is read."""
    raw = b""
    while b"\r\n\r\n" not in raw and (part := client.recv(65536)):
        raw += part
    assert raw, "the connection was closed without an answer"
    status = int(raw.split()[1])
    body = raw.partition(b"\r\n\r\n")[2]
    if status >= 400 and body:
        assert json.loads(body)["error"]["code"] == status
    return status


def _resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * 4096 / 1e6


def test_what_all_bodies_take_together_is_bounded(small_path: Path) -> None:
    with running(small_path) as server:
        server.door.limits.pool.most = 3_000_000
        waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(4)]
        for client in waiting:
            client.sendall(_head("POST", "/completion", "content-length: 1000001") + b" " * 1_000_000)
        answered, _, _ = select.select(waiting, [], [], 30)  # the others are waited for, as they may go on
        statuses = [_status(client) for client in answered]
        for client in waiting:
            client.close()
        assert statuses == [503]
        end_s = time.monotonic() + 10
        while server.door.limits.pool.used:
            assert time.monotonic() < end_s
            time.sleep(0.02)
        assert server.post("/tokenize", {"content": "x"}).status == 200
