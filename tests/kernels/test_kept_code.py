"""Machine code kept on disk: loaded when whole and ours, compiled again when not, shared by processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from gemmafile.kernels import kept, targets
from gemmafile.pack.confine import has_seccomp

NAME = "pointwise.add"


def run(code: str, folder: Path, **environment: str) -> str:
    """A fresh process with its cache in `folder`; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "GEMMAFILE_CACHE": str(folder), **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = """
import sys
from gemmafile.kernels.compile import kernel_addresses
lines = []
kernel_addresses(["pointwise.add"], lines.append)
print(len(lines), "numba" in sys.modules, "llvmlite" in sys.modules)
"""


def kept_file(folder: Path) -> Path:
    (path,) = folder.rglob(f"{NAME}.o")
    return path


def test_a_second_start_needs_no_compiler(tmp_path: Path) -> None:
    assert run(LOAD, tmp_path).split() == ["1", "True", "True"]
    assert run(LOAD, tmp_path).split() == ["0", "False", "False"]
    for folder in (kept_file(tmp_path).parent, kept_file(tmp_path).parent.parent):
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", [0.0, 0.3, 0.99])
def test_damaged_code_is_compiled_again_not_run(tmp_path: Path, place: float) -> None:
    run(LOAD, tmp_path)
    path = kept_file(tmp_path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * (len(whole) - 1))] ^= 1
    path.write_bytes(damaged)
    assert run(LOAD, tmp_path).split()[0] == "1"
    assert path.read_bytes()[:60] == whole[:60]


def test_code_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    kept_file(tmp_path).chmod(0o666)
    assert run(LOAD, tmp_path).split()[0] == "1"


def test_other_sources_or_cpu_mean_another_folder(tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    folders = set(tmp_path.glob("kernels/*/*"))
    assert [folder.parent.name for folder in folders] == [kept.sources()]
    run(LOAD, tmp_path, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx2,+fma,+f16c,+sse2,+bmi2")
    assert len(set(tmp_path.glob("kernels/*/*")) - folders) == 1


def test_a_cache_that_cannot_be_written_costs_a_compilation_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert run(LOAD, blocked).split()[0] == "1"


def test_a_cache_that_cannot_even_be_looked_at_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As that of a user whose home is another's: here its name is too long, which root cannot read either."""
    from gemmafile.cli.main import main

    monkeypatch.setenv("GEMMAFILE_CACHE", str(tmp_path / ("x" * 300)))
    monkeypatch.setattr(kept, "_carried_here", list)
    assert not kept.has_code()
    assert main(["doctor"]) == 0
    assert "not made yet" in capsys.readouterr().out


def test_a_read_only_cache_serves(tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    folder = kept_file(tmp_path).parent
    folder.chmod(0o500)
    try:
        assert run(LOAD, tmp_path).split() == ["0", "False", "False"]
    finally:
        folder.chmod(0o700)


def test_folders_that_others_may_write_are_not_trusted(tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    for folder in (kept_file(tmp_path).parent, kept_file(tmp_path).parent.parent):
        folder.chmod(0o777)
        assert run(LOAD, tmp_path).split()[0] == "1"
        assert folder.stat().st_mode & 0o077 == 0


SEVERAL = """
import sys
from gemmafile.kernels.compile import kernel_addresses
names = ["pointwise.add", "pointwise.softcap", "pointwise.take_outputs", "threads.walk"]
print(len(kernel_addresses(names, print)), "numba" in sys.modules)
"""


def test_several_kernels_are_compiled_by_others(tmp_path: Path) -> None:
    """The process itself stays without the compiler's hundreds of megabytes."""
    assert run(SEVERAL, tmp_path).splitlines() == ["compiling kernels for this CPU (once)", "4 False"]
    assert run(SEVERAL, tmp_path).splitlines() == ["4 False"]


def test_starts_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    environment = {**os.environ, "GEMMAFILE_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    starts = [
        subprocess.Popen([sys.executable, "-c", SEVERAL], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [start.communicate(timeout=120)[0].splitlines()[-1] for start in starts] == ["4 False"] * 2
    assert len(list(tmp_path.rglob("*.o"))) == len(list(tmp_path.rglob("*.o*"))) == 4


def test_a_start_killed_while_compiling_leaves_nothing_broken(tmp_path: Path) -> None:
    environment = {**os.environ, "GEMMAFILE_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", SEVERAL], env=environment, stdout=subprocess.DEVNULL) as start:
        for _ in range(600):
            if start.poll() is not None or list(tmp_path.rglob("*.o")):
                break
            time.sleep(0.05)
        start.send_signal(signal.SIGKILL)
    assert run(SEVERAL, tmp_path).splitlines()[-1] == "4 False"


def test_what_a_dead_process_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMAFILE_CACHE", str(tmp_path))
    monkeypatch.setattr(targets, "native_name", lambda: "native-0")
    folder = tmp_path / "kernels" / kept.sources() / "native-1"
    folder.mkdir(parents=True)
    for name, age_s in (("a.o.dead", 7200), ("b.o.alive", 5), ("c.o", 7200)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age_s,) * 2)
    assert kept.keep("pointwise.add", kept.MachineCode("f", b"code"))
    assert sorted(path.name for path in folder.iterdir()) == ["b.o.alive", "c.o"]


def test_sources_used_longest_ago_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMAFILE_CACHE", str(tmp_path))
    for i in range(12):
        folder = tmp_path / "kernels" / f"{i:016x}"
        (folder / "native-0").mkdir(parents=True)
        os.utime(folder, (1e9 + i,) * 2)
    (tmp_path / "kernels" / "something else").mkdir()
    assert kept.keep("pointwise.add", kept.MachineCode("f", b"code"))
    left = sorted(path.name for path in (tmp_path / "kernels").iterdir())
    newest = [f"{i:016x}" for i in range(12)][-kept.KEPT_SOURCES + 1 :]
    assert left == sorted([*newest, kept.sources(), "something else"])


def test_without_numba_the_reference_answers_and_says_so(tmp_path: Path) -> None:
    """A finder that hides Numba stands for an environment without it."""
    from tests.tiny import write_small

    model = write_small(tmp_path / "m.gguf")
    code = f"""
import sys, importlib.abc
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
from gemmafile.engine.engine import Engine
from gemmafile.files.open import open_model
from gemmafile.settings import ContextSettings
lines = []
engine = Engine(open_model({str(model)!r}), ContextSettings(context=64), say=lines.append)
engine.forward(engine.new_sequence(), [5, 6])
print(engine.backend.name, len(lines), "Numba" in lines[0] and "reference" in lines[0])
"""
    assert run(code, tmp_path / "cache").split() == ["reference", "1", "True"]


def test_a_cpu_without_fma_is_answered_by_the_reference(tmp_path: Path) -> None:
    from tests.tiny import write_small

    model = write_small(tmp_path / "m.gguf")
    code = f"""
from gemmafile.engine.engine import Engine
from gemmafile.files.open import open_model
from gemmafile.settings import ContextSettings
lines = []
engine = Engine(open_model({str(model)!r}), ContextSettings(context=64), say=lines.append)
print(engine.backend.name, len(lines), "AVX2" in lines[0])
"""
    features = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse,+sse2"}
    assert run(code, tmp_path / "cache", **features).split() == ["reference", "1", "True"]


_AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
_AVX512 = f"{_AVX2},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"


@pytest.mark.parametrize(
    ("cpu", "features", "formats"),
    [
        ("haswell", _AVX2, "Q4_K Q5_0 Q8_0 IQ4_NL BF16"),
        ("alderlake", f"{_AVX2},+avxvnni", "Q4_K Q8_0"),
        ("skylake-avx512", _AVX512, "Q8_0 BF16"),
    ],
)
def test_products_for_an_older_cpu_are_the_same_bits(tmp_path: Path, cpu: str, features: str, formats: str) -> None:
    """Code that a newer CPU runs too: AVX2 with and without VNNI, AVX-512 without it; all formats in `make check`."""
    lacking = {feature[1:] for feature in features.split(",")} - targets.cpu_features()
    if lacking:
        pytest.skip(f"this CPU has no {', '.join(sorted(lacking))}")
    code = """
import os
import numpy as np
from gemmafile.kernels.compile import kernel_addresses
from gemmafile.kernels.formats_on import FORMAT_MODULES, format_module
from gemmafile.kernels.replay import PRODUCTS
from tests.kernels.test_products import product
from tests.kernels.random_blocks import random_rows
rng = np.random.default_rng(1)
formats = FORMAT_MODULES if os.environ.get("GEMMAFILE_FULL") else os.environ["FORMATS"].split()
kernel_addresses({kernel for name in formats for kernel in (PRODUCTS[name].matvec, PRODUCTS[name].matmul)})
for name in formats:
    rows, x = random_rows(name, rng, 37, 512), rng.standard_normal((7, 512)).astype(np.float32)
    for kind in ("matvec", "matmul"):
        assert np.array_equal(product(name, kind, x, rows), format_module(name).multiply(x, rows)), (name, kind)
print("same")
"""
    settings = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "FORMATS": formats}
    assert run(code, tmp_path, **settings).split() == ["same"]


def test_a_user_without_a_home_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """platformdirs cannot name a cache for a user whom the system does not know."""

    def unknown(*args: object) -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("GEMMAFILE_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", unknown)
    assert not kept.cache_root().is_dir()
    with pytest.raises(OSError, match="Not a directory"):
        kept.cache_root().mkdir(parents=True)


def test_kernels_for_many_rows_wait_until_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemmafile.engine.engine import Engine
    from gemmafile.files.open import open_model
    from gemmafile.kernels import compile
    from gemmafile.settings import ContextSettings
    from tests.tiny import write_small

    asked: set[str] = set()

    def note(names: Iterable[str], *_: object) -> dict[str, int]:
        names = set(names)
        asked.update(names)
        return found(names)

    found = compile.kernel_addresses
    monkeypatch.setattr(compile, "kernel_addresses", note)
    engine = Engine(open_model(write_small(tmp_path / "m.gguf")), ContextSettings(context=128), say=lambda line: None)
    sequence = engine.new_sequence()
    engine.forward(sequence, [5])
    assert "dots.f32_matvec" in asked
    assert "dots.f32_matmul" not in asked
    engine.forward(sequence, [5] * 40)
    assert "dots.f32_matmul" in asked
    engine.close()


def test_without_a_compiler_all_must_be_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the reference can answer instead."""
    from gemmafile.kernels import compile
    from gemmafile.kernels.objects import BadObject

    monkeypatch.setattr(compile, "_has_numba", lambda: False)
    with pytest.raises(BadObject, match=r"no machine code for no\.such here"):
        compile.Kernels(["pointwise.add", "no.such"])


CONFINED = """
import os, sys
from gemmafile.kernels import compile
from gemmafile.pack import confine
names = ["pointwise.add", "pointwise.softcap"]
kernels = compile.Kernels(names, print)
kernels.be_confined(names)
confine.confine_calls(may_write=False)
for name in names:
    kernels[name]
print(len(compile._compilers), "numba" in sys.modules)
"""


@pytest.mark.skipif(not has_seccomp(), reason="seccomp filters are for Linux on x86-64 and aarch64")
def test_a_confined_process_has_its_kernels_compiled_and_kept_by_others(tmp_path: Path) -> None:
    assert run(CONFINED, tmp_path).splitlines() == ["compiling kernels for this CPU (once)", "1 False"]
    assert len(list(tmp_path.rglob("*.o"))) == 2
    assert run(CONFINED, tmp_path).splitlines() == ["0 False"]


def test_whoever_waits_for_kernels_is_told_how_many_there_are(tmp_path: Path) -> None:
    program = """
from gemmafile.kernels import compile
compile.Kernels([], print).prepare(["pointwise.add", "pointwise.softcap"], lambda *counts: print(*counts))
"""
    assert run(program, tmp_path).splitlines() == ["compiling kernels for this CPU (once)", "0 2", "1 2", "2 2"]
    assert run(program, tmp_path) == ""


def test_a_compiler_that_is_gone_is_done_without(tmp_path: Path) -> None:
    killed = CONFINED.replace("confine.confine_calls(may_write=False)", "[c._end() for c in compile._compilers]")
    assert run(killed, tmp_path).splitlines()[-1] == "1 True"
    assert run(killed, tmp_path).splitlines()[-1] == "0 False"
