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
from gemmafile.cli.inspect import GEMMA_NOTICE
from gemmafile.errors import BackendUnavailable, BadFile, BadSettings
from gemmafile.progress import Progress

if TYPE_CHECKING:
    from gemmafile.files.metadata import Metadata
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


def add_member_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--args-file", metavar="FILE", type=Path, help="default arguments, one a line; `...`: where the user's go"
    )
    parser.add_argument("--card", metavar="FILE", type=Path, help="the model card, Markdown with YAML front matter")
    parser.add_argument("--license", metavar="FILE", type=Path, help="the licence of the weights")
    parser.add_argument("--notice", metavar="FILE|TEXT", help="the notice that goes with every copy")
    parser.add_argument("--system-prompt", "-sys", metavar="TEXT", help="system prompt of chats with this file")


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
    files, provenance = members(args)
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


def members(args: argparse.Namespace) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Members that people read, and where the weights come from: from flags, else from the archive they lie in."""
    from gemmafile.files.bundle import choose_weights
    from gemmafile.files.open import find_archive, open_model
    from gemmafile.pack.layout import ARGS, CARD, ENGINE_LICENCE, NOTICE, SYSTEM, WEIGHTS_LICENCE
    from gemmafile.pack.program import engine_licence

    files: dict[str, bytes] = dict([engine_licence()])
    bundle, member = find_archive(args.model)
    if bundle is not None:
        for name in (CARD, WEIGHTS_LICENCE, NOTICE, SYSTEM):
            raw = bundle.read(name)
            if raw is not None:
                files[name] = raw
        lines = bundle.default_args()
        if lines is not None:
            kept = without_model(lines, choose_weights(bundle, member).name)
            files[ARGS] = "".join(f"{line}\n" for line in kept).encode()
    files |= given_members(args)
    with open_model(args.model) as model:
        metadata = model.metadata
        if is_gemma(metadata):
            check_licence(args, files)
        provenance = describe_origin(metadata, files)
    return dict(sorted(files.items(), key=lambda item: item[0] == ENGINE_LICENCE)), provenance


def given_members(args: argparse.Namespace) -> dict[str, bytes]:
    """Members that flags give. Raises BadFile, BadSettings."""
    from gemmafile.pack.layout import ARGS, CARD, NOTICE, SYSTEM, WEIGHTS_LICENCE

    files: dict[str, bytes] = {}
    trailing = getattr(args, "trailing", None)
    if args.args_file is not None and trailing is not None:
        raise BadSettings("--args-file and arguments behind -- were both given: which ones?")
    if args.args_file is not None:
        files[ARGS] = read_text_file(args.args_file)
    elif trailing is not None:
        if any("\n" in word or "\r" in word for word in trailing):
            raise BadSettings("an argument with a newline cannot be packed; --system-prompt takes such texts")
        if "" in trailing:
            raise BadSettings("an empty argument cannot be packed: leave it out, with the flag before it")
        words = trailing if "..." in trailing else [*trailing, "..."]
        files[ARGS] = as_utf8("an argument", "".join(f"{word}\n" for word in words))
    if args.card is not None:
        files[CARD] = read_text_file(args.card)
    if args.license is not None:
        files[WEIGHTS_LICENCE] = read_text_file(args.license)
    if args.notice is not None:
        path = Path(args.notice)
        is_file = len(args.notice) < 4096 and "\n" not in args.notice and path.is_file()
        files[NOTICE] = read_text_file(path) if is_file else as_utf8("--notice", f"{args.notice}\n")
    if args.system_prompt is not None:
        files[SYSTEM] = as_utf8("--system-prompt", args.system_prompt)
    return files


def as_utf8(what: str, text: str) -> bytes:
    """Raises BadSettings for words that came in as other bytes."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadSettings(f"{what} is not UTF-8 text") from None


def read_text_file(path: Path) -> bytes:
    from gemmafile.files.bundle import MAX_ARGS_BYTES

    try:
        raw = path.read_bytes()
        raw.decode()
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BadFile(path, "is not UTF-8 text", byte=error.start) from None
    if len(raw) > MAX_ARGS_BYTES:
        raise BadFile(path, f"has {len(raw):,} bytes: a text in a packed file has at most {MAX_ARGS_BYTES:,}")
    return raw


def without_model(lines: list[str], name: str) -> list[str]:
    """Default arguments of a llamafile without the -m that names its own weights."""
    kept, left = [], list(lines)
    while left:
        word = left.pop(0)
        if word in ("-m", "--model") and left and Path(left[0]).name == Path(name).name:
            left.pop(0)
        else:
            kept.append(word)
    return kept


def is_gemma(metadata: Metadata) -> bool:
    told = (
        metadata.get("general.architecture", ""),
        metadata.get("general.name", ""),
        metadata.get("general.license", ""),
    )
    return any("gemma" in str(text).lower() for text in told)


def check_licence(args: argparse.Namespace, files: dict[str, bytes]) -> None:
    """Gemma's terms go with every copy of its weights. Raises BadSettings."""
    from gemmafile.pack.card import GEMMA_LICENCE
    from gemmafile.pack.layout import NOTICE, WEIGHTS_LICENCE

    if args.accept_license:
        files.setdefault(WEIGHTS_LICENCE, GEMMA_LICENCE.encode())
        files.setdefault(NOTICE, f"{GEMMA_NOTICE}\n".encode())
    missing = [flag for flag, name in (("--license", WEIGHTS_LICENCE), ("--notice", NOTICE)) if name not in files]
    if missing:
        raise BadSettings(
            f"these are Gemma weights, whose terms (ai.google.dev/gemma/terms, section 3.1) ask that every copy carries"
            f" the licence and a notice: give {' and '.join(missing)}, or --accept-license, which packs link and notice"
        )


def check_still_licensed(path: Path, contents: Any, files: dict[str, bytes]) -> None:
    """A file of Gemma weights keeps its licence and notice. Raises BadSettings."""
    from gemmafile.files.open import open_model
    from gemmafile.pack.layout import NOTICE, WEIGHTS_LICENCE

    lost = [name for name in (WEIGHTS_LICENCE, NOTICE) if name in contents.files and name not in files]
    if not lost:
        return
    with open_model(path) as model:
        if is_gemma(model.metadata):
            raise BadSettings(f"{lost[0]} is part of the terms of these weights and stays: give another in its place")


def front_matter(files: dict[str, bytes]) -> dict[str, Any]:
    from gemmafile.files.card import read_front_matter
    from gemmafile.pack.layout import CARD

    return dict(read_front_matter(files[CARD].decode())) if CARD in files else {}


_FROM_FILE = {
    "name": "general.name",
    "base_model": "general.base_model.0.repo_url",
    "quantized_by": "general.quantized_by",
    "license": "general.license",
    "license_link": "general.license.link",
    "source_url": "general.source.url",
}


def describe_origin(metadata: Metadata, files: dict[str, bytes]) -> dict[str, Any]:
    """Base model, quantiser and licence, as the card says, else as the weights' own metadata do."""
    card = front_matter(files)
    told = {name: card.get(name) or metadata.get(key) for name, key in _FROM_FILE.items()}
    return {name: value for name, value in told.items() if isinstance(value, (str, list)) and value}


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
