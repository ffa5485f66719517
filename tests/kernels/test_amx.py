"""The trial of the matrix unit: a child may die of it, this process may not, and what came out is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmafile.kernels import amx, compile
from gemmafile.kernels.kept import cache_folder
from gemmafile.kernels.objects import BadObject


@pytest.fixture(autouse=True)
def announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("GEMMAFILE_CACHE", str(tmp_path))
    monkeypatch.delenv("GEMMAFILE_AMX", raising=False)
    monkeypatch.setattr(amx, "_is_announced", lambda: True)
    monkeypatch.setattr(amx, "request", lambda: True)
    amx.is_ready.cache_clear()
    yield
    amx.is_ready.cache_clear()


def test_a_child_that_dies_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "kernel_addresses", lambda names: {"amx.trial": 8})  # nothing can be run there
    assert not amx.works()
    assert not amx.is_ready()
    assert (cache_folder() / "amx").read_text() == "does not work"


def test_without_code_for_it_the_question_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(names: list[str]) -> dict[str, int]:
        raise BadObject("there is no machine code")

    monkeypatch.setattr(compile, "kernel_addresses", missing)
    assert not amx.is_ready()
    assert not (cache_folder() / "amx").exists()


def test_what_was_kept_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "works", lambda: pytest.fail("tried again"))
    cache_folder().mkdir(parents=True, exist_ok=True)
    (cache_folder() / "amx").write_text("works")
    assert amx.is_ready()
