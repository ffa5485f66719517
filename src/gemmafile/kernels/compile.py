"""Kernels compiled and kept: the only file that talks to Numba's compiler.

A kernel is a Python function `kernel(op, shared, thread)` of three addresses (see `ops.py`), named
"module.name": the entry `name` of what `gemmafile.kernels.<module>.kernels()` returns. It compiles to one
C-callable object, which is kept in the user's cache folder under a key of everything it depends on: all sources
of this package, Python, Numba and LLVM versions, the CPU. Numba is imported only when an object is missing.

A kept object is checked by its SHA-256 before it is loaded (`objects.py`), written to a temporary name and
renamed; a folder that cannot be written costs the next start a compilation, nothing more.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gemmafile.errors import BackendUnavailable
from gemmafile.kernels.objects import load_object

_MAGIC = b"gemmafile kernel 1\n"


def why_not() -> str | None:
    """Why compiled kernels cannot run here, or None when they can."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not sys.platform.startswith("linux"):
        return f"there are no compiled kernels for {platform.system()} on {platform.machine()} yet"
    if not {"avx2", "fma"} <= _cpu_features():
        return "this CPU has no AVX2 with FMA, which the fast kernels need"
    try:
        found = importlib.util.find_spec("numba") is not None
    except (ImportError, ValueError):
        found = False
    return None if found else "Numba is not installed, so the fast kernels cannot be compiled"


def kernel_addresses(names: Iterable[str], say: Callable[[str], None] | None = None) -> dict[str, int]:
    """The address of each kernel's machine code, loaded from the cache or compiled now.

    say  gets one line when something has to be compiled
    """
    wanted = sorted(set(names) - _addresses.keys())
    missing = [name for name in wanted if not _load_kept(name)]
    if missing:
        if say:
            say(f"compiling {len(missing)} kernels for this CPU (once)")
        _compile_elsewhere(missing)
        for name in missing:
            if not _load_kept(name):
                _keep(name, *_compile(name))
    return {name: _addresses[name] for name in names}


_addresses: dict[str, int] = {}


def _compile_elsewhere(names: list[str]) -> None:
    """Compile half of the kernels in a second process, this one taking the other half meanwhile.

    Numba compiles one function at a time in a process. What the other process did not get done is compiled here.
    """
    if len(names) < 4 or (os.cpu_count() or 1) < 2 or not _writable():
        return
    theirs, ours = names[1::2], names[0::2]
    command = [sys.executable, "-c", "from gemmafile.kernels.compile import main; main()", *theirs]
    with subprocess.Popen(
        command, env=child_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as other:
        for name in ours:
            if not _load_kept(name):
                _keep(name, *_compile(name))
        other.wait()


def child_environment() -> dict[str, str]:
    """For a process of our own that imports this package as we did."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def main() -> None:
    """Compile the kernels named on the command line into the cache."""
    for name in sys.argv[1:]:
        if not _load_kept(name):
            _keep(name, *_compile(name))


# --- compiling --------------------------------------------------------------------------------------------------------


def _compile(name: str) -> tuple[str, bytes]:
    """(entry symbol, ELF object) of a kernel. `_get_compiled_object` is private to Numba, which is pinned."""
    from numba import cfunc
    from numba.core import types

    module, _, kernel = name.partition(".")
    function = _builders(module)[kernel]
    # Inlined into its C-callable wrapper, a kernel is seen not to fail, and the wrapper's Python error path goes away.
    options: Any = {"nopython": True, "error_model": "numpy", "forceinline": True}
    compiled: Any = cfunc(types.void(types.intp, types.intp, types.intp), **options)(function)
    data = compiled._library._get_compiled_object()
    if not data:
        raise BackendUnavailable(f"Numba gave no machine code for the kernel {name}")
    return compiled._wrapper_name, bytes(data)


@cache
def _builders(module: str) -> dict[str, Callable[..., None]]:
    builders: dict[str, Callable[..., None]] = importlib.import_module(f"gemmafile.kernels.{module}").kernels()
    return builders


# --- keeping ----------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where kept objects lie; GEMMAFILE_CACHE names another place."""
    given = os.environ.get("GEMMAFILE_CACHE")
    if given:
        return Path(given) / "kernels" / _key()
    from platformdirs import user_cache_path

    return user_cache_path("gemmafile") / "kernels" / _key()


@cache
def _key() -> str:
    """16 hex digits over everything that machine code depends on."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for package in ("numba", "llvmlite"):
        try:
            digest.update(metadata.version(package).encode())
        except metadata.PackageNotFoundError:
            digest.update(b"none")
    digest.update(f"{sys.version_info[:2]} {platform.machine()} {_cpu()}".encode())
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT"):
        digest.update(f"{name}={os.environ.get(name)}".encode())
    return digest.hexdigest()[:16]


def _cpu_features() -> set[str]:
    """Features of the CPU that kernels are compiled for."""
    given = os.environ.get("NUMBA_CPU_FEATURES")
    if given is not None:
        return {feature[1:] for feature in given.split(",") if feature.startswith("+")}
    return set(_cpu().split())


def _cpu() -> str:
    """The first processor's name and features as the system tells them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            block = f.read().split("\n\n", 1)[0]
    except OSError:
        return platform.processor()
    return "\n".join(
        line for line in block.splitlines() if line.startswith(("model", "flags", "vendor", "Features", "CPU"))
    )


def _path(name: str) -> Path:
    return cache_folder() / f"{name}.o"


def _writable() -> bool:
    try:
        _make_private(cache_folder())
    except OSError:
        return False
    return os.access(cache_folder(), os.W_OK)


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)


def _trusted(path: Path) -> bool:
    """Code is loaded only from files of our own that nobody else may write."""
    status = path.stat()
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & 0o022


def _load_kept(name: str) -> bool:
    """Load a kernel from the cache if it is there and whole."""
    if name in _addresses:
        return True
    path = _path(name)
    try:
        if not (_trusted(path) and _trusted(path.parent)):
            return False
        content = path.read_bytes()
    except OSError:
        return False
    head = len(_MAGIC) + 32
    if content[: len(_MAGIC)] != _MAGIC or hashlib.sha256(content[head:]).digest() != content[len(_MAGIC) : head]:
        return False
    entry, _, data = content[head:].partition(b"\n")
    _addresses[name] = load_object(data, entry.decode())
    return True


def _keep(name: str, entry: str, data: bytes) -> None:
    _addresses[name] = load_object(data, entry)
    body = entry.encode() + b"\n" + data
    try:
        folder = cache_folder()
        _make_private(folder)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f"{name}.")
        with os.fdopen(handle, "wb") as f:
            f.write(_MAGIC + hashlib.sha256(body).digest() + body)
        os.replace(temporary, _path(name))
    except OSError:
        pass  # nowhere to keep it: the next start compiles again
