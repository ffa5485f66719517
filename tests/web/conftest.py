"""A server of a small model for the tests of routes; a browser and a server of a real model for those of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, ServeSettings
from tests.server.running import Running, running
from tests.tiny import write_small
from tests.web.browsing import Watch, chromium, open_page


@pytest.fixture(scope="session")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("page") / "small.gguf", "llama")


@pytest.fixture(scope="session")
def server(small_path: Path) -> Iterator[Running]:
    with running(small_path, ServeSettings(alias="small & <b>")) as server:
        yield server


@pytest.fixture(scope="session")
def chatty(smollm2_path: Path) -> Iterator[Running]:
    """SmolLM2: it answers, briefly and always the same."""
    context = ContextSettings(context=2048)
    sampling, run = SamplingSettings(temperature=0.0), RunSettings(n_predict=40)
    with running(smollm2_path, None, context, sampling, run, wait_s=280) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def watch(chatty: Running) -> Iterator[Watch]:
    """What the pages of a test do; at its end: they asked nobody but the server, and complained of nothing."""
    seen = Watch()
    yield seen
    foreign = [url for _, url in seen.requests if not url.startswith((chatty.url + "/", "blob:", "data:"))]
    assert foreign == []
    assert seen.complaints == []


@pytest.fixture
def page(browser: Any, chatty: Running, watch: Watch) -> Iterator[Any]:
    opened = open_page(browser, chatty, watch)
    yield opened
    opened.context.close()
