"""The packages that travel in a file: our own, made here from its sources, and those of others as they were published.

A published wheel is stored whole, so its hash is the one its index lists. Where pip cannot fetch it (no network), the
package installed here is made into a wheel again, if it would run on the platform.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from gemmafile.errors import GemmafileError
from gemmafile.pack.platforms import Platform, this_platform

SERVER = ("starlette", "anyio", "idna", "typing_extensions", "uvicorn", "click", "h11")
PAGE = ("markdown_it_py", "mdurl", "mdit_py_plugins", "pygments", "latex2mathml", "pypdf")
"""What the server and its page import, and what that needs: Python alone."""

PURE = ("jinja2", "markupsafe", "platformdirs", *SERVER, *PAGE)
DEPENDENCIES = ("numpy", "llguidance", *PURE)
"""What the engine imports; `any` platform gets those that are Python alone, and brings its own NumPy."""

COMPILER = ("numba", "llvmlite")

Files = dict[str, bytes]


def write_wheel(files: Files) -> bytes:
    """A wheel with these files: the same bytes for the same files, on every machine."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o100644 << 16
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(info, files[name])
    return out.getvalue()


def engine_wheel(version: str) -> tuple[str, bytes]:
    """(name, content) of this package without machine code."""
    package = Path(__file__).resolve().parent.parent
    files: Files = {}
    for path in sorted(package.rglob("*")):
        inside = path.relative_to(package).as_posix()
        if path.is_file() and "__pycache__" not in inside and not inside.startswith("kernels/carried/"):
            files[f"gemmafile/{inside}"] = path.read_bytes()
    info = f"gemmafile-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: gemmafile\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: gemmafile\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return f"gemmafile-{version}-py3-none-any.whl", write_wheel(_recorded(files, info))


def kernels_wheel(version: str, platform: Platform, folders: Iterable[Path]) -> tuple[str, bytes]:
    """(name, content) of the machine code for a platform; it lies in the engine's package once unpacked."""
    files: Files = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".o", ".json"):
                files[f"gemmafile/kernels/carried/{folder.name}/{path.name}"] = path.read_bytes()
    info = f"gemmafile_kernels-{version}.dist-info"
    tag = f"py3-none-{platform.name.replace('-', '_')}"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: gemmafile-kernels\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: gemmafile\nTag: {tag}\n".encode()
    return f"gemmafile_kernels-{version}-{tag}.whl", write_wheel(_recorded(files, info))


def _recorded(files: Files, info: str) -> Files:
    import base64

    def row(name: str, content: bytes) -> str:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        return f"{name},sha256={digest},{len(content)}\n"

    rows = "".join(row(name, files[name]) for name in sorted(files)) + f"{info}/RECORD,,\n"
    return {**files, f"{info}/RECORD": rows.encode()}


def published_wheel(
    package: str, platform: Platform | None, python: str, cache: Path, say: Callable[[str], None]
) -> tuple[str, bytes]:
    """(name, content) of the wheel of the version installed here, for a platform (None: any) and a Python ("3.11").

    Kept in `cache`. Raises GemmafileError where it cannot be had.
    """
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise GemmafileError(f"{package} is not installed here, so it is not known which version to pack") from None
    folder = cache / "wheels" / f"{platform.name if platform else 'any'}-cp{python.replace('.', '')}"
    found = _kept(folder, package, version)
    if found is None:
        say(f"fetching {package} {version} for {platform.name if platform else 'any platform'}, Python {python}")
        reason = _download(folder, package, version, platform, python)
        found = _kept(folder, package, version)
        if found is None:
            return _rebuilt(package, platform, python, reason)
    return found.name, found.read_bytes()


def _kept(folder: Path, package: str, version: str) -> Path | None:
    wanted = package.replace("-", "_").lower()
    for path in sorted(folder.glob("*.whl")):
        name, found, *_ = path.name.split("-")
        if name.lower() == wanted and found == version and zipfile.is_zipfile(path):
            return path
    return None


def _download(folder: Path, package: str, version: str, platform: Platform | None, python: str) -> str:
    """Let pip fetch a wheel into a folder; returns its last words when it could not."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    for tag in (*(platform.tags if platform else this_platform().tags), "any"):
        command += ["--platform", tag]
    try:
        done = subprocess.run(
            [*command, f"{package}=={version}"], capture_output=True, text=True, timeout=600, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else "pip found none"


def _rebuilt(package: str, platform: Platform | None, python: str, reason: str) -> tuple[str, bytes]:
    """The package installed here, as a wheel again. Raises GemmafileError where that would not run there."""
    here = platform is None or platform is this_platform()
    if not here or python != f"{sys.version_info[0]}.{sys.version_info[1]}":
        where = platform.name if platform else "any platform"
        raise GemmafileError(f"no wheel of {package} for {where} and Python {python}: {reason}")
    distribution = metadata.distribution(package)
    files: Files = {}
    for entry in distribution.files or []:
        path = Path(str(distribution.locate_file(entry)))
        name = entry.as_posix()
        skip = (
            name.startswith("../")
            or "__pycache__" in name
            or path.name in ("INSTALLER", "REQUESTED", "direct_url.json")
        )
        if not skip and path.is_file():
            files[name] = path.read_bytes()
    tag = f"cp{python.replace('.', '')}-none-{platform.name.replace('-', '_') if platform else 'any'}"
    return f"{package.replace('-', '_')}-{distribution.version}-{tag}.whl", write_wheel(files)
