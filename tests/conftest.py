"""What every test may ask for: real models, the random seed, and which oracles are there.

Real models are looked for in $GEMMAFILE_MODELS or .models/ and fetched there where they are missing
(tools/get_model.py); a test that needs one is skipped, with the reason, where neither works.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tools.get_model import NoModel, get_model

FULL = os.environ.get("GEMMAFILE_FULL") == "1"
"""`make check` asks for the larger counts."""

ORACLE_PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "xllamacpp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Oracle tests run in `make check`, where their packages are installed and GEMMAFILE_FULL=1."""
    missing = [name for name in ORACLE_PACKAGES if importlib.util.find_spec(name) is None]
    if FULL and not missing:
        return
    reason = f"oracle packages not installed: {', '.join(missing)}" if missing else "oracles run with GEMMAFILE_FULL=1"
    for item in items:
        if item.get_closest_marker("oracle"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def full() -> bool:
    """True in `make check`: take the larger counts."""
    return FULL


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1: architecture llama, byte-level BPE, 98 MB."""
    return _real_model("smollm2")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M (base, not tuned for chat) Q4_K_M: architecture gemma3, SPM, 253 MB."""
    return _real_model("gemma3")


@pytest.fixture(scope="session")
def gemma2_tokenizer_path() -> Path:
    """The real Gemma 2 tokenizer.json."""
    return _real_model("gemma2-tokenizer")


def _real_model(name: str) -> Path:
    try:
        return get_model(name)
    except NoModel as error:
        pytest.skip(f"no {name}: {error}")
