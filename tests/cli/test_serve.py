"""`gemmafile serve`, `service` and `chat --connect` as programs: what they say, how they end, where they print."""

from __future__ import annotations

import json
import os
import plistlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gemmafile.cli.service import absolute_paths, systemd
from gemmafile.server.browser import has_browser
from tests.cli.conftest import Runner

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_S = 60.0


@dataclass
class Served:
    """A server of its own. `said`  its lines on stderr"""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.said)

    def wait_for(self, pattern: str) -> str:
        end_s = time.monotonic() + WAIT_S
        while not (found := re.search(pattern, self.text)):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end_s, self.text
            time.sleep(0.01)
        return found[1]

    @property
    def url(self) -> str:
        return self.wait_for(r"serving \S+ at (\S+)")

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None, **options: Any) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, raw, headers or {})
        with urllib.request.urlopen(request, timeout=WAIT_S, **options) as response:
            return json.loads(response.read())

    def wait_ready(self, **options: Any) -> None:
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:
            try:
                self.ask("health", **options)
            except urllib.error.HTTPError:
                time.sleep(0.02)
            else:
                return


@contextmanager
def serving(path: Path, *words: object, environ: dict[str, str] | None = None) -> Iterator[Served]:
    command = [sys.executable, "-m", "gemmafile", "serve", path, "--backend", "reference", "-c", "512", *words]
    process = subprocess.Popen(
        [*map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "HOME": "/nonexistent", **(environ or {})},
    )  # fmt: skip
    served = Served(process)

    def listen() -> None:
        assert process.stderr is not None
        served.said.extend(process.stderr)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield served
    finally:
        process.kill()
        process.wait(WAIT_S)
        listener.join(WAIT_S)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


LONG = {"prompt": "the man", "n_predict": 400, "ignore_eos": True, "stream": True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_lets_answers_finish(tiny_path: Path, number: signal.Signals) -> None:
    with serving(tiny_path, "--port", "0") as served:
        served.wait_ready()
        raw = json.dumps({**LONG, "n_predict": 100}).encode()
        with urllib.request.urlopen(urllib.request.Request(served.url + "completion", raw), timeout=WAIT_S) as answer:
            answer.readline()
            served.process.send_signal(number)
            last = [line for line in answer.read().split(b"\n") if line][-1]
        assert json.loads(last.removeprefix(b"data: "))["tokens_predicted"] == 100
        assert served.process.wait(WAIT_S) == 0, served.text
        assert served.process.stdout is not None
        assert served.process.stdout.read() == ""


def test_answers_that_outlast_the_deadline_are_told(tiny_path: Path) -> None:
    with serving(tiny_path, "--port", "0", "--stop-timeout", "0.3", "-c", "100k") as served:
        served.wait_ready()
        raw = json.dumps({**LONG, "n_predict": 90_000}).encode()
        with urllib.request.urlopen(urllib.request.Request(served.url + "completion", raw), timeout=WAIT_S) as answer:
            answer.readline()
            start_s = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            last = [line for line in answer.read().split(b"\n") if line][-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == 503
        assert served.process.wait(WAIT_S) == 0
        assert time.monotonic() - start_s < 10


def test_off_loopback_a_key_is_made(tiny_path: Path) -> None:
    with serving(tiny_path, "--listen", "0.0.0.0:0") as served:
        key = served.wait_for(r"API key (\S+)")
        served.wait_ready()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            served.ask("props")
        assert served.ask("props", headers={"Authorization": f"Bearer {key}"})["total_slots"] == 16
        assert served.text.count(key) == 2  # by itself, and in the address for a browser
    with serving(tiny_path, "--host", "0.0.0.0", "--port", "0", "--api-key", "mine") as served:
        assert served.url.startswith("http://127.0.0.1:")
        assert "mine" not in served.text


def test_the_next_port_is_taken_and_told(tiny_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(tiny_path, "--port", port) as served:
            assert served.process.wait(WAIT_S) == 2
        assert f"port {port}" in served.text
        assert "Traceback" not in served.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parallel", "0"], "--parallel"), (["--ssl-key-file", "x"], "--ssl-cert-file"),
        (["--port", "70000"], "--port"), (["--api-prefix", "llm"], "--api-prefix"),
        (["--filter", "nothing"], "no filter"), (["-b", "0"], "--batch-size"),
        (["--ssl-key-file", "x", "--ssl-cert-file", "y"], "--ssl"), (["--api-key-file", "/nowhere/k"], "/nowhere/k"),
        (["--paralel", "1"], "did you mean --parallel?"), (["--chat-template", "{{"], "--chat-template"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_an_exit_code(tiny_path: Path, words: list[str], message: str) -> None:
    with serving(tiny_path, *(words if "--port" in words else ["--port", "0", *words])) as served:
        assert served.process.wait(WAIT_S) in (1, 2)
    assert message in served.text
    assert "Traceback" not in served.text


def test_https(tiny_path: Path, tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*made, "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no openssl to make a certificate with")
    with serving(tiny_path, "--port", "0", "--ssl-key-file", key, "--ssl-cert-file", cert) as served:
        assert served.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        context.check_hostname = False
        served.wait_ready(context=context)


def test_run_with_the_flag_serves_too(tiny_path: Path, command: Runner) -> None:
    done = command("run", tiny_path, "--port", "9999", "-p", "x", "-n", "1", "--backend", "reference")
    assert done.code == 0
    assert "--port is accepted and does nothing: it is for a server" in done.err
    words = [sys.executable, "-m", "gemmafile", "run", tiny_path, "--server", "--port", "70000"]
    run = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert (run.returncode, "--port is 70000" in run.stderr) == (2, True)


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({}, "linux", False), ({"DISPLAY": ":0", "PATH": "/nonexistent"}, "linux", False),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "x"}, "linux", False), ({"BROWSER": "x"}, "linux", True),
        ({}, "darwin", True), ({"SSH_TTY": "x"}, "darwin", False),
    ],
)  # fmt: skip
def test_a_browser_is_opened_where_somebody_sees_it(environ: dict[str, str], platform: str, expected: bool) -> None:
    assert has_browser(environ, platform) is expected


def test_the_browser_gets_the_address_and_nobody_waits_for_it(tiny_path: Path, tmp_path: Path) -> None:
    script = tmp_path / "browser"
    script.write_text(
        f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/url.part && mv {tmp_path}/url.part {tmp_path}/url\nsleep 2\n'
    )
    script.chmod(0o755)
    with serving(tiny_path, "--port", "0", environ={"BROWSER": f"{script} %s"}) as served:
        served.wait_ready()
        end_s = time.monotonic() + WAIT_S
        while not (tmp_path / "url").exists() and time.monotonic() < end_s:
            time.sleep(0.02)
        assert (tmp_path / "url").read_text() == served.url
    (tmp_path / "url").unlink()
    with serving(tiny_path, "--port", "0", "--nobrowser", environ={"BROWSER": f"{script} %s"}) as served:
        served.wait_ready()
        time.sleep(0.3)
        assert not (tmp_path / "url").exists()


# --- service ---------------------------------------------------------------------------------------------------------


def test_a_unit_for_systemd(command: Runner, tiny_path: Path) -> None:
    done = command("service", "--systemd", tiny_path, "--port", "81")
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if line.startswith("ExecStart=")]
    assert line.endswith(f'"-m" "gemmafile" "serve" "{tiny_path}" "--port" "81" "--nobrowser"')
    assert 'ExecStart="a" "b\\"c\\\\d" "100%%" "$$x"' in systemd(["a", 'b"c\\d', "100%", "$x"])


def test_a_property_list_for_launchd(command: Runner, tiny_path: Path) -> None:
    values = plistlib.loads(command("service", "--launchd", tiny_path).out.encode())
    assert values["ProgramArguments"][1:] == ["-m", "gemmafile", "serve", str(tiny_path), "--nobrowser"]


def test_a_service_finds_its_files_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m.gguf", "keys", "list", "lora", "small"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    words = [
        "m.gguf",
        "--alias",
        "small",
        "--api-key-file=keys",
        "--slot_save_path",
        "not/yet",
        "--filter",
        "words:list",
    ]
    words += ["--lora", "lora", "--lora-scaled=lora:0.5", "-sys", "list", "-fa", "on", "-f", "-", "--host", "keys"]
    here = str(tmp_path)
    assert absolute_paths(words) == [
        f"{here}/m.gguf", "--alias", "small", f"--api-key-file={here}/keys", "--slot_save_path", f"{here}/not/yet",
        "--filter", f"words:{here}/list", "--lora", f"{here}/lora", f"--lora-scaled={here}/lora:0.5", "-sys", "list",
        "-fa", "on", "-f", "-", "--host", "keys",
    ]  # fmt: skip


def test_service_without_a_model(command: Runner) -> None:
    assert command("service").out.startswith("usage: gemmafile service")
    assert command("service", "--systemd").code == 2
    assert command("service", "--port", "81").code == 2
    done = command("service", "model.gguf", "--metrcs")
    assert (done.code, done.out) == (2, "")
    assert "did you mean --metrics?" in done.err
    assert '"-hf" "a/b" "-hff" "x.gguf"' in command("service", "--systemd", "-hf", "a/b", "-hff", "x.gguf").out


# --- chat --connect --------------------------------------------------------------------------------------------------


class FakeServer(BaseHTTPRequestHandler):
    """Says OpenAI's words, and keeps what it was asked."""

    asked: list[Any] = []  # noqa: RUF012  one for all, emptied by each test
    headers_seen: list[str | None] = []  # noqa: RUF012
    status, ends_early = 200, False

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(b'{"data": [{"id": "a-model"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self.headers_seen.append(self.headers["Authorization"])
        if self.status != 200:
            self._send(b'{"error": {"message": "no such model"}}')
            return
        last = body["messages"][-1]["content"]
        chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in ("You said ", last, ".")]
        chunks.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}})
        text = ": ping\n\n" + "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        self._send((text if self.ends_early else text + "data: [DONE]\n\n").encode())

    def _send(self, raw: bytes) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(FakeServer, "asked", [])
    monkeypatch.setattr(FakeServer, "headers_seen", [])
    with HTTPServer(("127.0.0.1", 0), FakeServer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(WAIT_S)


def test_a_chat_with_another_server(command: Runner, fake: str) -> None:
    words = ["chat", "--connect", fake, "-sys", "Be brief.", "--temp", "0.1", "-n", "9", "--api-key", "k"]
    done = command(*words, stdin="one\n/undo\ntwo\nthree\n/stats\n")
    assert (done.code, done.out) == (0, "You said one.\nYou said two.\nYou said three.\n"), done.err
    assert "answer: 4 tokens" in done.err
    last = FakeServer.asked[-1]
    assert [m["content"] for m in last["messages"]] == ["Be brief.", "two", "You said two.", "three"]
    assert (last["model"], last["temperature"], last["max_tokens"]) == ("a-model", 0.1, 9)
    assert "top_p" not in last
    assert FakeServer.headers_seen[-1] == "Bearer k"


def test_one_question_to_another_server(command: Runner, fake: str) -> None:
    done = command("chat", "--connect", f"{fake}/v1/", "-m", "x", "-st", "-p", "hi")
    assert (done.code, done.out) == (0, "You said hi.\n")


def test_a_key_of_any_letters(command: Runner, fake: str) -> None:
    done = command("chat", "--connect", fake, "-m", "x", "-st", "-p", "hi", "--api-key", "ключ")
    assert (done.code, done.out) == (0, "You said hi.\n"), done.err
    assert (FakeServer.headers_seen[-1] or "").encode("latin-1") == "Bearer ключ".encode()
    assert command("chat", "--connect", fake, "--api-key", "a\nb", stdin="").code == 2


def test_what_another_server_refuses(command: Runner, fake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeServer, "status", 404)
    done = command("chat", "--connect", fake, "-m", "x", stdin="hi\n")
    assert done.code == 1
    assert "404 Not Found: no such model" in done.err
    for url in ("ftp://x", "http://", "http://127.0.0.1:99999"):
        assert command("chat", "--connect", url, stdin="").code == 2
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        done = command("chat", "--connect", f"127.0.0.1:{port}", stdin="")
        assert (done.code, "does not answer" in done.err) == (1, True)


def test_chat_without_a_server_is_a_conversation(command: Runner, tiny_path: Path) -> None:
    done = command("chat", tiny_path, "--backend", "reference", "-n", "1", stdin="/system Hi\n/system\n")
    assert (done.code, "Hi" in done.err) == (0, True)
