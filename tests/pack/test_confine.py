"""The confined process may not write, connect or start programs, on any thread; what it may is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemmafile.cli.main import main
from gemmafile.pack.confine import has_seccomp, landlock_version
from tests.pack.conftest import Packed

pytestmark = pytest.mark.skipif(not has_seccomp(), reason="seccomp filters are for Linux on x86-64 and aarch64")

PROGRAM = """
import fcntl, os, socket, subprocess, sys, termios, threading
from pathlib import Path
from gemmafile.pack import confine
allowed, forbidden, port, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def attempts():
    def attempt(name, act):
        try:
            act()
            results.append(f"{name} allowed")
        except OSError as error:
            results.append(f"{name} refused")
    results = []
    attempt("read", lambda: forbidden.parent.joinpath("there").read_text())
    attempt("new", lambda: forbidden.write_text("x"))
    attempt("change", lambda: forbidden.parent.joinpath("there").open("a"))
    attempt("rename", lambda: os.rename(forbidden.parent / "there", forbidden.parent / "gone"))
    attempt("below", lambda: (allowed / f"{threading.get_ident()}").write_text("x"))
    attempt("connect", lambda: socket.create_connection(("127.0.0.1", port), timeout=2))
    attempt("exec", lambda: subprocess.run(["/bin/true"], check=True))
    attempt("mode", lambda: os.chmod(forbidden.parent, 0o700))
    attempt("type", lambda: fcntl.ioctl(sys.stdin, termios.TIOCSTI, b"x"))
    attempt("size", lambda: fcntl.ioctl(sys.stdin, termios.TIOCGWINSZ, bytes(8)))
    return results

go, before = threading.Event(), []
def work():
    go.wait()
    before.append(attempts())
if step == "files":
    confine.confine_files([allowed])
early = threading.Thread(target=work)
early.start()
if step == "calls":
    confine.confine_calls(may_write=False)
go.set()
early.join()
for number in os.listdir("/proc/self/task"):
    status = Path(f"/proc/self/task/{number}/status").read_text()
    print("status", *(line.split()[1] for line in status.splitlines() if line.startswith(("NoNewPrivs", "Seccomp:"))))
for results in (attempts(), *before):
    print(*results, sep=", ")
"""


def run(step: str, tmp_path: Path, stdin: int = subprocess.DEVNULL) -> list[str]:
    import socket

    (tmp_path / "allowed").mkdir(exist_ok=True)
    (tmp_path / "there").write_text("text")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = [tmp_path / "allowed", tmp_path / "new", port, step]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60, check=False,
            env={"PYTHONPATH": "src", "PATH": "/usr/bin:/bin"}, stdin=stdin,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(landlock_version() < 4, reason="this kernel's Landlock does not know TCP")
def test_files_are_confined_on_threads_made_later(tmp_path: Path) -> None:
    lines = [line for line in run("files", tmp_path) if "read" in line]
    expected = "read allowed, new refused, change refused, rename refused, below allowed, connect refused, exec allowed"
    lines = [line.partition(", mode")[0] for line in lines]
    assert lines == [expected, expected]


def test_calls_are_confined_on_all_threads(tmp_path: Path) -> None:
    master, terminal = os.openpty()
    lines = run("calls", tmp_path, terminal)
    os.close(master)
    os.close(terminal)
    expected = "read allowed, new refused, change refused, rename refused, below refused, connect refused, exec refused"
    expected += ", mode refused, type refused, size allowed"
    assert [line for line in lines if "read" in line] == [expected, expected]
    assert {line for line in lines if line.startswith("status")} == {"status 1 2"}


def test_without_confinement_all_of_it_is_possible(tmp_path: Path) -> None:
    said = "\n".join(run("none", tmp_path))
    assert all(
        f"{what} allowed" in said for what in ("read", "new", "change", "rename", "below", "connect", "exec", "mode")
    )


def test_a_run_says_what_is_confined(packed: Packed, tmp_path: Path) -> None:
    def details(*words: str) -> str:
        command = [sys.executable, "-m", "gemmafile", "-m", str(packed.model), "-p", "x", "-n", "2", "-v", *words]
        environ = {
            "PYTHONPATH": "src",
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "GEMMAFILE_CACHE": str(tmp_path),
        }
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "seccomp, all" in details("--backend", "reference")
    assert "not at all: --unsecure" in details("--backend", "reference", "--unsecure")
    before = sorted(tmp_path.rglob("*"))
    details("--backend", "reference", "--private")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_function_call_confines_nobody(packed: Packed, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["-m", str(packed.model), "-p", "x", "-n", "1", "--backend", "reference"]) == 0
    (tmp_path / "still").write_text("possible")
