"""A hub on loopback: repositories from folders, with the requests that huggingface-hub makes."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`repos`  owner/name -> folder · `gated`  names that need the token · `cut`  bytes after which the next download
    of a file breaks off · `corrupt`  names of files that are sent with a wrong byte"""

    repos: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    cut: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.state.requests.append((self.command, path, self.headers.get("Range", "")))
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repo, rest = "/".join(parts[:2]), parts[2:]
        folder = self.state.repos.get(repo)
        if folder is None:
            return self.send({}, 401, {"X-Error-Code": "RepoNotFound"})
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        if parts[0] == "api":
            if rest[:1] == ["tree"]:
                return self.send([self.entry(folder, name) for name in files])
            if rest[:1] == ["revision"] and rest[1] not in ("main", "float16", COMMIT):
                return self.send({}, 404, {"X-Error-Code": "RevisionNotFound"})
            siblings = [self.sibling(folder, name) for name in files]
            return self.send({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": []})
        if repo in self.state.gated and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            return self.send({}, 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        return self.send_file(folder / "/".join(rest[2:]))

    def sibling(self, folder: Path, name: str) -> dict[str, Any]:
        raw = (folder / name).read_bytes()
        entry: dict[str, Any] = {"rfilename": name, "size": len(raw), "blobId": hashlib.sha1(raw).hexdigest()}
        if name.endswith((".safetensors", ".gguf", ".model")):
            entry["lfs"] = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 134}
        return entry

    def entry(self, folder: Path, name: str) -> dict[str, Any]:
        sibling = self.sibling(folder, name)
        entry = {"type": "file", "path": name, "size": sibling["size"], "oid": sibling["blobId"]}
        if "lfs" in sibling:
            entry["lfs"] = {**sibling["lfs"], "oid": sibling["lfs"]["sha256"]}
        return entry

    def send_file(self, path: Path) -> None:
        if not path.is_file():
            return self.send({}, 404, {"X-Error-Code": "EntryNotFound"})
        raw = path.read_bytes()
        is_large = path.name.endswith((".safetensors", ".gguf", ".model"))
        etag = hashlib.sha256(raw).hexdigest() if is_large else hashlib.sha1(raw).hexdigest()
        if path.name in self.state.corrupt:
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        begin = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            begin = int(asked[6:].split("-")[0] or 0)
        body = raw[begin:]
        self.send_response(206 if asked else 200)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        headers |= {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream"}
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{len(raw) - 1}/{len(raw)}"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = self.state.cut.pop(path.name, None)
        if cut is not None:
            self.wfile.write(body[:cut])
            self.close_connection = True
            return None
        self.wfile.write(body)
        return None

    def send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (
            {"Content-Length": str(len(raw)), "Content-Type": "application/json"} | (headers or {})
        ).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)
