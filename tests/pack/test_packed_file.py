"""A packed file is a program, an archive, and a model that comes out again as it went in."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gemmafile.cli.main import main
from gemmafile.errors import BadFile
from gemmafile.files.open import open_model
from gemmafile.pack import runtime
from tests.pack.conftest import Packed, start

PROMPT = ("-p", "Once upon a time", "--no-display-prompt")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_it_answers_from_a_folder_of_its_own(packed: Packed, home: Path) -> None:
    plain = subprocess.run(
        [sys.executable, "-m", "gemmafile", "-m", packed.model, *PROMPT, "--temp", "0", "-n", "4"],
        capture_output=True, text=True, timeout=120, check=True, env={"PYTHONPATH": "src", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    first, second = (start(packed.path, *PROMPT, home=home) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout == plain.stdout
    assert plain.stdout.strip()
    assert sorted(p.name.split("-")[0] for p in (home / ".cache/gemmafile").iterdir() if p.is_dir()) == ["env"]


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox", "zsh", "mksh", "fish"])
def test_any_shell_starts_it(packed: Packed, home: Path, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    path = tmp_path / "földer with späce" / "a b.llamafile"
    path.parent.mkdir()
    path.symlink_to(packed.path)
    words = ["sh"] if shell == "busybox" else []
    done = subprocess.run(
        [shell, *words, "-c", "'./a b.llamafile' --version"], cwd=path.parent, capture_output=True, text=True,
        timeout=60, env={"PATH": "/usr/bin:/bin", "HOME": str(home), "GEMMAFILE_PYTHON": sys.executable}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "packed by gemmafile" in done.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(packed: Packed, home: Path, closed: str) -> None:
    command = f"exec {packed.path} -p Once -n 1 {closed}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "GEMMAFILE_PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_first_starts_at_once_unpack_once(packed: Packed, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: start(packed.path, *PROMPT, home=tmp_path), range(6)))
    assert {d.returncode for d in done} == {0}, done
    assert len({d.stdout for d in done}) == 1
    left = [p.name for p in (tmp_path / ".cache/gemmafile").iterdir() if p.name.startswith("env-")]
    assert len([name for name in left if not name.endswith(".lock")]) == 1


def test_a_changed_file_in_the_cache_does_not_run(packed: Packed, tmp_path: Path) -> None:
    assert start(packed.path, "--version", home=tmp_path).returncode == 0
    (env,) = (p for p in (tmp_path / ".cache/gemmafile").iterdir() if p.is_dir())
    (env / "gemmafile/cli/packed.py").write_text("print('HACKED')\n")
    assert "HACKED" not in start(packed.path, "--version", home=tmp_path).stdout
    (env / "json.py").write_text("print('HACKED')\n")
    done = start(packed.path, "--version", home=tmp_path)
    assert done.returncode == 0
    assert "HACKED" not in done.stdout
    assert not (env / "json.py").exists()


def test_bytecode_in_the_making_is_left_alone_and_stray_bytecode_never_runs(packed: Packed, tmp_path: Path) -> None:
    import fcntl

    for _ in range(2):
        assert start(packed.path, "--version", home=tmp_path).returncode == 0
    (env,) = (p for p in (tmp_path / ".cache/gemmafile").iterdir() if p.is_dir())
    before, sealed = env.stat().st_ino, (env / "seal.json").read_bytes()
    assert b"__pycache__/packed" in sealed
    (env / "seal.json.1").write_text("{")
    (made,) = (env / "gemmafile/cli/__pycache__").glob("packed.*.pyc")
    made.write_bytes(made.read_bytes()[:16] + b"not to be run")
    with (env / "seal.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another start makes bytecode
        assert start(packed.path, "--version", home=tmp_path).returncode == 0
        assert made.read_bytes()[16:] == b"not to be run"
    assert start(packed.path, "--version", home=tmp_path).returncode == 0
    assert made.read_bytes()[16:] != b"not to be run"
    assert env.stat().st_ino == before  # nothing was unpacked again


def test_a_cache_that_others_may_write_is_not_used(packed: Packed, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    done = start(packed.path, "--version", home=tmp_path / "home", GEMMAFILE_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert not list(cache.iterdir())
    cache.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(cache)
    assert start(packed.path, "--version", home=tmp_path / "home", GEMMAFILE_CACHE=str(link)).returncode == 0
    assert not list(cache.iterdir())


def test_what_others_left_half_made_is_swept(packed: Packed, tmp_path: Path) -> None:
    import os

    cache = tmp_path / ".cache/gemmafile"
    cache.mkdir(mode=0o700, parents=True)
    stale = [cache / f"{kind}-0123456789abcdef.{rest}" for kind, rest in (("env", "tmp-x"), ("rt", "tmp.12"))]
    fresh, foreign = cache / "env-0123456789abcdef.tmp-y", cache / "something.tmp-else"
    for folder in (*stale, fresh, foreign):
        folder.mkdir()
        (folder / "file").write_text("x")
    for folder in (*stale, foreign):
        os.utime(folder, (0, 0))
    assert start(packed.path, "--version", home=tmp_path).returncode == 0
    assert not any(folder.exists() for folder in stale)
    assert fresh.exists(), "somebody may be unpacking it"
    assert foreign.exists()


def test_it_tells_about_itself(packed: Packed, home: Path, tmp_path: Path) -> None:
    for flag, text in (("--license", "Apache License"), ("--card", "no model card"), ("--doctor", "Known gotchas")):
        done = start(packed.path, flag, home=home)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout
    assert start(packed.path, "--verify", home=home).returncode == 0
    assert hashlib.sha256(packed.model.read_bytes()).hexdigest() in start(packed.path, "--inspect", home=home).stdout
    done = start(packed.path, "--extract", tmp_path / "out", home=home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / packed.model.name).read_bytes() == packed.model.read_bytes()


def test_it_is_an_ordinary_archive(packed: Packed) -> None:
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert archive.read(packed.model.name) == packed.model.read_bytes()
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    assert {".args", "LICENSE.gemmafile", "index.json", "manifest.json"} <= set(names)
    weights = next(iter(open_model(packed.path).tensors.values()))
    assert weights.offset % 32 == 0
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-t", packed.path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert "warning" not in done.stdout + done.stderr


def test_the_same_inputs_give_the_same_bytes(packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMAFILE_CACHE", str(Path("build/pack-tests").absolute()))
    words = ["pack", packed.model, "-o", tmp_path / "again", "--no-runtime", "--cpu", "none", "--quiet"]
    assert main([*map(str, words), "--", "--temp", "0", "-n", "4"]) == 0
    assert (tmp_path / "again").read_bytes() == packed.path.read_bytes()


@pytest.mark.parametrize(
    ("given", "member"),
    [("blob", "blob.gguf"), ("A.GGUF", "A.GGUF"), ("a b\\c\n.gguf", "a b-c-.gguf"), (b"b\xff.gguf", "b-.gguf")],
)
def test_whatever_its_file_was_called_a_model_is_found_again(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | bytes, member: str
) -> None:
    import os

    monkeypatch.setenv("GEMMAFILE_CACHE", str(Path("build/pack-tests").absolute()))
    model, out = tmp_path / os.fsdecode(given), tmp_path / "out"
    shutil.copy(packed.model, model)
    assert main(["pack", str(model), "-o", str(out), "--no-runtime", "--cpu", "none", "--quiet"]) == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist()[-1] == member
    with open_model(out) as found, open_model(packed.model) as source:
        assert found.tensors.keys() == source.tensors.keys()
    from gemmafile.files.bundle import find_bundle

    bundle = find_bundle(out)
    assert bundle is not None
    assert [weights.offset is not None and weights.offset % 65536 for weights in bundle.weights] == [0]


def test_gemma_is_refused_without_its_terms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.tiny import write_small

    model = write_small(tmp_path / "g.gguf", "gemma2")
    words = ["pack", str(model), "-o", str(tmp_path / "g"), "--no-runtime", "--cpu", "none", "--quiet"]
    assert main(words) == 2
    assert "--accept-license" in capfd.readouterr().err
    assert not (tmp_path / "g").exists()


def test_gemma_keeps_its_terms_whatever_the_file_is_called(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny import write_small

    monkeypatch.setenv("GEMMAFILE_CACHE", str(Path("build/pack-tests").absolute()))
    model, path = write_small(tmp_path / "m.gguf", "gemma2"), tmp_path / "m.llamafile"
    words = ["pack", model, "-o", path, "--no-runtime", "--cpu", "none", "--quiet", "--accept-license"]
    assert main([*map(str, words)]) == 0
    assert main(["edit", str(path), "--quiet", "--remove", "notice"]) == 2
    assert "terms" in capfd.readouterr().err
    assert main(["edit", str(path), "--quiet", "--notice", "another"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runtime", "this"], "--runtime and --no-runtime were both given"),
        (["--python", "3.10"], "--python is '3.10'"),
        (["--", "--in-prefix", ""], "an empty argument cannot be packed"),
        (["--", "-p", "a\rb"], "an argument with a newline cannot be packed"),
        (["--", "-p", "\udcff"], "an argument is not UTF-8 text"),
        (["--system-prompt", "\udcff"], "--system-prompt is not UTF-8 text"),
        (["--notice", "\udcff"], "--notice is not UTF-8 text"),
    ],
)
def test_words_that_a_file_could_not_give_back_are_refused(
    words: list[str], message: str, packed: Packed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.llamafile"
    assert main(["pack", str(packed.model), "-o", str(path), "--no-runtime", "--cpu", "none", *words]) == 2
    assert message in capfd.readouterr().err
    assert not path.exists()


def test_what_is_no_ordinary_file_is_not_replaced(
    packed: Packed, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setenv("GEMMAFILE_CACHE", str(Path("build/pack-tests").absolute()))
    os.mkfifo(tmp_path / "pipe")
    words = ["pack", packed.model, "-o", tmp_path / "pipe", "--no-runtime", "--cpu", "none", "--quiet"]
    assert main([*map(str, words)]) == 1
    assert "no ordinary file" in capfd.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["--license"], 0), (["-p", "--license"], None), (["-p", "x", "--card"], 2), (["--temp", "0", "--verify"], 2),
        (["-m", "--card", "--card"], 2), (["--prompt=--card"], None), (["--numa", "--card"], None), (["-n"], None),
    ],
)  # fmt: skip
def test_a_flag_about_the_file_is_no_value_of_another(words: list[str], at: int | None) -> None:
    from gemmafile.cli.packed import find_own

    assert find_own(words) == at


def test_a_folder_that_is_more_than_a_python_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bin/python3", "lib/python3.11/os.py", "share/large"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 10)
    monkeypatch.setattr(runtime, "MAX_TREE_BYTES", 30)
    assert runtime.given_runtime(tmp_path).n_bytes > 30  # with the two files that every runtime gets
    monkeypatch.setattr(runtime, "MAX_TREE_BYTES", 29)
    with pytest.raises(BadFile, match="a Python alone"):
        runtime.given_runtime(tmp_path)


def test_a_runtime_that_lost_files_is_unpacked_again(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systems sweep old files out of /tmp one by one: the file that is never read goes first, and tells."""
    tree, home, out = tmp_path / "tree", tmp_path / "home", tmp_path / "out"
    for name, text in (("bin/python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n'), ("lib/python3.11/os.py", "")):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(text)
    (tree / "bin/python3").chmod(0o755)
    monkeypatch.setenv("GEMMAFILE_CACHE", str(Path("build/pack-tests").absolute()))
    words = ["pack", packed.model, "-o", out, "--runtime", tree, "--cpu", "none", "--quiet"]
    assert main([*map(str, words)]) == 0
    home.mkdir()

    def begin() -> int:
        environ = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
        done = subprocess.run([out, "--version"], env=environ, timeout=60, check=False, capture_output=True)
        return done.returncode

    assert begin() == 0
    (unpacked,) = (home / ".cache/gemmafile").glob("rt-*")
    first = unpacked.stat().st_ino
    assert begin() == 0
    assert unpacked.stat().st_ino == first
    for name in ("whole", "bin/python3"):
        (unpacked / name).unlink()
    assert begin() == 0
    assert (unpacked / "whole").exists()
    assert [p for p in unpacked.parent.glob("rt-*") if p != unpacked] == []


def test_arguments_of_the_file_and_of_the_user() -> None:
    from gemmafile.cli.defaults import merge_args

    assert merge_args(["-n", "3", "...", "--temp", "0"], ["-p", "x"]) == ["-n", "3", "-p", "x", "--temp", "0"]
    assert merge_args(["-n", "3"], []) == ["-n", "3"]
    assert merge_args(["-n", "3"], ["-p", "x"]) == ["-p", "x"]


def test_what_the_engine_imports_travels() -> None:
    import ast

    from gemmafile.pack.wheels import COMPILER, DEPENDENCIES

    source = Path(__file__).resolve().parent.parent.parent / "src/gemmafile"
    found = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0] for name in names}
    extras = {"xllamacpp", "huggingface_hub", "torch", "transformers", "PIL"}  # asked for where they are there
    foreign = {name for name in found if name not in sys.stdlib_module_names} - {"gemmafile"} - extras
    packages = {"markdown_it": "markdown_it_py"}
    assert {packages.get(name, name) for name in foreign} <= {*DEPENDENCIES, *COMPILER}
