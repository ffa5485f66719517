"""The order of the parts, as a rule that runs: from the file to the answer, an import only points back.

Read from the source with ast, so imports inside functions count too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "gemmafile"

ORDER = (
    "files", "pack", "overrides", "model", "kernels", "convert", "text", "engine", "completion", "model_api",
    "measure", "quantize", "checkpoint_api", "transformers", "bench", "server", "web", "cli",
)  # fmt: skip
"""A part may import itself and the parts before it."""

FREE = {"errors", "settings", "progress"}
"""Anyone may import these; they import nothing of ours but each other."""

HEAVY = ("numpy", "numba", "llvmlite", "jinja2", "rich", "llguidance", "platformdirs", "starlette", "uvicorn")
"""What `gemmafile --help` has no use for."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """ "gemmafile.files.gguf" for src/gemmafile/files/gguf.py"""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path, *, at_start_only: bool = False) -> Iterator[tuple[str, int]]:
    """(module of ours, line) for every import; with `at_start_only` those that run when the module is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _at_module_level(tree) if at_start_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "gemmafile")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            module = node.module or ""
            if module.split(".")[0] == "gemmafile":
                for alias in node.names:
                    whole = f"{module}.{alias.name}"
                    yield (whole if whole in NAMES else module), node.lineno


def _at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    for node in tree.body:
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not is_typing and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from ast.walk(node)


def part_of(module: str) -> str:
    """The part a module belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_back(path: Path) -> None:
    part = part_of(name_of(path))
    if part in ("", "__main__"):  # the door of the package leads everywhere
        return
    for module, line in imports_of(path):
        other = part_of(module)
        where = f"{path}:{line}: {part} imports {module}"
        if part in FREE:
            assert other in FREE, f"{where}; errors, settings and progress stand alone"
        elif other not in FREE and other:
            assert part in ORDER, f"{where}; {part} is not in the order of parts (tests/test_imports.py)"
            assert ORDER.index(other) <= ORDER.index(part), f"{where}; imports go {' <- '.join(ORDER)}"
        elif not other:
            assert part in ("cli", "server", "web"), f"{where}; the package's front is for users and for the doors"


def test_modules_do_not_import_in_circles() -> None:
    graph = {name_of(path): {module for module, _ in imports_of(path, at_start_only=True)} for path in MODULES}
    for module, needs in graph.items():
        needs.discard(module)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gemmafile", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=PACKAGE.parent)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not loaded & set(HEAVY)
    assert "gemmafile" in done.stdout
