"""Machine code made for other CPUs: the same bits where this CPU runs it, and loadable where it does not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemmafile.cli.main import main
from gemmafile.errors import BackendUnavailable
from gemmafile.kernels import build, kept, targets
from gemmafile.kernels.kept import Carried, MachineCode, read_manifests
from gemmafile.kernels.objects import check_object
from gemmafile.kernels.targets import TARGETS, Target
from gemmafile.kernels.threads import kernels as thread_kernels

RUNS_V3 = TARGETS["x86-64-v3"] in targets.runnable()


def compile_some(names: list[str], target: Target) -> dict[str, MachineCode]:
    """One process for all: what an earlier kernel leaves behind must not show in a later one."""
    made: dict[str, MachineCode] = {}
    build.compile_apart(names, target, lambda name, code: made.update({name: code}), n_processes=1)
    assert list(made) == names
    return made


def carry(folder: Path, target: Target, codes: dict[str, MachineCode], **changes: str) -> None:
    """A folder as `gemmafile kernels build` makes it."""
    (folder / target.name).mkdir(parents=True)
    for name, code in codes.items():
        (folder / target.name / f"{name}.o").write_bytes(code.to_bytes())
    hashes = {name: hashlib.sha256(code.to_bytes()).hexdigest() for name, code in codes.items()}
    facts = {"name": target.name, "sources": kept.sources(), **changes}
    Carried(folder / target.name, facts["name"], facts["sources"], "a test", hashes).write_manifest()


def run_without_numba(code: str, folder: Path) -> str:
    """A process that finds neither Numba nor llvmlite, with `folder` as the package's own machine code."""
    hide = "import sys\nsys.modules['numba'] = sys.modules['llvmlite'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", hide + code],
        env={
            **os.environ, "GEMMAFILE_KERNELS": str(folder), "GEMMAFILE_CACHE": str(folder / "none"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


NAMES = ["packing.int8_256", "pointwise.softcap", "dots.f32_matmul", "q6_k.matvec", "packing.int8_32", "q4_0.matmul"]
"""The first use `max`, others `min`, which Numba has under one name: a mix-up once made all of them `max`."""

PRODUCTS = """
import numpy as np
from gemmafile.kernels import kept
from gemmafile.kernels.formats_on import format_module
from tests.kernels.random_blocks import random_rows
from tests.kernels.test_products import product
rng = np.random.default_rng(1)
for name, kind in (("F32", "matmul"), ("Q6_K", "matvec"), ("Q4_0", "matmul")):
    rows, x = random_rows(name, rng, 37, 512), rng.standard_normal((7, 512)).astype(np.float32)
    assert np.array_equal(product(name, kind, x, rows), format_module(name).multiply(x, rows)), (name, kind)
print([c.target for c in kept._carried_here()])
"""


@pytest.mark.skipif(not RUNS_V3, reason="this CPU does not run x86-64-v3")
def test_products_without_numba_are_the_same_bits(tmp_path: Path) -> None:
    target = TARGETS["x86-64-v3"]
    carry(tmp_path, target, compile_some([*NAMES, "threads.walk"], target))
    assert run_without_numba(PRODUCTS, tmp_path).strip() == "['x86-64-v3']"


@pytest.mark.parametrize("name", ["neoverse-n1", "neoverse-v1", "armv8-a", "apple-m1"])
def test_kernels_compile_for_aarch64(name: str) -> None:
    target = TARGETS[name]
    names = ["threads.walk", "packing.int8_32", "q8_0.matvec"]
    for code in compile_some(names, target).values():
        check_object(code.data, code.entry, "aarch64")


def test_kernels_compile_for_the_matrix_unit() -> None:
    target = TARGETS["sapphirerapids"]
    for code in compile_some(["amx.trial", "q8_0.matvec"], target).values():
        check_object(code.data, code.entry, "x86_64")


LOAD = """
from gemmafile.kernels import compile as c
from gemmafile.kernels.objects import BadObject
try:
    print(c.why_not(), len(c.kernel_addresses(["threads.walk"])))
except BadObject as e:
    print(c.why_not(), e)
"""


@pytest.fixture(scope="module")
def walk() -> dict[str, MachineCode]:
    assert "walk" in thread_kernels()
    return compile_some(["threads.walk"], TARGETS["x86-64-v3"])


@pytest.mark.skipif(not RUNS_V3, reason="this CPU does not run x86-64-v3")
def test_carried_code_serves_where_there_is_no_compiler(tmp_path: Path, walk: dict[str, MachineCode]) -> None:
    carry(tmp_path, TARGETS["x86-64-v3"], walk)
    assert run_without_numba(LOAD, tmp_path).strip() == "None 1"


@pytest.mark.parametrize("change", ["sources", "target", "byte", "missing", "manifest"])
def test_other_or_damaged_code_is_not_run(tmp_path: Path, walk: dict[str, MachineCode], change: str) -> None:
    target = TARGETS["x86-64-v3"]
    changes = {"sources": {"sources": "0" * 16}, "target": {"name": "neoverse-n1"}}.get(change, {})
    carry(tmp_path, target, walk, **changes)
    path = tmp_path / target.name / "threads.walk.o"
    if change == "byte":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif change == "missing":
        path.unlink()
    elif change == "manifest":
        (path.parent / "manifest.json").write_text('{"target": "x86-64-v3", "sha256": 3}')
    assert "Numba is not installed" in run_without_numba(LOAD, tmp_path)


def test_features_chosen_by_hand_leave_carried_code_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2")
    assert targets.is_overridden()


def test_the_best_level_that_runs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "machine", lambda: "x86_64")
    for features, best in (
        (TARGETS["x86-64-v3"].features, ["x86-64-v3"]),
        (TARGETS["x86-64-v3"].features - {"fma"}, []),
        (TARGETS["alderlake"].features, ["alderlake", "x86-64-v3"]),
        (TARGETS["x86-64-v4"].features, ["x86-64-v4", "x86-64-v3"]),
        (TARGETS["znver4"].features, ["znver4", "x86-64-v4-vnni", "x86-64-v4", "x86-64-v3"]),
    ):
        monkeypatch.setattr(targets, "cpu_features", lambda features=features: features)
        assert [target.name for target in targets.runnable()] == best


SAPPHIRE_RAPIDS = """
sse sse2 ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand abm 3dnowprefetch bmi1 avx2 bmi2 erms
avx512f avx512dq avx512ifma avx512cd sha_ni avx512bw avx512vl avx_vnni avx512_bf16 avx512vbmi avx512_vbmi2 gfni vaes
vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq amx_bf16 avx512_fp16 amx_tile amx_int8 pni pclmulqdq
"""
"""As /proc/cpuinfo has them."""


def test_features_are_known_by_the_names_that_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "machine", lambda: "x86_64")
    flags = SAPPHIRE_RAPIDS.split()
    for given, best in ((flags, "sapphirerapids"), ([*flags, "sse4a"], "sapphirerapids"),
                        ([f for f in [*flags, "sse4a"] if f[:3] != "amx"], "znver4"),
                        ([f for f in flags if f not in ("avx512_bf16", "gfni")], "x86-64-v4-vnni")):  # fmt: skip
        monkeypatch.setattr(targets, "_cpu", lambda given=given: "flags : " + " ".join(given))
        targets.cpu_features.cache_clear()
        assert targets.runnable()[0].name == best
    targets.cpu_features.cache_clear()


def test_the_command_says_what_there_is(
    tmp_path: Path, walk: dict[str, MachineCode], capsys: pytest.CaptureFixture[str]
) -> None:
    carry(tmp_path, TARGETS["x86-64-v3"], walk)
    carry(tmp_path, TARGETS["neoverse-n1"], walk, sources="0" * 16)
    (tmp_path / "neoverse-n1" / "threads.walk.o").write_bytes(b"damaged")
    assert main(["kernels", "list", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:3] == ["neoverse-n1", "0", "kernels"]
    assert "1 missing or damaged, stale" in out[1]
    assert out[2].split()[:3] == ["x86-64-v3", "1", "kernels"]
    assert "current, a test" in out[2]


def test_the_command_builds_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "kernel_names", lambda target: ["pointwise.add", "threads.walk"])
    assert main(["kernels", "build", "--cpu", "x86-64-v3,neoverse-n1", "--out", str(tmp_path)]) == 0
    assert "x86-64-v3" in capsys.readouterr().out
    assert {c.target: sorted(c.hashes) for c in read_manifests(tmp_path)} == {
        name: ["pointwise.add", "threads.walk"] for name in ("x86-64-v3", "neoverse-n1")
    }
    assert json.loads((tmp_path / "neoverse-n1" / "manifest.json").read_bytes())["sources"] == kept.sources()


def test_kernels_that_do_not_compile_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "kernel_names", lambda target: ["threads.walk", "threads.nonsense"])
    with pytest.raises(BackendUnavailable, match=r"neoverse-n1: threads\.nonsense"):
        build.build_target(TARGETS["neoverse-n1"], tmp_path, lambda: None)
    assert not list(read_manifests(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernels", "build", "--cpu", "x86-64-v5", "--out", "x"], "did you mean x86-64-v"),
        (["kernels", "list", "/nowhere"], "is no folder"),
        (["kernels"], "required"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
