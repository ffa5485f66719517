"""The doctor: all systems in its table, and every gotcha with what to do on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemmafile.cli import gotchas
from gemmafile.cli.doctor import examine
from gemmafile.cli.main import main
from tests.tiny import write_small


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_small(tmp_path / "tiny.gguf", "llama")


def test_the_report_is_the_same_in_text_and_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {(r["system"], r["processor"]) for r in report["matrix"]} == {
        (system, cpu)
        for system in ("Linux", "macOS", "Windows", "FreeBSD", "OpenBSD", "NetBSD")
        for cpu in ("x86_64", "aarch64")
    }
    assert report["model"]["weights_bytes"] == model.stat().st_size
    assert main(["doctor", str(model)]) == 0
    text = capsys.readouterr().out
    assert all(f"{g['gotcha']}: {g['fix']}" in text for g in report["gotchas"])
    assert {g["here"] for g in report["gotchas"]} <= {"no", "yes", "maybe", "unknown"}
    assert "not built in yet" in text


def state(report: dict[str, list[gotchas.Gotcha]], words: str) -> gotchas.Gotcha:
    return next(g for g in report["gotchas"] if words in g["gotcha"])


def test_a_file_that_may_not_be_started(model: Path) -> None:
    path = model.rename(model.with_suffix(".llamafile"))
    found = state(examine(path), "no permission")
    assert (found["here"], found["fix"]) == ("yes", "chmod +x ./tiny.llamafile")
    path.chmod(0o755)
    assert state(examine(path), "no permission")["here"] == "no"


def test_what_else_starts_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("register", "status", "wine"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gotchas, "_BINFMT", tmp_path)
    assert "wine" in state(examine(None), "binfmt_misc")["fix"]


def test_memory_that_will_not_do(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmafile.files.placement.free_memory_bytes", lambda: 1000)
    report = examine(model)
    assert not report["model"]["fits"]
    assert state(report, "memory")["here"] == "yes"
