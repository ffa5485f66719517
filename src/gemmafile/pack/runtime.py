"""A Python that runs from any folder: made from Debian's packages, from the Python at hand, or from a tree given.

A runtime is a tar.gz: `bin/python3` to be called by people, the files, and `whole` as its last member. On Linux it
brings its own C library and is started through that library's loader, so it needs nothing of the system it runs on.
The same inputs give the same bytes: names in order, no times, no owners.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gemmafile.errors import BadFile, GemmafileError
from gemmafile.pack.platforms import Platform, this_platform

_WANTED = (
    "libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libresolv.so.2 libnss_dns.so.2 "
    "libnss_files.so.2 libz.so.1 libexpat.so.1 libffi.so.8 libssl.so.3 libcrypto.so.3 libstdc++.so.6 libgcc_s.so.1 "
    "libbz2.so.1.0 liblzma.so.5 libuuid.so.1 libcrypt.so.1"
).split()
"""Shared libraries that the standard library and the wheels ask for."""

_PACKAGES = (
    "libc6 zlib1g libexpat1 libffi8 libssl3 libstdc++6 libgcc-s1 libbz2-1.0 liblzma5 libuuid1 libcrypt1 gcc-12-base"
).split()

_DROPPED = re.compile(
    r"^(idlelib|lib2to3|ensurepip|turtle.*|tkinter|pydoc_data|pydoc\.py|config-.*|test|sqlite3|dbm|curses|distutils"
    r"|EXTERNALLY-MANAGED|sitecustomize\.py|__phello__.*|dist-packages|site-packages|antigravity\.py|this\.py"
    r"|unittest|xmlrpc|wsgiref|venv|msilib|lib-tk|nntplib\.py|smtpd\.py|LICENSE\.txt)(/|$)"
    r"|lib-dynload/(_sqlite3|_dbm|_gdbm|_curses.*|_tkinter|_test.*|_xx.*|readline|nis|ossaudiodev|_crypt|xx.*)\."
    r"|(^|/)(__pycache__|tests?)(/|$)|\.exe$"
)

LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class RuntimeTree:
    """A runtime to be packed. `python` its version, "3.11" · `program`, `loader` inside the tarball ("" no loader)
    `origin` where it came from, in words · `n_bytes` unpacked"""

    content: bytes
    python: str
    program: str
    loader: str
    origin: str
    n_bytes: int


def debian_runtime(platform: Platform, cache: Path, say: Callable[[str], None]) -> RuntimeTree:
    """Debian's Python for a Linux, fetched once with apt-get. Raises GemmafileError where that cannot be done."""
    machine = platform.name.partition("-")[2]
    if not platform.name.startswith("linux-") or machine not in _DEBIAN:
        raise GemmafileError(f"Debian has no Python for {platform.name}: give a relocatable tree with --runtime")
    folder = cache / "runtimes" / f"debian-{_DEBIAN[machine]}"
    if not (folder / "fetched").exists():
        say(f"fetching Debian's Python for {platform.name} (once)")
        _fetch_debian(folder, _DEBIAN[machine])
    python = (folder / "fetched").read_text().strip()
    packages = " ".join(sorted(path.stem for path in (folder / "packages").glob("*.deb")))
    program, loader = f"bin/python{python}", f"lib/{LOADERS[machine]}"
    kept = _Kept(folder, f"{packages} {sys.version}")
    content = kept.read()
    if content is not None:
        return RuntimeTree(content, python, program, loader, f"Debian: {packages}", kept.n_bytes())
    root = folder / "root"
    tree: dict[str, tuple[bytes, bool]] = {}
    _add_stdlib(tree, root / f"usr/lib/python{python}", python)
    libraries = [root / f"lib/{_TRIPLETS[machine]}", root / f"usr/lib/{_TRIPLETS[machine]}"]
    _add_libraries(tree, libraries, LOADERS[machine])
    tree[f"bin/python{python}"] = (root / f"usr/bin/python{python}").read_bytes(), True
    for notice in sorted((root / "usr/share/doc").glob("*/copyright")):
        tree[f"share/doc/{notice.parent.name}/copyright"] = notice.read_bytes(), False
    made = _finish(tree, python, program, loader, f"Debian: {packages}")
    kept.write(made)
    return made


class _Kept:
    """A tarball kept beside what it was made from: to compress it takes seconds. Its name tells the code and inputs."""

    def __init__(self, folder: Path, inputs: str):
        source = Path(__file__).read_bytes()
        self._path = folder / f"{key_of(source + inputs.encode())}.gz"

    def read(self) -> bytes | None:
        try:
            content = self._path.read_bytes()
            return content if self._digest_path().read_text() == hashlib.sha256(content).hexdigest() else None
        except OSError:
            return None

    def _digest_path(self) -> Path:
        return self._path.with_suffix(".sha256")

    def n_bytes(self) -> int:
        return int(self._path.with_suffix(".bytes").read_text())

    def write(self, made: RuntimeTree) -> None:
        values = {".gz": made.content, ".bytes": str(made.n_bytes).encode()}
        values[".sha256"] = hashlib.sha256(made.content).hexdigest().encode()
        for suffix, content in values.items():
            path = self._path.with_suffix(suffix)
            new = path.with_name(f"{path.name}.{os.getpid()}")
            new.write_bytes(content)
            os.replace(new, path)


def _fetch_debian(folder: Path, architecture: str) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise GemmafileError("Debian's Python is fetched by apt-get, which this system does not have")
    for name in ("lists/partial", "archives/partial", "packages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": architecture, "APT::Architectures": architecture, "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null", "Dir::Cache": folder, "APT::Sandbox::User": _user(),
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def apt(program: str, *words: str) -> str:
        done = subprocess.run(
            [program, "-q", *options, *words], cwd=folder / "packages", capture_output=True, text=True, timeout=900,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise GemmafileError(f"{program} {words[0]}: {_last_line(done.stderr)}")
        return done.stdout

    apt("apt-get", "update")
    depends = apt("apt-cache", "depends", "python3-minimal")
    match = re.search(r"Depends: python(3\.\d+)-minimal", depends)
    if match is None:
        raise GemmafileError("Debian's python3-minimal does not say which Python it is")
    python = match[1]
    wanted = [f"python{python}-minimal", f"libpython{python}-minimal", f"libpython{python}-stdlib", *_PACKAGES]
    known = set(apt("apt-cache", "pkgnames").split())
    names = [name if name in known else f"{name}t64" for name in wanted]
    apt("apt-get", "download", *(name for name in names if name in known))
    for package in sorted((folder / "packages").glob("*.deb")):
        unpack = ["dpkg-deb", "-x", str(package), str(folder / "root")]
        done = subprocess.run(unpack, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise GemmafileError(f"{package.name} cannot be unpacked: {_last_line(done.stderr)}")
    (folder / "fetched.new").write_text(f"{python}\n")
    os.replace(folder / "fetched.new", folder / "fetched")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["failed"])[-1]


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def this_runtime(platform: Platform) -> RuntimeTree:
    """The Python that runs this, with the shared libraries it uses here. Raises GemmafileError."""
    machine = platform.name.partition("-")[2]
    if platform is not this_platform() or not platform.name.startswith("linux-") or not shutil.which("ldd"):
        raise GemmafileError(f"this machine's Python does not run on {platform.name}: give a tree with --runtime")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    binary = Path(os.path.realpath(sys.executable))
    stdlib = Path(os.__file__).resolve().parent
    tree: dict[str, tuple[bytes, bool]] = {}
    _add_stdlib(tree, stdlib, python)
    asked = [binary, *(stdlib / name.partition(f"python{python}/")[2] for name in tree if name.endswith(".so"))]
    folders: list[Path] = []
    for path in asked:
        done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, timeout=60, check=False)
        for line in re.findall(r"=> (/\S+)|^\s*(/\S+) \(", done.stdout, re.MULTILINE):
            library = Path(line[0] or line[1])
            folders.append(library.parent)
            tree[f"lib/{library.name}"] = library.read_bytes(), library.name.startswith("ld-")
    _add_libraries(
        tree,
        list(dict.fromkeys([*folders, Path(f"/usr/lib/{_TRIPLETS[machine]}"), Path("/usr/lib64")])),
        LOADERS[machine],
    )
    tree[f"bin/python{python}"] = binary.read_bytes(), True
    return _finish(
        tree,
        python,
        f"bin/python{python}",
        f"lib/{LOADERS[machine]}",
        f"this machine's Python {sys.version.split()[0]}",
    )


MAX_TREE_BYTES = 1 << 30
"""A Python's own tree is a tenth of it; a folder such as /usr, given by mistake, is not read whole into memory"""


def given_runtime(folder: Path) -> RuntimeTree:
    """Any tree that is a Python and runs where it is put: bin/python3 on Unix, python.exe on Windows."""
    program = next((p for p in ("bin/python3", "python.exe", "python/bin/python3") if (folder / p).exists()), None)
    stdlib = next(iter(sorted(folder.glob("**/python3.[0-9]*/os.py"))), None) or next(
        iter(folder.glob("**/Lib/os.py")), None
    )
    if program is None or stdlib is None:
        raise BadFile(folder, "is no tree of a Python: it has no bin/python3 (or python.exe) and no standard library")
    match = re.search(r"python(3\.\d+)", stdlib.parent.name) or re.search(
        r"python(3)(\d+)\.dll", " ".join(p.name for p in folder.iterdir())
    )
    python = match[1] if match and "." in match[1] else f"3.{match[2]}" if match else "3.11"
    tree: dict[str, tuple[bytes, bool]] = {}
    room = MAX_TREE_BYTES
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        inside = path.relative_to(stdlib.parent).as_posix() if path.is_relative_to(stdlib.parent) else ""
        if path.is_file() and "__pycache__" not in name and not (inside and _DROPPED.search(inside)):
            room -= path.stat().st_size
            if room < 0:
                raise BadFile(folder, f"holds more than {MAX_TREE_BYTES >> 20} MiB: give the tree of a Python alone")
            tree[name] = path.read_bytes(), os.access(path, os.X_OK)
    loader = next((f"lib/{name}" for name in LOADERS.values() if f"lib/{name}" in tree), "")
    if loader:
        program = next((n for n in sorted(tree) if re.fullmatch(r"bin/python3\.\d+", n)), program)
    return _finish(tree, python, program, loader, f"the tree {folder.name}", add_start=False)


def _add_stdlib(tree: dict[str, tuple[bytes, bool]], stdlib: Path, python: str) -> None:
    for path in sorted(stdlib.rglob("*")):
        name = path.relative_to(stdlib).as_posix()
        if path.is_file() and not _DROPPED.search(name):
            tree[f"lib/python{python}/{name}"] = path.read_bytes(), False


def _add_libraries(tree: dict[str, tuple[bytes, bool]], folders: list[Path], loader: str) -> None:
    for name in (*_WANTED, loader):
        found = next((folder / name for folder in folders if (folder / name).exists()), None)
        if found is not None:
            tree[f"lib/{name}"] = found.read_bytes(), name == loader


def _finish(
    tree: dict[str, tuple[bytes, bool]], python: str, program: str, loader: str, origin: str, add_start: bool = True
) -> RuntimeTree:
    if add_start:
        start = f'#!/bin/sh\nd=${{0%/bin/*}}\nexec "$d/{loader}" --library-path "$d/lib" "$d/{program}" "$@"\n'
        tree["bin/python3"] = start.encode(), True
        _add_bytecode(tree, python)
    tree["ORIGIN"] = f"{origin}\n".encode(), False
    tree["used"] = b"", False
    return RuntimeTree(_write_tar(tree), python, program, loader, origin, sum(len(c) for c, _ in tree.values()))


_COMPILE = """
import importlib.util, marshal, sys, os
out = sys.stdout.buffer
for line in sys.stdin.buffer.read().decode().splitlines():
    with open(line, "rb") as f: source = f.read()
    try: code = compile(source, line, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError): code = None
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    raw = b"" if code is None else head + marshal.dumps(code)
    out.write(len(raw).to_bytes(8, "little") + raw)
"""


def _add_bytecode(tree: dict[str, tuple[bytes, bool]], python: str) -> None:
    """Bytecode beside the standard library, so that the first start does not compile it. Marked as not to be checked
    against its source: both come from one checked tarball. Left out where no Python of that version is at hand."""
    if python != f"{sys.version_info[0]}.{sys.version_info[1]}":
        return
    names = [name for name in sorted(tree) if name.endswith(".py")]
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tree[name][0])
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-X", "frozen_modules=off", "-c", _COMPILE], cwd=scratch,
            input="\n".join(names).encode(), capture_output=True, timeout=300, check=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
    stream = io.BytesIO(done.stdout)
    tag = f"cpython-{python.replace('.', '')}"
    for name in names:
        raw = stream.read(int.from_bytes(stream.read(8), "little"))
        folder, _, file = name.rpartition("/")
        if raw:
            tree[f"{folder}/__pycache__/{file[:-3]}.{tag}.pyc"] = raw, False


def _write_tar(tree: dict[str, tuple[bytes, bool]]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in [*sorted(tree), "whole"]:
            content, executable = tree.get(name, (b"", False))
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), 0o755 if executable else 0o644, 1_000_000_000
            tar.addfile(info, io.BytesIO(content))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0, filename="") as out:
        out.write(plain.getvalue())
    return packed.getvalue()


def key_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
