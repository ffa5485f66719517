"""Small models, and a server of one for all tests that change nothing about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmafile.settings import ContextSettings
from tests.server.running import Running, running
from tests.tiny import write_small


@pytest.fixture(scope="session")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-shaped, with a byte-level vocabulary: it has no chat template of its own."""
    return write_small(tmp_path_factory.mktemp("served") / "small.gguf", "llama")


@pytest.fixture(scope="session")
def server(small_path: Path) -> Iterator[Running]:
    with running(small_path) as server:
        yield server


@pytest.fixture(scope="session")
def roomy(small_path: Path) -> Iterator[Running]:
    """With room for descriptions of tools, which take many tokens of so small a vocabulary."""
    with running(small_path, context=ContextSettings(threads=1, context=2048)) as server:
        yield server
