"""A model in parts, and whole again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.convert.parts import parse_size, plan_parts
from gemmafile.errors import BadSettings
from gemmafile.files.open import open_model
from tests.tiny import write_small


@pytest.mark.parametrize("flags", [["--split-max-tensors", "5"], ["--split-max-size", "50K"]])
def test_split_and_joined_is_the_same_file(flags: list[str], tmp_path: Path) -> None:
    model = write_small(tmp_path / "model.gguf")
    assert main(["split", *flags, "--quiet", str(model), str(tmp_path / "part")]) == 0
    parts = sorted(tmp_path.glob("part-*"))
    assert len(parts) > 2
    with open_model(parts[0]) as split, open_model(model) as whole:
        assert all(np.array_equal(split.data(name), whole.data(name)) for name in whole.tensors)
    assert main(["join", "--quiet", str(parts[0]), str(tmp_path / "joined.gguf")]) == 0
    assert (tmp_path / "joined.gguf").read_bytes() == model.read_bytes()


def test_a_part_has_at_most_what_was_asked_for(tmp_path: Path) -> None:
    with open_model(write_small(tmp_path / "model.gguf")) as file:
        tensors = list(file.tensors.values())
        assert [len(p) for p in plan_parts(tensors, max_tensors=10)] == [10] * (len(tensors) // 10) + [
            len(tensors) % 10
        ]
        for part in plan_parts(tensors, max_bytes=30_000):
            assert len(part) == 1 or sum(t.n_bytes + -t.n_bytes % 32 for t in part) <= 30_000
        assert plan_parts(tensors, max_tensors=99, keys_alone=True) == [[], tensors]


def test_joining_over_a_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_small(tmp_path / "model.gguf")
    assert main(["split", "--split-max-tensors", "9", "--quiet", str(model), str(tmp_path / "part")]) == 0
    first, second = sorted(tmp_path.glob("part-*"))[:2]
    before = second.read_bytes()
    assert main(["join", str(first), str(second)]) == 1
    assert "one of its parts" in capsys.readouterr().err
    assert second.read_bytes() == before


@pytest.mark.parametrize("text", ["", "2", "G", "-2G", "2T", "1.5G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(BadSettings, match="such as 2G"):
        parse_size("--split-max-size", text)
