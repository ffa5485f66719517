"""What every test may ask for: real models, the random seed, and which oracles are there.

Real models are looked for in $GEMMAFILE_MODELS or .models/ and fetched there where they are missing
(tools/get_model.py); a test that needs one is skipped, with the reason, where neither works.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

from tools.get_model import NoModel, get_model

FULL = os.environ.get("GEMMAFILE_FULL") == "1"
"""`make check` asks for the larger counts."""

ORACLE_PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "xllamacpp")

_not_run: list[pytest.Item] = []

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background so, and every program that the tests start would inherit it:
    # Ctrl-C would do nothing in those that are about Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Oracle tests run in `make check`; elsewhere they are left out, and counted once at the end."""
    oracles = [item for item in items if item.get_closest_marker("oracle")]
    missing = [name for name in ORACLE_PACKAGES if importlib.util.find_spec(name) is None]
    if not FULL:
        _not_run.extend(oracles)
        items[:] = [item for item in items if item not in set(oracles)]
        config.hook.pytest_deselected(items=oracles)
    elif missing:
        for item in oracles:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _not_run:
        terminalreporter.write_line(f"{len(_not_run)} oracle tests are left to `make check` (GEMMAFILE_FULL=1)")


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
