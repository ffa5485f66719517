"""Where machine code lies: the user's cache, and folders that came with the package.

    cache/kernels/SOURCES/native-CPU/NAME.o         compiled here, for this very CPU
    gemmafile/kernels/carried/TARGET/NAME.o         compiled when the package was built (`build.py`), with a
    gemmafile/kernels/carried/TARGET/manifest.json  list of sources, SHA-256 and compiler

SOURCES stands for all sources of this package: code of other sources is never run. A kept object is

    gemmafile kernel 1 \n | SHA-256 of the rest | symbol of the function \n | ELF object

The cache is believed only where nobody else may write; a file is written under another name and renamed, so a
process that dies leaves no half of one. Neither Numba nor llvmlite is needed here.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gemmafile.kernels import targets
from gemmafile.kernels.objects import load_object

_MAGIC = b"gemmafile kernel 1\n"
_HEAD_BYTES = len(_MAGIC) + 32

KEPT_SOURCES = 8
"""Folders of so many different sources stay in the cache; the ones used longest ago go."""

LEFT_OVER_S = 3600.0
"""A temporary file older than this belongs to a process that died."""


@dataclass(frozen=True)
class MachineCode:
    """A kernel: an ELF object and the symbol of its function."""

    entry: str
    data: bytes

    def to_bytes(self) -> bytes:
        body = self.entry.encode() + b"\n" + self.data
        return _MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, content: bytes) -> MachineCode | None:
        """None where the bytes are not whole."""
        digest = hashlib.sha256(content[_HEAD_BYTES:]).digest()
        if content[: len(_MAGIC)] != _MAGIC or digest != content[len(_MAGIC) : _HEAD_BYTES]:
            return None
        entry, _, data = content[_HEAD_BYTES:].partition(b"\n")
        return cls(entry.decode("ascii", "replace"), data)

    def load(self) -> int:
        """The address of the function. Raises BadObject."""
        return load_object(self.data, self.entry)


@cache
def sources() -> str:
    """16 hex digits over all sources of this package."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in sorted(here.rglob("*.py")):
        digest.update(source.relative_to(here).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def load_kernel(name: str) -> int | None:
    """The address of a kernel's machine code from the cache or the package; None where there is none that may run.

    Raises BadObject where whole code cannot be loaded.
    """
    code = _read_cached(name) or _read_carried(name)
    return code.load() if code else None


def has_code() -> bool:
    """Is there machine code for this CPU at all?"""
    folder = glob.escape(str(cache_folder()))  # Path.glob would raise for a folder that is not ours to see
    return bool(_carried_here()) or any(glob.iglob(f"{folder}/*.o"))


# --- the cache --------------------------------------------------------------------------------------------------------


def cache_root() -> Path:
    """Where folders of kept objects lie; GEMMAFILE_CACHE names another place."""
    given = os.environ.get("GEMMAFILE_CACHE")
    if given:
        return Path(given) / "kernels"
    from platformdirs import user_cache_path

    try:
        return user_cache_path("gemmafile") / "kernels"
    except RuntimeError:  # a user without a home: there is nowhere to keep code
        return Path(os.devnull) / "kernels"


def cache_folder() -> Path:
    """What is compiled here, from these sources, for this CPU."""
    return cache_root() / sources() / targets.native_name()


def _read_cached(name: str) -> MachineCode | None:
    path = cache_folder() / f"{name}.o"
    try:
        if not all(_trusted(p) for p in (path, path.parent, path.parent.parent)):
            return None
        return MachineCode.from_bytes(path.read_bytes())
    except OSError:
        return None


def _trusted(path: Path) -> bool:
    """Code is loaded only from files of our own that nobody else may write."""
    status = path.stat()
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & 0o022


def keep(name: str, code: MachineCode) -> bool:
    """Put a kernel's code into the cache; False where there is no place for it."""
    folder = cache_folder()
    try:
        make_private(folder)
        if not any(folder.glob("*.o")):
            _sweep(folder)
        write_file(folder / f"{name}.o", code.to_bytes())
    except OSError:
        return False
    return True


def make_private(folder: Path) -> None:
    """A folder of the cache that only its owner reaches. Raises OSError."""
    for private in (folder.parent, folder):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private.stat().st_mode & 0o777 != 0o700:
            os.chmod(private, 0o700)


def write_file(path: Path, content: bytes) -> None:
    """All of it or nothing: another name first, then renamed. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _sweep(folder: Path) -> None:
    """Forget sources not used for long, and what dead processes left behind."""
    ours = folder.parent
    os.utime(ours)
    others = [p for p in ours.parent.iterdir() if re.fullmatch("[0-9a-f]{16}", p.name) and p != ours]
    for path in sorted(others, key=_age)[KEPT_SOURCES - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
    for path in ours.glob("*/*.o.*"):
        if _age(path) > LEFT_OVER_S:
            path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since it was written; a path that is gone is old."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


# --- what came with the package ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Carried:
    """A folder of code for one target. `hashes`  SHA-256 of each kernel's file, in hex, by kernel"""

    folder: Path
    target: str
    sources: str
    compiler: str
    hashes: dict[str, str]

    def read(self, name: str) -> MachineCode | None:
        """None where the kernel is not there or not what the manifest says."""
        if name not in self.hashes:
            return None
        try:
            content = (self.folder / f"{name}.o").read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != self.hashes[name]:
            return None
        return MachineCode.from_bytes(content)

    def write_manifest(self) -> None:
        listed = {"target": self.target, "sources": self.sources, "compiler": self.compiler, "sha256": self.hashes}
        write_file(self.folder / "manifest.json", json.dumps(listed, indent=1).encode() + b"\n")


def read_manifests(folder: Path) -> Iterator[Carried]:
    """The targets that a folder holds; what is no manifest is passed over."""
    for path in sorted(folder.glob("*/manifest.json")):
        try:
            listed = json.loads(path.read_bytes())
            target, made_from, compiler = (listed[key] for key in ("target", "sources", "compiler"))
            hashes = dict(listed["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if all(isinstance(text, str) for text in (target, made_from, compiler, *hashes, *hashes.values())):
            yield Carried(path.parent, target, made_from, compiler, hashes)


def carried_folder() -> Path:
    """The package's own folder of machine code; GEMMAFILE_KERNELS names another."""
    return Path(os.environ.get("GEMMAFILE_KERNELS") or Path(__file__).parent / "carried")


@cache
def _carried_here() -> list[Carried]:
    """What is carried for this CPU, from these sources, best first."""
    if targets.is_overridden():
        return []
    order = [target.name for target in targets.runnable()]
    found = [c for c in read_manifests(carried_folder()) if c.target in order and c.sources == sources()]
    return sorted(found, key=lambda c: order.index(c.target))


def _read_carried(name: str) -> MachineCode | None:
    return next((code for c in _carried_here() if (code := c.read(name))), None)
