"""The tokenizers of the two real models, read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gemmafile.files.open import open_model
from gemmafile.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path: Path) -> Mapping[str, Any]:
    return open_model(smollm2_path).metadata


@pytest.fixture(scope="session")
def gemma3_metadata(gemma3_path: Path) -> Mapping[str, Any]:
    return open_model(gemma3_path).metadata


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata: Mapping[str, Any]) -> Tokenizer:
    return load_tokenizer(smollm2_metadata, "smollm2")


@pytest.fixture(scope="session")
def gemma3(gemma3_metadata: Mapping[str, Any]) -> Tokenizer:
    return load_tokenizer(gemma3_metadata, "gemma3")


@pytest.fixture(scope="session", params=["smollm2", "gemma3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the two in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def n_texts(full: bool) -> int:
    """How many awkward texts a law is tried on."""
    return 2000 if full else 300
