"""Machine code kept on disk: loaded when whole and ours, compiled again when not; the loader refuses the rest."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemmafile.kernels import compile as compiler
from gemmafile.kernels.objects import BadObject, load_object

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


def kept(folder: Path) -> Path:
    (path,) = folder.rglob(f"{NAME}.o")
    return path


def test_a_second_start_needs_no_compiler(tmp_path: Path) -> None:
    assert run(LOAD, tmp_path).split() == ["1", "True", "True"]
    assert run(LOAD, tmp_path).split() == ["0", "False", "False"]
    assert kept(tmp_path).parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", [0.0, 0.3, 0.99])
def test_damaged_code_is_compiled_again_not_run(tmp_path: Path, place: float) -> None:
    run(LOAD, tmp_path)
    path = kept(tmp_path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * (len(whole) - 1))] ^= 1
    path.write_bytes(damaged)
    assert run(LOAD, tmp_path).split()[0] == "1"
    assert path.read_bytes()[:60] == whole[:60]


def test_code_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    kept(tmp_path).chmod(0o666)
    assert run(LOAD, tmp_path).split()[0] == "1"


def test_other_sources_or_cpu_mean_another_folder(tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    folders = set(tmp_path.glob("kernels/*"))
    run(LOAD, tmp_path, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+avx2,+fma,+f16c,+sse2,+bmi2")
    assert len(set(tmp_path.glob("kernels/*")) - folders) == 1


def test_a_cache_that_cannot_be_written_costs_a_compilation_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert run(LOAD, blocked).split()[0] == "1"


def test_the_loader_refuses_what_an_object_does_not_contain() -> None:
    from numba import cfunc
    from numba.core import types

    puts = types.ExternalFunction("puts", types.int32(types.intp))

    def calls_out(op: int, shared: int, thread: int) -> None:
        puts(op)

    made = cfunc(types.void(types.intp, types.intp, types.intp), nopython=True, error_model="numpy")(calls_out)
    with pytest.raises(BadObject, match="puts"):
        load_object(bytes(made._library._get_compiled_object()), made._wrapper_name)


def test_the_loader_survives_any_bytes() -> None:
    entry, data = compiler._compile(NAME)
    rng = np.random.default_rng(1)
    load_object(data, entry)
    for cut in rng.integers(0, len(data), 40):
        with pytest.raises(BadObject):
            load_object(data[: int(cut)], entry)
    for at in rng.integers(0, 64, 60):
        header = bytearray(data)
        header[at] ^= int(rng.integers(1, 256))
        with contextlib.suppress(BadObject):
            load_object(bytes(header), entry)


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


def test_products_for_an_older_cpu_are_the_same_bits(tmp_path: Path) -> None:
    """AVX2 code, which a newer CPU runs too."""
    code = """
import numpy as np
from gemmafile.kernels.formats_on import FORMAT_MODULES, format_module
from tests.kernels.test_products import product
from tests.kernels.random_blocks import random_rows
rng = np.random.default_rng(1)
for name in FORMAT_MODULES:
    rows, x = random_rows(name, rng, 37, 512), rng.standard_normal((7, 512)).astype(np.float32)
    for kind in ("matvec", "matmul"):
        assert np.array_equal(product(name, kind, x, rows), format_module(name).multiply(x, rows)), (name, kind)
print("same")
"""
    features = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
    assert run(code, tmp_path, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=features).split() == ["same"]
