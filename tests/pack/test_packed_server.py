"""A packed file without arguments serves: with an empty HOME, and leaving nothing behind when it is stopped."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gemmafile.cli.packed import wanted_command
from tests.pack.conftest import Packed

WAIT_S = 90.0


@contextmanager
def serving(path: Path, home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """The process, its port, and what it says. It listens on a free port; nothing else is asked of it."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "GEMMAFILE_PYTHON": sys.executable}
    process = subprocess.Popen(
        [path, "--port", "0", *words], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: list[str] = []

    def listen() -> None:
        assert process.stderr is not None
        said.extend(process.stderr)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        end_s = time.monotonic() + WAIT_S
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", "".join(said))):
            assert process.poll() is None, said
            assert time.monotonic() < end_s, said
            time.sleep(0.02)
        yield process, int(found[1]), said
    finally:
        process.kill()
        process.wait(WAIT_S)
        listener.join(WAIT_S)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        raw = None if body is None else json.dumps(body).encode()
        connection.request(method, path, raw, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_ready(port: int) -> None:
    end_s = time.monotonic() + WAIT_S
    while ask(port, "GET", "/health")[0] != 200:
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_without_arguments_it_serves(packed: Packed, tmp_path: Path) -> None:
    with serving(packed.path, tmp_path) as (process, port, said):
        wait_ready(port)
        status, body = ask(port, "POST", "/completion", {"prompt": "Once upon", "n_predict": 3})
        assert status == 200
        assert json.loads(body)["tokens_predicted"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0, said
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")} <= {".cache"}


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "serve"), (["--temp", "0"], "serve"), (["-p", "x"], "run"), (["--prompt=x"], "run"), (["--cli"], "run"),
        (["--chat"], "run"), (["-f", "x"], "run"), (["--server", "-p", "x"], "serve"), (["-st"], "run"),
        (["--port", "80"], "serve"), (["--single_turn"], "run"),
    ],
)  # fmt: skip
def test_a_prompt_or_a_chat_stays_in_the_terminal(words: list[str], command: str) -> None:
    assert wanted_command(words) == command


def test_in_private_it_serves_and_leaves_nothing(packed: Packed, tmp_path: Path) -> None:
    with serving(packed.path, tmp_path, "--private") as (process, port, said):
        wait_ready(port)
        status, _ = ask(port, "POST", "/completion", {"prompt": "Once upon", "n_predict": 3})
        assert status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0, said
    assert not list(tmp_path.rglob("*"))
