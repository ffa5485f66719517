"""Damage is found wherever it is; an edit leaves the old file or the new one; signatures break."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmafile.cli.main import main
from gemmafile.errors import BadFile
from gemmafile.pack import edit
from gemmafile.pack.verify import find_damage, read_manifest
from tests.pack.conftest import Packed, start

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


def is_whole(path: Path) -> bool:
    try:
        return not find_damage(path, read_manifest(path), lambda n: None)
    except BadFile as error:
        assert "\n" not in str(error)
        return False


def places(path: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of everything in a packed file."""
    checked = read_manifest(path)
    found = [("page", 0, 4096), ("slot A", 4096, 30720), ("slot B", 34816, 30720)]
    for member in [*checked.own, *checked.manifest.members]:
        found.append((f"header of {member.name}", member.header_offset, member.header_bytes))
        found.append((member.name, member.offset, member.size))
    return [*found, ("directory", path.stat().st_size - 4096, 4096)]


def test_every_kind_of_damage_is_found(copy: Path, full: bool) -> None:
    assert is_whole(copy)
    random_ = random.Random(3)
    areas = places(copy)
    for turn in range(1000 if full else 2 * len(areas)):
        name, offset, size = areas[turn % len(areas)]
        at = offset + random_.randrange(size)
        with copy.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ (1 << random_.randrange(8))]))
        assert not is_whole(copy), f"{name}, byte {at}"
        with copy.open("r+b") as file:
            file.seek(at)
            file.write(old)
    assert is_whole(copy)


@pytest.mark.parametrize("change", ["cut", "longer"])
def test_another_length_is_found(copy: Path, change: str) -> None:
    with copy.open("r+b") as file:
        if change == "cut":
            file.truncate(copy.stat().st_size - 1)
        else:
            file.seek(0, 2)
            file.write(b"\0")
    assert not is_whole(copy)


@pytest.mark.parametrize("replaces", [False, True])
def test_what_another_program_added_is_no_edit_cut_short(packed: Packed, copy: Path, replaces: bool) -> None:
    """Behind the end, with a directory of its own: a new member, or another model under the name of the true one."""
    with zipfile.ZipFile(copy, "a") as archive:
        name = "added.txt"
        if replaces:
            name = packed.model.name
            archive.filelist.remove(archive.NameToInfo.pop(name))
            archive.start_dir = copy.stat().st_size
        archive.writestr(name, b"GGUF" + bytes(100_000))
    before = copy.read_bytes()
    assert not is_whole(copy)
    assert main(["edit", str(copy), "--quiet", "--set-args", "-n 1"]) == 1
    assert copy.read_bytes() == before


def test_threads_that_cannot_be_are_said(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy), "--threads", "-5"]) == 2
    assert "--threads is -5" in capfd.readouterr().err


@pytest.mark.parametrize("number", [0, 7, -1])
def test_damage_in_weights_names_the_tensor(copy: Path, capfd: pytest.CaptureFixture[str], number: int) -> None:
    manifest = read_manifest(copy).manifest
    entry = manifest.weights[0]
    member = next(m for m in manifest.members if m.name == entry.name)
    name, offset, size = entry.tensors[number]
    change(copy, member.offset + offset + size - 1)
    assert main(["verify", str(copy), "--quiet"]) == 1
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("DAMAGED"))
    assert line.startswith(f"DAMAGED  {entry.name}: ")
    assert [n for n, _, _ in entry.tensors if n in line.split()] == [name]


def change(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 0x55]))


def test_damage_in_the_header_of_the_weights_is_said_so(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(copy).manifest
    change(copy, manifest.members[-1].offset + 100)
    assert main(["verify", str(copy), "--quiet"]) == 1
    assert "its header" in capfd.readouterr().out


def test_damaged_code_does_not_run(packed: Packed, copy: Path, tmp_path: Path, full: bool) -> None:
    random_ = random.Random(4)
    areas = [area for area in places(copy) if area[1] >= 65536 and not area[0].startswith(packed.model.name)]
    areas += [area for area in places(copy) if area[0].startswith("slot A")]
    for turn in range(100 if full else 8):
        name, offset, size = random_.choice(areas)
        at = offset + random_.randrange(size)
        with copy.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 0x10]))
        done = start(copy, "-p", "Once", "-n", "1", home=tmp_path / str(turn))
        assert "Traceback" not in done.stderr, (name, at, done.stderr)
        if name.startswith("wheels/") and not name.startswith(("wheels/llg", "header")):
            assert done.returncode != 0 or not done.stderr, (name, at)
        with copy.open("r+b") as file:
            file.seek(at)
            file.write(old)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the head has nothing to check itself by")
def test_a_changed_line_of_python_in_page_0_gives_one_line(copy: Path, tmp_path: Path, full: bool) -> None:
    page = copy.read_bytes()[:4096]
    first = page.rindex(b'py="') + 4
    last = page.index(b'"', first)
    random_ = random.Random(8)
    for _ in range(200 if full else 8):
        at = random_.randrange(first, last)
        new = page[at] ^ (1 << random_.randrange(7))
        if chr(new) in '"$`\\\0':  # the shell itself stumbles
            continue
        with copy.open("r+b") as file:
            file.seek(at)
            file.write(bytes([new]))
        done = start(copy, "--version", home=tmp_path)
        assert done.returncode == 1, at
        assert done.stderr.count("\n") == 1, (at, done.stderr)
        assert "first page" in done.stderr
        with copy.open("r+b") as file:
            file.write(page)
    assert start(copy, "--version", home=tmp_path).returncode == 0


def test_an_edit_changes_what_it_should_and_no_more(packed: Packed, copy: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("---\nlicense_link: LICENSE\nprompt_template: |\n  a\n  b\n---\n# Card\n")
    for turn in range(4):
        words = ["edit", str(copy), "--quiet", "--card", str(card), "--set-args", f"--seed {turn} ..."]
        assert main(words) == 0
        assert is_whole(copy)
        with zipfile.ZipFile(copy) as archive:
            assert archive.testzip() is None
            assert archive.read(".args") == f"--seed\n{turn}\n...\n".encode()
            assert archive.read("README.md") == card.read_bytes()
            assert archive.read(packed.model.name) == packed.model.read_bytes()
        assert start(copy, "--card", home=tmp_path).stdout == card.read_text()  # from this slot of the head and that
    assert copy.stat().st_size < packed.path.stat().st_size + 200_000
    assert start(copy, "--card", home=tmp_path).stdout == card.read_text()
    assert main(["edit", str(copy), "--quiet", "--remove", "card,args"]) == 0
    assert is_whole(copy)


class Killed(BaseException):
    """The process ends here."""


def test_an_edit_killed_anywhere_leaves_the_old_file_or_the_new(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write, truncation and sync of an edit is the last one once."""
    old, new = b"--temp\n0\n-n\n4\n...\n", b"--seed\n9\n...\n"
    calls = {"left": 0}

    def dying(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*arguments: object) -> object:
            calls["left"] -= 1
            if calls["left"] == 0:
                if name == "pwrite" and len(arguments[1]) > 4096:  # type: ignore[arg-type]
                    real(arguments[0], bytes(arguments[1])[:4096], arguments[2])  # type: ignore[call-overload]
                raise Killed
            return real(*arguments)

        return call

    path, seen = tmp_path / "k.llamafile", set()
    for last in range(1, 80):
        shutil.copy(packed.path, path)
        calls["left"] = last
        with monkeypatch.context() as patch:
            for name in ("pwrite", "fsync"):
                patch.setattr(os, name, dying(name))
            try:
                assert main(["edit", str(path), "--quiet", "--set-args", "--seed 9 ..."]) == 0
                finished = True
            except Killed:
                finished = False
        assert is_whole(path), last
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, last
            seen.add(archive.read(".args"))
        with edit.open_for_edit(path) as opened:
            assert edit.contents_of(opened).files[".args"] in (old, new)
        assert is_whole(path)
        if finished:
            break
    assert finished
    assert seen == {old, new}


def test_only_the_very_edition_before_may_be_listed_still(
    packed: Packed, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right behind page 0: the listing is the old one, whose members count only as they were."""
    calls, real = [], edit._write_directory

    def die_the_second_time(*words: Any) -> None:
        calls.append(words)
        if len(calls) == 2:
            raise Killed
        real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(edit, "_write_directory", die_the_second_time)
        with pytest.raises(Killed):
            main(["edit", str(copy), "--quiet", "--set-args", "--seed 9 ..."])
    assert read_manifest(copy).unfinished
    assert is_whole(copy)
    with zipfile.ZipFile(copy) as archive:
        at = archive.getinfo(".args").header_offset + 30 + len(".args")
        assert archive.read(".args").startswith(b"--temp")
    with copy.open("r+b") as file:
        file.seek(at)
        file.write(b"--seed")
    assert not is_whole(copy)


@needs_openssl
def test_a_signature_breaks_with_any_change(packed: Packed, copy: Path, tmp_path: Path) -> None:
    key, public, other = (tmp_path / name for name in ("key.pem", "pub.pem", "other.pem"))
    for path in (key, other):
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    assert main(["verify", str(copy), "--quiet", "--key", str(public)]) == 1
    assert main(["edit", str(copy), "--quiet", "--sign", str(key)]) == 0
    assert main(["verify", str(copy), "--quiet", "--key", str(public)]) == 0
    with zipfile.ZipFile(copy) as archive:
        for name in ("manifest.json", "manifest.sig", "manifest.pub"):
            (tmp_path / name).write_bytes(archive.read(name))
    stock = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "manifest.pub", "-rawin", "-in", "manifest.json"]
    subprocess.run([*stock, "-sigfile", "manifest.sig"], cwd=tmp_path, check=True, capture_output=True)
    random_ = random.Random(6)
    for name, offset, size in places(copy):
        at = offset + random_.randrange(size) if name != "directory" else offset + size - 1 - random_.randrange(600)
        with copy.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 1]))
        if not (34816 > at >= 4096):  # after one edit slot A is the spare one, whose bytes mean nothing
            assert main(["verify", str(copy), "--quiet", "--key", str(public)]) == 1, at
        with copy.open("r+b") as file:
            file.seek(at)
            file.write(old)
    assert main(["edit", str(copy), "--quiet", "--sign", str(other)]) == 0
    assert main(["verify", str(copy), "--quiet"]) == 0
    assert main(["verify", str(copy), "--quiet", "--key", str(public)]) == 1
