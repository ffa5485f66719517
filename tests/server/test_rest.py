"""When nobody asks: what the first grammar needs is made, and a busy time's memory goes back to the system."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmafile.server import heap
from gemmafile.settings import ContextSettings
from tests.server.running import WAIT_S, Running, running

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and glibc")

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {}}}}}


def resident_bytes(pid: int | str, *kinds: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(lines[kind].split()[0]) for kind in kinds or ("VmRSS",)) << 10


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end_s, what
        time.sleep(0.1)


def test_what_was_freed_goes_back_to_the_system() -> None:
    heap.give_back()
    before = resident_bytes("self", "RssAnon")
    blocks = [bytearray(2000) for _ in range(30_000)]  # over what Python keeps in pools of its own
    pinned = blocks[::1000]  # the heap's end is in use: the C library itself cannot shrink it
    assert resident_bytes("self", "RssAnon") > before + (50 << 20)
    del blocks
    heap.give_back()
    assert resident_bytes("self", "RssAnon") < before + (10 << 20)
    assert len(pinned) == 30


def ask(server: Running, i: int) -> int:
    message = {"messages": [{"role": "user", "content": "the man " * (1 + 7 * i % 80)}], "max_tokens": 6}
    kinds = [
        ("/v1/chat/completions", message),
        ("/v1/chat/completions", {**message, "stream": True}),
        ("/v1/chat/completions", {**message, "response_format": SCHEMA}),
        ("/v1/completions", {"prompt": "the", "n": 3, "max_tokens": 4, "logprobs": 2}),
        ("/v1/embeddings", {"input": ["the man " * 50, "a"]}),
        ("/completion", {"prompt": "the man " * (i % 150), "n_predict": 4, "dry_multiplier": 0.8}),
    ]
    return server.post(*kinds[i % len(kinds)]).status


def test_a_server_at_rest_is_as_large_as_it_was(small_path: Path) -> None:
    with running(small_path, context=ContextSettings(threads=1, context=2048)) as server:
        process = server.door.client.process
        assert process is not None
        maps = Path(f"/proc/{process.pid}/maps")
        # Nobody has asked for a schema yet, and nobody will wait for the first.
        wait_until(lambda: "llguidance" in maps.read_text(), "the engine does not get warm")
        time.sleep(1)
        before = resident_bytes(process.pid)
        statuses: list[int] = []

        def work(first: int) -> None:
            statuses.extend(ask(server, i) for i in range(first, 48, 8))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert statuses == [200] * 48
        most = before + (10 << 20)
        wait_until(lambda: resident_bytes(process.pid) < most, "the engine does not give its memory back")
