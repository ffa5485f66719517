"""Streaming chats by the dozen: this server beside llama-server, in turn, in the same minutes.

    python -m benchmarks.serving MODEL [--clients 1,4,16] [--seconds 20] [--rounds 2] [--rival PATH/llama-server]

Every client asks one question after another and reads the answer as it streams: temperature 0, 64 tokens whatever the
model would stop at. Each of our answers has to be, to the byte, what the same question got alone: exit 1 if one is not.
Columns: tokens of all clients together per second, and the time to the first token, half and 95% of requests.
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPICS = (
    "why the sky is blue", "how bread rises", "what a prime number is", "how to mend a bicycle tyre",
    "why cats purr", "what the tides are", "how a violin makes sound", "what yeast does",
    "how to read a map", "why leaves turn red", "what a haiku is", "how glass is made",
    "why we dream", "what makes a rainbow", "how to plant a tree", "what gravity does",
)  # fmt: skip
N_TOKENS = 64
START_S, ANSWER_S = 120, 120


@dataclass
class Load:
    """What one spell of load gave. `firsts` seconds to the first token · `wrong` answers that differ from alone"""

    n_tokens: int = 0
    seconds: float = 0.0
    firsts: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    n_failed: int = 0

    @property
    def rate(self) -> float:
        return self.n_tokens / self.seconds

    def first_s(self, share: float) -> float:
        return sorted(self.firsts)[min(len(self.firsts) - 1, int(share * len(self.firsts)))]


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    pid: int


@contextlib.contextmanager
def serving(name: str, command: list[str], port: int) -> Iterator[Server]:
    """A server that answers /health, ended afterwards. Raises RuntimeError with its last words."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_S
            while not is_healthy(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{name} did not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield Server(name, port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def is_healthy(port: int) -> bool:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def question(number: int) -> str:
    return f"Please tell me in a few words {TOPICS[number % len(TOPICS)]}. This is question number {number}."


async def ask(port: int, text: str) -> tuple[str, int, float, float]:
    """(answer, tokens, seconds to the first token, seconds in all). Raises RuntimeError for anything but an answer."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": text}], "stream": True, "temperature": 0, "max_tokens": N_TOKENS,
            "ignore_eos": True, "stream_options": {"include_usage": True},
        }
    ).encode()  # fmt: skip
    start_s = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        first_s, events = 0.0, []
        status = await reader.readline()
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                events.append(line)
                if not first_s and b'"content":"' in line.replace(b'": "', b'":"').replace(b'"content":""', b""):
                    first_s = time.perf_counter() - start_s
    finally:
        writer.close()
    if b" 200 " not in status:
        raise RuntimeError(status.decode(errors="replace"))
    pieces, n_tokens = [], 0
    for event in events:
        content = json.loads(event[6:])
        if content.get("error"):
            raise RuntimeError(str(content["error"]))
        for choice in content["choices"]:
            pieces.append(choice["delta"].get("content") or "")
        if content.get("usage"):
            n_tokens = content["usage"]["completion_tokens"]
    return "".join(pieces), n_tokens, first_s, time.perf_counter() - start_s


async def load(server: Server, n_clients: int, seconds: float, alone: dict[str, str] | None) -> Load:
    """`n_clients` ask without a pause for so long; answers that have begun are waited for, and counted."""
    result, number, stop_s = Load(), iter(range(1 << 30)), time.perf_counter() + seconds
    start_s = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < stop_s:
            text = question(next(number) % 64)
            try:
                answer, n_tokens, first_s, _ = await asyncio.wait_for(ask(server.port, text), ANSWER_S)
            except (RuntimeError, OSError, ValueError, TimeoutError):
                result.n_failed += 1
                continue
            result.n_tokens += n_tokens
            result.firsts.append(first_s)
            if alone is not None and alone.setdefault(text, answer) != answer:
                result.wrong.append(text)

    await asyncio.gather(*(client() for _ in range(n_clients)))
    result.seconds = time.perf_counter() - start_s
    return result


async def answers_alone(server: Server, n: int) -> dict[str, str]:
    """Each question's answer while nothing else is asked."""
    return {question(i): (await ask(server.port, question(i)))[0] for i in range(n)}


def resident_mb(pid: int) -> float:
    """Memory of a process and its children, pages of files not counted."""
    total, pids = 0, [pid]
    for each in pids:
        with contextlib.suppress(OSError, KeyError):  # gone, or a zombie
            pids += [int(p) for p in Path(f"/proc/{each}/task/{each}/children").read_text().split()]
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines())
            total += int(fields["RssAnon"].split()[0])
    return total / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rival", default=str(ROOT / ".llamacpp/bin/llama-server"))
    parser.add_argument("--only", choices=("ours", "theirs"), help="do not start the other")
    args = parser.parse_args()
    clients = [int(n) for n in args.clients.split(",")]
    parallel, threads = str(max(16, *clients)), str(args.threads)
    ports = free_port(), free_port()
    ours = [sys.executable, "-m", "gemmafile", "serve", args.model, "--port", str(ports[0]), "--nobrowser"]
    ours += ["-np", parallel, "-t", threads, "-c", str(1024 * int(parallel))]
    theirs = [args.rival, "-m", args.model, "--port", str(ports[1]), "-np", parallel, "-t", threads]
    theirs += ["-c", str(1024 * int(parallel)), "--no-webui"]
    loads: dict[tuple[str, int], list[Load]] = {}
    with contextlib.ExitStack() as stack:
        servers = []
        if args.only != "theirs":
            servers.append(stack.enter_context(serving("gemmafile", ours, ports[0])))
        if args.only != "ours" and Path(args.rival).exists():
            servers.append(stack.enter_context(serving("llama-server", theirs, ports[1])))
        elif args.only != "ours":
            print(f"no rival: there is no {args.rival}", file=sys.stderr)
        alone: dict[str, str] = {}
        for server in servers:
            answers = asyncio.run(answers_alone(server, 64 if server.name == "gemmafile" else 2))
            if server.name == "gemmafile":
                alone = answers
        memory = {server.name: [resident_mb(server.pid)] for server in servers}
        for _ in range(args.rounds):
            for n in clients:
                for server in servers:
                    known = alone if server.name == "gemmafile" else None
                    spell = asyncio.run(load(server, n, args.seconds, known))
                    loads.setdefault((server.name, n), []).append(spell)
                    memory[server.name].append(resident_mb(server.pid))
                    print(
                        f"{server.name:<13} {n:>3} clients  {spell.rate:8.1f} tokens/s   first token "
                        f"{1e3 * spell.first_s(0.5):7.0f} ms, 95% {1e3 * spell.first_s(0.95):7.0f} ms   "
                        f"{len(spell.firsts)} answers, {spell.n_failed} failed, {len(spell.wrong)} wrong   "
                        f"{memory[server.name][-1]:.0f} MB",
                        flush=True,
                    )
    report: dict[str, object] = {"model": Path(args.model).name, "memory_mb": memory}
    for n in clients:
        rows = {name: loads[name, n] for name in memory}
        entry: dict[str, float] = {}
        for name, spells in rows.items():
            entry[f"{name}_tokens_per_s"] = round(statistics.median(s.rate for s in spells), 1)
            entry[f"{name}_first_p95_ms"] = round(1e3 * statistics.median(s.first_s(0.95) for s in spells), 1)
        if len(rows) == 2:
            entry["ratio"] = round(statistics.median(a.rate / b.rate for a, b in zip(*rows.values(), strict=True)), 3)
        report[f"clients_{n}"] = entry
    wrong = sum(len(s.wrong) + s.n_failed for (name, _), spells in loads.items() if name == "gemmafile" for s in spells)
    print(json.dumps(report))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
