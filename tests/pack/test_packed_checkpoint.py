"""A checkpoint's folder is packed as the GGUF it converts to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.files.open import open_model
from tests.checkpoints import write_checkpoint
from tests.files.huggingface.test_checkpoint import small

WORDS = ("--no-runtime", "--cpu", "none", "--quiet", "--accept-license")


def test_a_checkpoint_becomes_one_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny-it", small("gemma2"))
    (folder / "README.md").write_text("---\nlicense: gemma\n---\n# Tiny\n")
    out = tmp_path / "tiny.llamafile"
    assert main(["pack", str(folder), "-o", str(out), *WORDS]) == 0
    assert main(["convert", str(folder), "-o", str(tmp_path / "tiny.gguf"), "--quiet"]) == 0
    with open_model(out) as packed, open_model(tmp_path / "tiny.gguf") as converted:
        assert packed.tensors.keys() == converted.tensors.keys()
        assert all(np.array_equal(packed.data(name), converted.data(name)) for name in converted.tensors)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny-it", "tiny.llamafile", "tiny.gguf"}, "nothing is left"


def test_gemmas_terms_are_asked_for_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "tiny-it", small("gemma2"))
    assert main(["pack", str(folder), "-o", str(tmp_path / "x.llamafile"), "--quiet"]) == 2
    assert "Gemma" in capsys.readouterr().err
