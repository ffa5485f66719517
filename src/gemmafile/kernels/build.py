"""Kernels compiled: the only file that talks to Numba's compiler.

Here and now for this CPU (`compile_here`), or in processes of their own (`compile_apart`), which may as well make
code for another CPU (`targets.py`): Numba then optimises for that CPU's LLVM machine, and LLVM writes the object.
Several private parts of Numba are used; its version is pinned, and the tests run all of this.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import os
import pkgutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from gemmafile.errors import BackendUnavailable
from gemmafile.kernels import targets
from gemmafile.kernels.kept import Carried, MachineCode, keep, sources, write_file
from gemmafile.kernels.objects import check_object
from gemmafile.kernels.targets import Target

_OPTIONS: dict[str, Any] = {"nopython": True, "error_model": "numpy", "forceinline": True}
"""Inlined into its C-callable wrapper, a kernel is seen not to fail, and the wrapper's Python error path goes away."""


@cache
def _builders(module: str) -> dict[str, Callable[..., None]]:
    builders: dict[str, Callable[..., None]] = importlib.import_module(f"gemmafile.kernels.{module}").kernels()
    return builders


def _function(name: str) -> Callable[..., None]:
    module, _, kernel = name.rpartition(".")
    return _builders(module)[kernel]


def compile_here(name: str) -> MachineCode:
    """A kernel's code for this CPU, made in this process."""
    from numba import cfunc
    from numba.core import types

    compiled: Any = cfunc(types.void(types.intp, types.intp, types.intp), **_OPTIONS)(_function(name))
    data = compiled._library._get_compiled_object()
    if not data:
        raise BackendUnavailable(f"Numba gave no machine code for the kernel {name}")
    return MachineCode(compiled._wrapper_name, bytes(data))


# --- for another CPU --------------------------------------------------------------------------------------------------


def _import(module: str) -> Any:
    """Private parts of Numba have no types."""
    return importlib.import_module(module)


_PATCHED = ("numba.core.codegen", "numba.core.cpu", "numba.core.registry")


class _Abroad:
    """Numba turned towards another CPU, for the rest of this process: nothing that it compiles can be run here."""

    def __init__(self, target: Target):
        targets.choose(target)
        llvm, codegen, cpu, registry = map(_import, ("llvmlite.binding", *_PATCHED))
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        self._machine = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.level, features=target.llvm_features, opt=3, reloc="pic", codemodel="small"
        )
        generator = registry.cpu_target.target_context.codegen()
        generator._tm = self._machine
        generator._data_layout = str(self._machine.target_data)
        codegen.ll.get_process_triple = lambda: target.triple
        codegen.JITCPUCodegen._add_module = lambda self, module: None
        # None of these functions is called, but each must be another object: Numba knows functions by them.
        cpu.CPUContext.get_executable = lambda self, library, fndesc, env: [].append

    def compile(self, name: str) -> MachineCode:
        from numba.core import types
        from numba.core.compiler_lock import global_compiler_lock

        callback = _import("numba.core.ccallback")
        function = callback.CFunc(_function(name), ([types.intp] * 3, types.void), {}, _OPTIONS)
        with global_compiler_lock:
            compiled = function._compile_uncached()
            compiled.library._ensure_finalized()
            data = self._machine.emit_object(compiled.library._final_module)
        return MachineCode(compiled.fndesc.llvm_cfunc_wrapper_name, bytes(data))


_UNIT = ("amx", "unit_")
"""Kernels with this in their names need Intel's matrix unit."""


def kernel_names(target: Target) -> list[str]:
    """All kernels that run on a target. Needs Numba."""
    package = importlib.import_module("gemmafile.kernels")
    modules = [m.name for m in pkgutil.iter_modules(package.__path__)]
    having = [m for m in modules if hasattr(importlib.import_module(f"gemmafile.kernels.{m}"), "kernels")]
    names = [f"{module}.{kernel}" for module in having for kernel in _builders(module)]
    return [name for name in names if "amx-int8" in target.features or not any(word in name for word in _UNIT)]


def build_target(target: Target, out: Path, on_kernel: Callable[[], None]) -> Carried:
    """Compile all kernels for a target into out/TARGET, the manifest last.

    Raises BackendUnavailable when a kernel does not compile, OSError.
    """
    folder = out / target.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    hashes: dict[str, str] = {}

    def keep(name: str, code: MachineCode) -> None:
        check_object(code.data, code.entry, target.machine)
        content = code.to_bytes()
        write_file(folder / f"{name}.o", content)
        (folder / f"{name}.o").chmod(0o644)
        hashes[name] = hashlib.sha256(content).hexdigest()
        on_kernel()

    names = kernel_names(target)
    compile_apart(names, target, keep)
    if len(hashes) < len(names):
        raise BackendUnavailable(
            f"these kernels do not compile for {target.name}: {', '.join(set(names) - set(hashes))}"
        )
    for path in folder.glob("*.o"):
        if path.stem not in hashes:
            path.unlink()
    carried = Carried(folder, target.name, sources(), compiler(), dict(sorted(hashes.items())))
    carried.write_manifest()
    (folder / "manifest.json").chmod(0o644)
    return carried


def compiler() -> str:
    """What compiles: "Numba 0.68.1, LLVM 22.1.0"."""
    import llvmlite.binding as llvm
    import numba

    return f"Numba {numba.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"


# --- in processes of their own ----------------------------------------------------------------------------------------


def compile_apart(
    names: list[str], target: Target | None, take: Callable[[str, MachineCode], None], n_processes: int = 0
) -> None:
    """Compile kernels in processes, as many as there are cores: Numba compiles one function at a time in each.

    `take(name, code)` is called in this thread as each is done. What a process fails at is left out.
    """
    compilers = Compilers(target, len(names), n_processes)
    try:
        compilers.compile(names, take)
    finally:
        compilers.close()


class Compilers:
    """Processes that compile kernels when asked, as many as there are cores; the system may allow none.

    n_kernels  no more processes than that · n_processes  0: as many as there are cores
    keeps      they put what they made into the cache, where the process that asks may not write
    idle_s     they end when nothing was asked for so long; 0: they wait
    """

    def __init__(
        self, target: Target | None, n_kernels: int, n_processes: int = 0, *, keeps: bool = False, idle_s: float = 0
    ):
        count = min(n_kernels, n_processes or _n_cores())
        words = [target.name if target else "", "keep" if keeps else "", str(idle_s)]
        self._children = _start_children(count, words)
        if keeps:
            atexit.register(self.close)

    def compile(self, names: list[str], take: Callable[[str, MachineCode], None]) -> None:
        """`take(name, code)` is called in this thread as each is done. What they fail at is left out."""
        waiting: SimpleQueue[str] = SimpleQueue()
        for name in names:
            waiting.put(name)
        done: SimpleQueue[tuple[str, MachineCode] | None] = SimpleQueue()
        feeders = [threading.Thread(target=_feed, args=(child, waiting, done), daemon=True) for child in self._children]
        try:
            for feeder in feeders:
                feeder.start()
            running = len(feeders)
            while running:
                made = done.get()
                if made is None:
                    running -= 1
                else:
                    take(*made)
        except BaseException:  # an answer may be under way in a pipe: nothing more can be asked
            self._end()
            raise
        finally:
            for feeder in feeders:
                if feeder.ident is not None:
                    feeder.join()

    def close(self) -> None:
        self._end()
        for child in self._children:
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
        self._children = []

    def _end(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def child_environment() -> dict[str, str]:
    """For a process of our own that imports this package as we did."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def _start_children(count: int, words: list[str]) -> list[subprocess.Popen[bytes]]:
    """As many as the system lets us have; there may be none."""
    command = [sys.executable, "-c", "from gemmafile.kernels.build import main; main()", *words]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    children: list[subprocess.Popen[bytes]] = []
    with contextlib.suppress(OSError):
        for _ in range(count):
            children.append(subprocess.Popen(command, env=child_environment(), stdin=pipe, stdout=pipe, stderr=nowhere))
    return children


def _feed(child: subprocess.Popen[bytes], waiting: SimpleQueue[str], done: SimpleQueue[Any]) -> None:
    """Give a child one name after the other; ends when none is left, or the child does."""
    assert child.stdin
    assert child.stdout
    try:
        while True:
            name = waiting.get_nowait()
            child.stdin.write(name.encode() + b"\n")
            child.stdin.flush()
            (size,) = struct.unpack("<Q", child.stdout.read(8))
            code = MachineCode.from_bytes(child.stdout.read(size))
            if code is not None:
                done.put((name, code))
    except (Empty, OSError, struct.error):
        pass
    finally:
        done.put(None)


def main() -> None:
    """A child: reads names of kernels, answers each with the length of its code (8 bytes) and the code."""
    target, keeps, idle_s = sys.argv[1], bool(sys.argv[2]), float(sys.argv[3])
    answers: IO[bytes] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not get between
    if idle_s:
        _confine()
    compile = _Abroad(targets.find_target(target)).compile if target else compile_here
    while True:
        if idle_s:
            signal.setitimer(signal.ITIMER_REAL, idle_s)  # SIGALRM ends this process
        name = sys.stdin.readline().strip()
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not name:
            return
        code = compile(name)
        if keeps:
            keep(name, code)
        content = code.to_bytes()
        answers.write(struct.pack("<Q", len(content)) + content)
        answers.flush()


def _confine() -> None:
    """Whoever asks is confined, and must not get by way of this process what it may not do itself. Files are confined
    already: by what holds for the process that started this one."""
    from gemmafile.pack.confine import confine_calls

    with contextlib.suppress(OSError):
        confine_calls()
