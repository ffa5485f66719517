"""--private: nothing is written to a disk, and what lay in memory is gone when the program is, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gemmafile.cli.main import main
from tests.pack.conftest import Packed, start

MEMORY = Path(f"/dev/shm/gemmafile-{os.getuid()}")

pytestmark = pytest.mark.skipif(
    not os.access("/dev/shm", os.W_OK) or bool(os.statvfs("/dev/shm").f_flag & os.ST_NOEXEC),
    reason="there is no folder in memory here that programs may run from",
)


def left(process: subprocess.Popen[bytes]) -> list[Path]:
    """What a process has in memory; others may have something there too, and take the folder away when they end."""
    try:
        return [place for place in MEMORY.iterdir() if place.name.startswith(f"private-{process.pid}-")]
    except FileNotFoundError:
        return []


def wait_until_gone(process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + 60
    while left(process) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not left(process)


def begin(path: Path, home: Path, *words: str) -> subprocess.Popen[bytes]:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "GEMMAFILE_PYTHON": sys.executable}
    command = [path, *words, "--backend", "reference"]
    return subprocess.Popen(
        command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def begin_and_wait(path: Path, home: Path) -> subprocess.Popen[bytes]:
    """A private process, once it has unpacked itself: it waits for what stdin says."""
    process = begin(path, home, "--private", "--cli")
    end_s = time.monotonic() + 60
    while not any(list(place.glob("env-*/seal.json")) for place in left(process)):
        assert time.monotonic() < end_s
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_a_private_start_leaves_nothing(packed: Packed, tmp_path: Path) -> None:
    with begin(packed.path, tmp_path, "--private", "-p", "Once", "-n", "2") as process:
        assert process.wait(60) == 0
        assert not left(process)  # the program waits for it
    assert not list(tmp_path.iterdir())


def test_the_files_own_arguments_may_ask_for_it(copy: Path, tmp_path: Path) -> None:
    assert main(["edit", str(copy), "--quiet", "--set-args", "--private --temp 0 ..."]) == 0
    home = tmp_path / "home"
    home.mkdir()
    with begin(copy, home, "-p", "Once", "-n", "2") as process:
        assert process.wait(60) == 0
        assert not left(process)
    assert not list(home.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_one_leaves_nothing(packed: Packed, tmp_path: Path, number: signal.Signals) -> None:
    with begin_and_wait(packed.path, tmp_path) as process:
        process.send_signal(number)
    wait_until_gone(process)
    assert not list(tmp_path.iterdir())


def test_what_was_killed_with_its_guard_goes_at_the_next_start(packed: Packed, tmp_path: Path) -> None:
    with begin_and_wait(packed.path, tmp_path) as process:
        guards = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [process.pid, *map(int, guards)]:
            os.kill(pid, signal.SIGKILL)
    for place in left(process):
        with suppress(FileNotFoundError):  # any other start may have been the next one
            os.utime(place, (0, 0))
    assert start(packed.path, "--version", home=tmp_path).returncode == 0
    wait_until_gone(process)


def test_one_in_use_is_left_alone(packed: Packed, tmp_path: Path) -> None:
    with begin_and_wait(packed.path, tmp_path) as process:
        (place,) = left(process)
        os.utime(place, (0, 0))
        assert start(packed.path, "--version", home=tmp_path).returncode == 0
        assert place.exists()
        process.kill()
    wait_until_gone(process)
