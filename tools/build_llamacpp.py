"""Builds llama.cpp for this processor, as a judge of answers and a rival in speed; used by `make check`, not by users.

    python tools/build_llamacpp.py          (about a quarter of an hour on two cores, once)

Needs CMake, make or Ninja, and C and C++ compilers; where one is missing it says so and ends well (exit 0): the checks
that need llama.cpp are then skipped. The source is the one that the llama-cpp-python source package carries.
Out: .llamacpp/bin/ with llama-bench, llama-batched-bench, llama-perplexity, llama-quantize, llama-tokenize,
llama-completion, llama-server, llama-gguf-split and llamacpp_logits (tests/oracles/llamacpp_logits.c).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("GEMMAFILE_LLAMACPP") or ROOT / ".llamacpp")
PACKAGE = "llama-cpp-python==0.3.36"
TOOLS = (
    "llama-bench",
    "llama-batched-bench",
    "llama-perplexity",
    "llama-quantize",
    "llama-tokenize",
    "llama-completion",
    "llama-server",
    "llama-gguf-split",
)
PROBE = ROOT / "tests" / "oracles" / "llamacpp_logits.c"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
)

NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""Virtual machines that announce AMX and trap on its instructions are common; a judge must not crash."""


def main() -> int:
    missing = [name for name, found in _requirements().items() if not found]
    if missing:
        print(f"llama.cpp is not built, its checks will be skipped: no {', '.join(missing)} here", file=sys.stderr)
        return 0
    source, build = TARGET / "src", TARGET / "build"
    if not source.exists():
        _fetch_source(source)
    if not all((build / "bin" / tool).exists() for tool in TOOLS):
        _build_tools(source, build)
    probe = TARGET / "bin" / PROBE.stem
    if not probe.exists() or probe.stat().st_mtime < PROBE.stat().st_mtime:
        _build_probe(source, build, probe)
    for tool in TOOLS:
        link = TARGET / "bin" / tool
        if not link.exists():
            link.symlink_to(build / "bin" / tool)
    print(TARGET / "bin")
    return 0


def _requirements() -> dict[str, str | None]:
    return {
        "cmake": shutil.which("cmake"),
        "ninja or make": shutil.which("ninja") or shutil.which("make"),
        "C compiler (cc)": shutil.which("cc"),
        "C++ compiler (c++)": shutil.which("c++"),
    }


def _fetch_source(source: Path) -> None:
    source.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        _run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", scratch, PACKAGE])
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            if hasattr(tarfile, "data_filter"):  # Python 3.11.0 to 3.11.3 have none, nor the argument
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(scratch)
        next(Path(scratch).glob("*/vendor/llama.cpp")).rename(source)


def _build_tools(source: Path, build: Path) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    flags = [f"-DCMAKE_{language}_FLAGS={NO_AMX}" for language in ("C", "CXX") if platform.machine() == "x86_64"]
    _run(["cmake", *generator, "-S", str(source), "-B", str(build), *OPTIONS, *flags])
    n_jobs = len(os.sched_getaffinity(0))
    _run(["cmake", "--build", str(build), "-j", str(n_jobs), "--target", *TOOLS])


def _build_probe(source: Path, build: Path, probe: Path) -> None:
    probe.parent.mkdir(exist_ok=True)
    libraries = build / "bin"
    partial = probe.with_suffix(".partial")
    includes = [f"-I{source / 'include'}", f"-I{source / 'ggml' / 'include'}"]
    link = [f"-L{libraries}", f"-Wl,-rpath,{libraries.resolve()}", "-lllama", "-lggml", "-lggml-base"]
    _run(["cc", "-std=c11", "-O2", "-Wall", str(PROBE), *includes, *link, "-o", str(partial)])
    partial.replace(probe)


def _run(command: list[str]) -> None:
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        print(f"llama.cpp could not be built: {error}", file=sys.stderr)
        sys.exit(1)
