"""`gemmafile pack MODEL`: a model, its engine and its licences as one executable file."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmafile import __version__
from gemmafile.cli.members import (
    add_member_arguments,
    check_licence,
    collect_members,
    front_matter,
    given_members,
    is_gemma,
)
from gemmafile.errors import BackendUnavailable, BadSettings
from gemmafile.progress import Progress

if TYPE_CHECKING:
    from gemmafile.pack.platforms import Platform
    from gemmafile.pack.program import Program

USAGE = "gemmafile pack MODEL [-o FILE] [flags] [-- ARGS...]"
_FORMAT = re.compile(r"(.+?)[-._]((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|F16|F32|FP16|FP32|MXFP4\w*))$", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile pack`; those that choose the program are `edit --engine`'s too."""
    parser.usage = USAGE
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="a GGUF (of a split one the first part), a .llamafile, FILE.zip@MEMBER, a checkpoint's folder",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="default: NAME.FORMAT.llamafile here")
    add_member_arguments(parser)
    parser.add_argument(
        "--accept-license", action="store_true", help="you accept the Gemma Terms of Use: pack their notice and link"
    )
    add_program_arguments(parser)
    parser.add_argument("--sign", metavar="KEY", type=Path, help="sign with this ed25519 key (PEM)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_program_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--platform",
        metavar="NAME,...",
        help="linux-x86_64, linux-aarch64, macos-arm64, windows-amd64 ... (default: this machine's)",
    )
    parser.add_argument(
        "--runtime",
        metavar="KIND",
        action="append",
        help="the Python inside: auto (Debian's on Linux), this (this machine's), DIR, or PLATFORM=DIR (repeatable)",
    )
    parser.add_argument("--no-runtime", action="store_true", help="no Python inside: the one of the machine it runs on")
    parser.add_argument(
        "--python", metavar="3.N", help="which Python the packages are for where none is inside (default: this one's)"
    )
    parser.add_argument(
        "--cpu", metavar="CPU,...", help="machine code that travels (default: the common ones; none: no machine code)"
    )
    parser.add_argument(
        "--with-compiler", action="store_true", help="pack Numba too, for CPUs without machine code inside"
    )


def split_args(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The words before `--`, and those behind it: default arguments for the file."""
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


def main(args: argparse.Namespace) -> int:
    """Raises BadSettings, BadFile, GemmafileError."""
    from gemmafile.files.huggingface.folder import find_folder

    folder = find_folder(args.model)
    return pack_gguf(args) if folder is None else pack_checkpoint(args, folder)


def pack_checkpoint(args: argparse.Namespace, folder: Path) -> int:
    """Convert a checkpoint beside the file to be, and pack that; its README.md and LICENSE go with it."""
    import tempfile

    from gemmafile.cli.convert import check_room
    from gemmafile.convert.to_gguf import choose_format, converted_bytes, write_converted
    from gemmafile.files.atomic import removed_if_ended
    from gemmafile.files.huggingface.checkpoint import Checkpoint
    from gemmafile.files.huggingface.provenance import file_name

    place = args.output if args.output is not None and args.output.is_dir() else (args.output or Path("x")).parent
    if not place.is_dir():
        raise BadSettings(f"{place} is no folder")
    with (
        Checkpoint(folder) as checkpoint,
        tempfile.TemporaryDirectory(prefix=".packing-", dir=place) as scratch,
        removed_if_ended(Path(scratch)),
    ):
        if is_gemma(checkpoint.metadata):  # said before hours of work
            check_licence(args, given_members(args))
        name = choose_format(checkpoint, "auto")
        keys = {key: checkpoint.metadata.typed(key) for key in checkpoint.metadata}
        converted, total = Path(scratch, file_name(keys, name)), converted_bytes(checkpoint, name)
        check_room(converted, 2 * total)
        for note in checkpoint.notes:
            make_say(args.quiet)(note)
        with Progress(f"converting {folder.name}", total, bytes=True, rate=True, quiet=args.quiet) as progress:
            write_converted(checkpoint, converted, name, progress.advance)
        args.model = converted
        if args.card is None and (folder / "README.md").is_file():
            args.card = folder / "README.md"
        if args.license is None and (folder / "LICENSE").is_file():
            args.license = folder / "LICENSE"
        return pack_gguf(args)


def pack_gguf(args: argparse.Namespace) -> int:
    """Raises as `main`."""
    from gemmafile.pack.build import build, find_sources, weights_entries
    from gemmafile.pack.edition import Contents
    from gemmafile.pack.layout import ARGS, CARD, ENGINE_LICENCE, NOTICE, SYSTEM, WEIGHTS_LICENCE

    say = make_say(args.quiet)
    sources = find_sources(args.model)
    out = (args.output or default_name(sources[0].name)).absolute()
    if out.is_dir():
        out = out / default_name(sources[0].name).name
    if not out.parent.is_dir():
        raise BadSettings(f"{out.parent} is no folder")
    if out.exists() and any(out.samefile(source.path) for source in sources):
        raise BadSettings(f"{out} is the model itself: give another name with -o")
    files, provenance = collect_members(args)
    signer = None
    if args.sign is not None:
        from gemmafile.pack.sign import Signer

        signer = Signer(args.sign)
    program = collect_program(args, say)
    order = (ARGS, CARD, WEIGHTS_LICENCE, NOTICE, SYSTEM, ENGINE_LICENCE)
    contents = Contents(
        tool=f"gemmafile {__version__}",
        name=sources[0].name,
        files={name: files[name] for name in order if name in files} | program.files,
        weights=weights_entries(sources),
        environments=program.environments,
        runtimes=program.runtimes,
        pythons=program.pythons,
        provenance=provenance,
        card=front_matter(files),
        public_key=signer.public_pem if signer else None,
    )
    total = sum(source.size for source in sources)
    with Progress(f"packing {out.name}", total=total, bytes=True, rate=True, quiet=args.quiet) as progress:
        edition = build(contents, sources, out, sign=signer.sign if signer else None, on_bytes=progress.advance)
    say(f"{out}: {edition.end / 1e6:,.1f} MB, {(edition.end - total) / 1e6:.1f} MB of them engine and licences")
    return 0


def make_say(quiet: bool) -> Callable[[str], None]:
    """Lines for the user, on stderr."""

    def say(line: str) -> None:
        if not quiet:
            print(f"gemmafile: {line}", file=sys.stderr)

    return say


def default_name(model: str) -> Path:
    """gemma-2-27b-it-Q6_K.gguf -> gemma-2-27b-it.Q6_K.llamafile"""
    from gemmafile.files.open import title_of

    stem = title_of(Path(model).name)
    match = _FORMAT.fullmatch(stem)
    return Path(f"{match[1]}.{match[2]}.llamafile" if match else f"{stem}.llamafile")


# --- the program that travels -----------------------------------------------------------------------------------------


def collect_program(args: argparse.Namespace, say: Any) -> Program:
    """Engine, packages, machine code, Pythons. Raises BadSettings, GemmafileError."""
    from gemmafile.kernels.kept import cache_root
    from gemmafile.pack.platforms import find_platform, this_platform
    from gemmafile.pack.program import Wish, collect

    names = args.platform.split(",") if args.platform else [this_platform().name]
    platforms = list(dict.fromkeys(find_platform(name) for name in names))
    python = args.python or f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not re.fullmatch(r"3\.1[1-9]|3\.[2-9]\d", python):
        raise BadSettings(f"--python is {python!r}, expected 3.11 or newer")
    cache = cache_root().parent
    kernels = {p.name: machine_code(p, args.cpu, cache, say, args.quiet) for p in platforms}
    return collect(Wish(platforms, runtime_choice(args), kernels, python, __version__, args.with_compiler), cache, say)


def runtime_choice(args: argparse.Namespace) -> Any:
    """ "auto", "this", "none", or folders by platform. Raises BadSettings."""
    from gemmafile.pack.platforms import find_platform, this_platform

    if args.no_runtime and args.runtime:
        raise BadSettings("--runtime and --no-runtime were both given: which one?")
    if args.no_runtime:
        return "none"
    given = args.runtime or ["auto"]
    if given in (["auto"], ["this"]):
        return given[0]
    folders: dict[str, Path] = {}
    for word in given:
        name, equals, path = word.partition("=")
        folder = Path(path if equals else word)
        if not folder.is_dir():
            raise BadSettings(f"--runtime is {word!r}: expected auto, this, a folder, or PLATFORM=FOLDER")
        folders[find_platform(name).name if equals else this_platform().name] = folder
    return folders


def machine_code(platform: Platform, cpus: str | None, cache: Path, say: Any, quiet: bool) -> list[Path]:
    """Folders of machine code for a platform, compiled now where there is none of these sources."""
    from gemmafile.kernels import kept, targets

    if cpus == "none":
        return []
    chosen = [targets.find_target(name.strip()) for name in cpus.split(",")] if cpus else []
    machine = platform.name.partition("-")[2]
    names = [t.name for t in chosen if t.machine == machine] if chosen else list(platform.kernels)
    root = cache / "carried" / kept.sources()
    folders = []
    for name in names:
        whole = {c.target: c.folder for place in (kept.carried_folder(), root) for c in kept.read_manifests(place)
                 if c.sources == kept.sources() and all(c.read(kernel) for kernel in c.hashes)}  # fmt: skip
        try:
            folders.append(whole[name] if name in whole else compile_for(name, root, quiet))
        except BackendUnavailable as error:
            if chosen:
                raise
            say(f"{error}; packing without")
    return folders


def compile_for(name: str, root: Path, quiet: bool) -> Path:
    from gemmafile.kernels import targets

    try:
        from gemmafile.kernels import build

        target = targets.find_target(name)
        count = len(build.kernel_names(target))
    except ImportError as error:
        raise BackendUnavailable(
            f"machine code for {name} is compiled by Numba, which is not installed ({error}); --cpu none"
        ) from error
    with Progress(f"compiling kernels for {name} (once)", total=count, quiet=quiet) as progress:
        build.build_target(target, root, progress.advance)
    return root / name


def show_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, ensure_ascii=False, indent=2))
