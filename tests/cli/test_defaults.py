"""Default arguments of an archive: merged by llamafile's rule, its own -m and its server's flags left out."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.cli.conftest import Runner


def archive(path: Path, model: Path, args: str, **more: str) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(".args", args)
        for name, text in more.items():
            out.writestr(name, text)
        out.write(model, "model.gguf")
    return path


def test_a_llamafiles_arguments_count(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.llamafile", tiny_path, "-m\n/zip/model.gguf\n--host\n0.0.0.0\n--temp\n0\n-n\n3\n...\n")
    with_defaults = command("run", path, "-p", "one two", "--backend", "reference", "--no-display-prompt")
    by_hand = command(
        "-m", tiny_path, "-p", "one two", "--temp", 0, "-n", 3, "--backend", "reference", "--no-display-prompt"
    )
    assert with_defaults.code == 0, with_defaults.err
    assert with_defaults.out == by_hand.out
    later = command("run", path, "-p", "one two", "-n", 1, "--backend", "reference", "--no-display-prompt")
    assert by_hand.out.startswith(later.out.rstrip("\n"))
    assert len(later.out) < len(by_hand.out)


def test_without_dots_they_count_alone(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.llamafile", tiny_path, "-m\nmodel.gguf\n-p\none two\n-n\n2\n--temp\n0\n")
    assert command("run", path).out.startswith("one two")
    done = command("run", path, "-p", "three", "-n", 1)
    assert done.out.startswith("three")


def test_one_of_several_models_is_named_by_the_arguments(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.zip", tiny_path, "-m\nmodel.gguf\n-n\n1\n...\n")
    with zipfile.ZipFile(path, "a") as out:
        out.write(tiny_path, "other.gguf")
    assert command("run", path, "-p", "one").code == 0
    assert command("run", f"{path}@other.gguf", "-p", "one").code == 0
