"""The program that travels with the weights: engine, packages, machine code and Pythons for the platforms asked for."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gemmafile.errors import GemmafileError
from gemmafile.pack.edition import Environment, PackedRuntime
from gemmafile.pack.layout import ENGINE_LICENCE
from gemmafile.pack.platforms import Platform
from gemmafile.pack.runtime import RuntimeTree, debian_runtime, given_runtime, this_runtime
from gemmafile.pack.wheels import (
    COMPILER,
    DEPENDENCIES,
    PURE,
    engine_wheel,
    kernels_wheel,
    published_wheel,
)


@dataclass
class Program:
    """`files` members by name · the rest as edition.Contents has them"""

    files: dict[str, bytes] = field(default_factory=dict)
    environments: list[Environment] = field(default_factory=list)
    runtimes: list[PackedRuntime] = field(default_factory=list)
    pythons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wish:
    """What is to travel. `runtime`  "auto", "this", "none" or a folder · `kernels` folders of machine code by platform
    `python`  of platforms without a runtime · `version` of this package"""

    platforms: Sequence[Platform]
    runtime: str | dict[str, Path]
    kernels: dict[str, list[Path]]
    python: str
    version: str
    with_compiler: bool = False


def collect(wish: Wish, cache: Path, say: Callable[[str], None]) -> Program:
    """Raises GemmafileError for what cannot be had."""
    program = Program()
    engine, content = engine_wheel(wish.version)
    program.files[f"wheels/{engine}"] = content
    everywhere = [f"wheels/{engine}"]
    for platform in wish.platforms:
        runtime = _runtime(wish, platform, cache, say)
        python = runtime.python if runtime else wish.python
        members = [*everywhere]
        if wish.kernels.get(platform.name):
            members.append(_add(program, *kernels_wheel(wish.version, platform, wish.kernels[platform.name])))
        if platform.tags:
            for package in (*DEPENDENCIES, *(COMPILER if wish.with_compiler else ())):
                members.append(_add(program, *published_wheel(package, platform, python, cache, say)))
            name = f"{platform.name}-cp{python.replace('.', '')}"
            program.environments.append(Environment(name, tuple(members), _unpacked_mb(program, members)))
        if python not in program.pythons:
            program.pythons.append(python)
        if runtime is not None:
            member = f"runtime/{platform.name}.tar.gz"
            program.files[member] = runtime.content
            program.runtimes.append(
                PackedRuntime(
                    member,
                    platform.name,
                    platform.uname,
                    runtime.python,
                    runtime.program,
                    runtime.loader,
                    -(-runtime.n_bytes // 1_000_000),
                    runtime.origin,
                )
            )
    members = [*everywhere]
    for package in PURE:
        members.append(_add(program, *published_wheel(package, None, wish.python, cache, say)))
    program.environments.append(Environment("any", tuple(dict.fromkeys(members)), _unpacked_mb(program, members)))
    return program


def _add(program: Program, name: str, content: bytes) -> str:
    """A wheel as a member, once."""
    member = f"wheels/{name}"
    program.files.setdefault(member, content)
    return member


def _runtime(wish: Wish, platform: Platform, cache: Path, say: Callable[[str], None]) -> RuntimeTree | None:
    choice = wish.runtime
    if isinstance(choice, dict):
        folder = choice.get(platform.name)
        return given_runtime(folder) if folder is not None else None
    if choice == "none" or not platform.name.startswith("linux-"):
        return None
    if choice == "this":
        return this_runtime(platform)
    try:
        return debian_runtime(platform, cache, say)
    except GemmafileError as error:
        say(f"{error}; packing this machine's own Python instead")
        return this_runtime(platform)


def _unpacked_mb(program: Program, members: Sequence[str]) -> int:
    total = 0
    for name in members:
        with zipfile.ZipFile(io.BytesIO(program.files[name])) as wheel:
            total += sum(entry.file_size for entry in wheel.infolist())
    return -(-total // 1_000_000)


def engine_licence() -> tuple[str, bytes]:
    """The engine's licence as a member."""
    return ENGINE_LICENCE, Path(__file__).with_name("APACHE-2.0.txt").read_bytes()
