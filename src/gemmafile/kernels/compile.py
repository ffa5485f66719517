"""The kernels' machine code: found where it is kept, or compiled now and kept.

A kernel is a Python function `kernel(op, shared, thread)` of three addresses (see `ops.py`), named
"module.name": the entry `name` of what `gemmafile.kernels.<module>.kernels()` returns. It compiles to one
C-callable object (`build.py`), which is kept (`kept.py`), loaded (`objects.py`) and called by its address.
Neither Numba nor llvmlite is imported unless an object is missing.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gemmafile.kernels import kept, targets
from gemmafile.kernels.objects import BadObject
from gemmafile.progress import Progress

if TYPE_CHECKING:
    from gemmafile.kernels.build import Compilers

__all__ = ["Kernels", "child_environment", "kernel_addresses", "why_not"]


def why_not() -> str | None:
    """Why compiled kernels cannot run here, or None when they can."""
    if targets.machine() not in ("x86_64", "aarch64") or not sys.platform.startswith("linux"):
        return f"there are no compiled kernels for {platform.system()} on {platform.machine()} yet"
    if targets.machine() == "x86_64" and not {"avx2", "fma"} <= targets.cpu_features():
        return "this CPU has no AVX2 with FMA, which the fast kernels need"
    if kept.has_code() or _has_numba():
        return None
    return "Numba is not installed, so the fast kernels cannot be compiled"


def _has_numba() -> bool:
    try:
        return importlib.util.find_spec("numba") is not None
    except (ImportError, ValueError):
        return False


def kernel_addresses(
    names: Iterable[str], say: Callable[[str], None] | None = None, told: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """The address of each kernel's machine code, loaded from where it is kept or compiled now.

    say   gets one line when something has to be compiled for the first time; on a terminal a line counts the kernels
    told  hears how many of how many have been compiled, if any have to be

    Raises BadObject where there is no code for a kernel and no compiler.
    """
    names = set(names)
    wanted = sorted(names - _addresses.keys())
    missing = [name for name in wanted if not _load(name)]
    if missing:
        if not _has_numba():
            raise BadObject(f"there is no machine code for {missing[0]} here and Numba is not installed to compile it")
        _compile(missing, say, told)
    return {name: _addresses[name] for name in names}


class Kernels:
    """The kernels that a model may come to need. They are loaded, or compiled, when a pass first does: a prompt of two
    words waits for a third of them. Where there is no compiler all must be there from the start."""

    def __init__(self, names: Iterable[str], say: Callable[[str], None] | None = None):
        """Raises BadObject for a kernel that is not there and cannot be compiled."""
        self._say = say
        if not _has_numba():
            self.prepare(names)

    def prepare(self, names: Iterable[str], told: Callable[[int, int], None] | None = None) -> None:
        """Load these, and compile what is missing of them, all at once. `told`  as for `kernel_addresses`"""
        kernel_addresses(names, self._say, told)

    def be_confined(self, names: Iterable[str]) -> None:
        """Load what there is of these. What is missing will be compiled by processes that are started now: a process
        about to be confined can start none later, and most of it may never be needed."""
        missing = [name for name in sorted(set(names) - _addresses.keys()) if not _load(name)]
        if missing and not _compilers:
            from gemmafile.kernels import build

            _compilers.append(build.Compilers(None, len(missing), keeps=True, idle_s=COMPILERS_IDLE_S))

    def __getitem__(self, name: str) -> int:
        """The kernel's address."""
        if name not in _addresses:
            self.prepare([name])
        return _addresses[name]


COMPILERS_IDLE_S = 60.0
"""Compilers that wait beside a confined process end when nothing was asked of them for so long: each has Numba in it,
and what is still missing then can be compiled in the process itself."""

_addresses: dict[str, int] = {}
_compilers: list[Compilers] = []
_told: list[str] = []


def _load(name: str) -> bool:
    address = kept.load_kernel(name)
    if address is not None:
        _addresses[name] = address
    return address is not None


def child_environment() -> dict[str, str]:
    """For a process of our own that imports this package as we did."""
    from gemmafile.kernels import build  # Numba's side of things: not for a start that has all its code

    return build.child_environment()


def _compile(
    names: list[str], say: Callable[[str], None] | None, told: Callable[[int, int], None] | None = None
) -> None:
    """Compile in as many processes as there are cores; a single kernel, and what they leave undone, here."""
    from gemmafile.kernels import build

    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    if say and not on_terminal and not _told:
        _told.append("once")
        say("compiling kernels for this CPU (once)")
    with Progress("compiling kernels", total=len(names), quiet=not (say and on_terminal)) as progress:

        def keep(name: str, code: kept.MachineCode) -> None:
            _addresses[name] = code.load()
            kept.keep(name, code)
            progress.advance()
            if told is not None:
                told(progress.done, len(names))

        if told is not None:
            told(0, len(names))
        if _compilers:
            _compilers[0].compile(names, keep)
        elif len(names) > 1:
            build.compile_apart(names, None, keep)
        for name in names:
            if name not in _addresses:
                keep(name, build.compile_here(name))
