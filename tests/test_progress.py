"""Progress: what a terminal and a log get to see."""

from __future__ import annotations

import io
import time

import pytest

from gemmafile import progress as progress_module
from gemmafile.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SILENT_S", "REDRAW_S", "LOG_S"):
        monkeypatch.setattr(progress_module, name, 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_terminal_gets_one_line_and_is_left_clean() -> None:
    stream = Terminal()
    with Progress("reading", total=4, stream=stream) as progress:
        for _ in range(4):
            progress.advance()
    assert "reading: 2/4 (50%)" in stream.getvalue()
    assert stream.getvalue().rpartition("\r")[2] == ""
    assert stream.getvalue().split("\r")[-2].strip() == ""
    assert "\n" not in stream.getvalue()


@pytest.mark.usefixtures("at_once")
def test_a_log_gets_whole_lines_and_the_time_it_took() -> None:
    stream = io.StringIO()
    with Progress("fetching", total=3_000_000, bytes=True, stream=stream) as progress:
        progress.advance(1_500_000)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "fetching: 2/3 MB (50%)"
    assert lines[-1].startswith("fetching: done in ")


def test_quick_work_is_not_worth_a_word() -> None:
    stream = io.StringIO()
    start = time.monotonic()
    with Progress("quick", total=1, stream=stream) as progress:
        progress.advance()
    assert time.monotonic() - start < progress_module.SILENT_S
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("at_once")
def test_quiet_is_quiet() -> None:
    stream = Terminal()
    with Progress("reading", quiet=True, stream=stream) as progress:
        progress.advance()
    assert stream.getvalue() == ""
