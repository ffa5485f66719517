"""A tiny model packed once for all tests: no Python inside, no machine code (the NumPy reference answers)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gemmafile.cli.main import main
from tests.tiny import write_small

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Packed:
    """`path` the packed file · `model` the GGUF it was made from"""

    path: Path
    model: Path


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Wheels are kept in build/pack-tests between runs."""
    folder = tmp_path_factory.mktemp("packed")
    model = write_small(folder / "tiny-it-F32.gguf", "llama")
    before = os.environ.get("GEMMAFILE_CACHE")
    os.environ["GEMMAFILE_CACHE"] = str(ROOT / "build/pack-tests")
    try:
        words = ["pack", model, "-o", folder / "tiny.llamafile", "--no-runtime", "--cpu", "none", "--quiet"]
        code = main([*map(str, words), "--", "--temp", "0", "-n", "4"])
    finally:
        if before is None:
            del os.environ["GEMMAFILE_CACHE"]
        else:
            os.environ["GEMMAFILE_CACHE"] = before
    if code:
        pytest.skip("packages cannot be fetched here")
    return Packed(folder / "tiny.llamafile", model)


@pytest.fixture
def copy(packed: Packed, tmp_path: Path) -> Path:
    """A packed file to be damaged or edited."""
    return Path(shutil.copy(packed.path, tmp_path / "copy.llamafile"))


def start(
    path: Path, *words: object, home: Path, stdin: int = subprocess.DEVNULL, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a packed file by this Python, with an environment of its own."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "GEMMAFILE_PYTHON": sys.executable,
               "GEMMAFILE_CACHE": str(home / ".cache/gemmafile"), **env}  # fmt: skip
    return subprocess.run(
        [path, *map(str, words)], env=environ, stdin=stdin, capture_output=True, text=True, timeout=120, check=False
    )
