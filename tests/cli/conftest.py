"""A small model for all tests of the command line, and a way to run a command in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from gemmafile.cli.main import main
from tests.tiny import write_small


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


class Runner(Protocol):
    def __call__(self, *words: object, stdin: str | bytes = "") -> Done: ...


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No flag of the person who runs the tests, and nobody's history file."""
    import os

    for name in [name for name in os.environ if name.startswith(("LLAMA_", "GEMMAFILE_DEBUG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    """Runs `gemmafile WORDS` here; stdin is a file, stdout and stderr are no terminals."""

    def run(*words: object, stdin: str | bytes = "") -> Done:
        (tmp_path / "stdin").write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
        capfd.readouterr()
        with open(tmp_path / "stdin", encoding="utf-8") as stream:
            monkeypatch.setattr("sys.stdin", stream)
            code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return run
