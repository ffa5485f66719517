"""Chromium on the page of a running server, watched: what it asks of whom, what it complains of."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Running

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
"""Of the system, for no browser is downloaded."""

TIMEOUT_MS = 90_000


@dataclass
class Watch:
    """`requests` (method, address) of all pages · `complaints` of their consoles"""

    requests: list[tuple[str, str]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def see(self, page: Any) -> None:
        page.on("request", lambda request: self.requests.append((request.method, request.url)))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no Chromium here")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(
    browser: Any, server: Running, watch: Watch, path: str = "/", started: bool = True, **options: Any
) -> Any:
    """A page in a profile of its own."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    watch.see(page)
    page.goto(server.url + path)
    if started:
        page.wait_for_selector("html[data-started]", state="attached")
    return page


def ask(page: Any, text: str, wait: bool = True) -> None:
    """Send a message; wait for the end of its answer."""
    page.fill("#message-box", text)
    page.press("#message-box", "Enter")
    if wait:
        wait_for_end(page)


def wait_for_end(page: Any) -> None:
    """Wait for the end of one answer more than last time."""
    count = "Number(document.documentElement.dataset.answers ?? 0)"
    until(page, f"{count} > (window.seenAnswers ?? 0)")
    page.evaluate(f"window.seenAnswers = {count}")


def set_grammar(page: Any, grammar: str) -> None:
    """Answers of this page's conversation follow a GBNF grammar from now on."""
    page.click("#settings-open")
    page.click("text=Form of the answer")
    page.select_option("#set-output", "gbnf")
    page.fill("#set-grammar", grammar)


def until(page: Any, condition: str) -> None:
    """Wait for a JavaScript expression to be true. (Playwright's own way needs eval, which the page forbids.)"""
    end = time.monotonic() + TIMEOUT_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not in time: {condition}"
        page.wait_for_timeout(40)


def answers(page: Any) -> list[str]:
    return [body.inner_text() for body in page.query_selector_all(".message.assistant .body")]


def button(page: Any, label: str, role: str = "assistant", at: int = -1) -> Any:
    """The button of a message."""
    return page.query_selector_all(f".message.{role} [aria-label={json.dumps(label)}]")[at]


def answer_with(page: Any, pieces: Sequence[str], progress: tuple[int, int] | None = None) -> list[Any]:
    """Have the next chats answered by these pieces of text, at once; returns where their requests will stand."""
    asked: list[Any] = []
    chunks: list[dict[str, Any]] = []
    if progress is not None:
        done, total = progress
        chunks.append({"choices": [], "prompt_progress": {"processed": done, "total": total, "cache": 0}})
    chunks += [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}], "timings": {"predicted_n": 3, "prompt_n": 1}})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def fulfil(route: Any) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", fulfil)
    return asked


def npm_package(name: str, version: str, file: str) -> Path:
    """A file of a package of npm's, fetched once into build/npm/; the test is skipped where that cannot be."""
    folder = Path(__file__).parents[2] / "build" / "npm" / f"{name}-{version}"
    found = folder / "node_modules" / name / file
    if not found.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("there is no npm here")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
        done = subprocess.run([*command, f"{name}@{version}"], capture_output=True, text=True, timeout=240, check=False)
        if done.returncode != 0 or not found.exists():
            pytest.skip(f"npm does not give {name}: {done.stderr.strip()[-200:]}")
    return found
