"""The engine's process dies, or never comes up: clients are told at once, and it is started again, or all ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from gemmafile.errors import BadFile
from gemmafile.server.launch import EngineLost
from gemmafile.settings import ContextSettings
from tests.server.running import WAIT_S, Answer, Running, running

LONG = {"prompt": "the man", "n_predict": 8000, "ignore_eos": True, "temperature": 0}


def kill(server: Running) -> None:
    process = server.door.client.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


def wait_for_health(server: Running, status: int) -> Answer:
    end_s = time.monotonic() + WAIT_S
    while (found := server.get("/health")).status != status:
        assert time.monotonic() < end_s, found
        time.sleep(0.02)
    return found


def test_kill_9_under_load(small_path: Path) -> None:
    with running(small_path, context=ContextSettings(backend="reference", context=8192)) as server:
        answers: list[tuple[float, Answer]] = []

        def ask(stream: bool) -> None:
            found = server.post("/completion", {**LONG, "stream": stream})
            answers.append((time.monotonic(), found))

        threads = [threading.Thread(target=ask, args=(i % 2 == 0,)) for i in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        killed_s = time.monotonic()
        kill(server)
        found = wait_for_health(server, 503)
        assert found.json["error"]["type"] == "unavailable_error"
        assert server.post("/completion", LONG).status == 503
        for thread in threads:
            thread.join(WAIT_S)
        assert len(answers) == 6
        for when_s, answer in answers:
            assert when_s - killed_s < 2.0
            error = answer.events[-1] if b"data: " in answer.body else answer.json
            assert error["error"]["code"] == 500
            assert "died (" in error["error"]["message"]
        wait_for_health(server, 200)
        assert server.post("/completion", {**LONG, "n_predict": 3}).status == 200
        assert any("the engine has died (" in line and "starting it again" in line for line in server.said)


def test_an_engine_that_hangs_is_noticed_and_started_again(small_path: Path) -> None:
    with running(small_path) as server:
        client = server.door.client
        client.lost_s = 9
        process = client.process
        assert process is not None
        time.sleep(7)
        assert client.process is process, "an engine that only waits is not lost"
        assert client.silent_s < 7
        os.kill(process.pid, signal.SIGSTOP)
        answer = server.post("/completion", LONG)
        assert answer.status == 500
        assert "died (" in answer.json["error"]["message"]
        assert any("has not moved for 9 s" in line for line in server.said)
        wait_for_health(server, 200)
        assert client.process is not process


def test_health_tells_of_an_engine_that_does_not_move(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.get("/health").status == 200
    monkeypatch.setattr("gemmafile.server.llamacpp.STILL_S", 0)
    found = server.get("/health")
    assert found.status == 503
    assert "the engine has not moved for" in found.json["error"]["message"]
    assert "retry-after" in found.headers


def test_an_engine_that_dies_again_and_again_ends_the_server(small_path: Path) -> None:
    with running(small_path) as server:
        for _ in range(3):
            wait_for_health(server, 200)
            kill(server)
            time.sleep(0.3)
        end_s = time.monotonic() + WAIT_S
        while not server.door.client.failure.done():
            assert time.monotonic() < end_s
            time.sleep(0.05)
        server.thread.join(WAIT_S)
        assert isinstance(server.failed[0], EngineLost)
        assert "3 times in a row" in str(server.failed[0])


def test_an_engine_that_cannot_be_started_again_ends_the_server(
    small_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise OSError(11, "Resource temporarily unavailable")

    with running(small_path) as server:
        monkeypatch.setattr(server.door.client, "_spawn", refuse)
        kill(server)
        server.thread.join(WAIT_S)
        (error,) = server.failed
        assert isinstance(error, EngineLost)
        assert "cannot be started again: Resource temporarily unavailable" in str(error)
        assert error.exit_code == 1


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason(small_path: Path, tmp_path: Path) -> None:
    whole = small_path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile), running(tmp_path / "cut.gguf"):
        pass
    context = ContextSettings(backend="reference", context=512, batch=0)
    with pytest.raises(EngineLost, match="--batch-size is 0"), running(small_path, context=context):
        pass


def test_while_it_loads_everything_waits_but_says_so(small_path: Path) -> None:
    with running(small_path, wait=False) as server:
        end_s = time.monotonic() + WAIT_S
        while (stopped := server.door.client.process) is None:
            assert time.monotonic() < end_s
            time.sleep(0.001)
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            for answer in (server.get("/health"), server.post("/completion", LONG), server.get("/props")):
                if answer.status == 200:  # it was quicker than we
                    continue
                assert answer.status == 503
                error = answer.json["error"]
                assert (error["code"], error["message"], error["type"]) == (503, "Loading model", "unavailable_error")
                assert "retry-after" in answer.headers
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
        wait_for_health(server, 200)
