"""A server of a small model for the tests of routes; a browser and a server of a real model for those of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmafile.settings import ServeSettings
from tests.server.running import Running, running
from tests.tiny import write_small


@pytest.fixture(scope="session")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("page") / "small.gguf", "llama")


@pytest.fixture(scope="session")
def server(small_path: Path) -> Iterator[Running]:
    with running(small_path, ServeSettings(alias="small & <b>")) as server:
        yield server
