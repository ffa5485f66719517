"""What people read in a packed file, and its default arguments: from flags, else from the archive the weights lie in.

Gemma's licence and notice go with every copy of its weights: who gives neither is told so here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmafile.cli.inspect import GEMMA_NOTICE
from gemmafile.errors import BadFile, BadSettings

if TYPE_CHECKING:
    from gemmafile.files.metadata import Metadata


def add_member_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--args-file", metavar="FILE", type=Path, help="default arguments, one a line; `...`: where the user's go"
    )
    parser.add_argument("--card", metavar="FILE", type=Path, help="the model card, Markdown with YAML front matter")
    parser.add_argument("--license", metavar="FILE", type=Path, help="the licence of the weights")
    parser.add_argument("--notice", metavar="FILE|TEXT", help="the notice that goes with every copy")
    parser.add_argument("--system-prompt", "-sys", metavar="TEXT", help="system prompt of chats with this file")


def collect_members(args: argparse.Namespace) -> tuple[dict[str, bytes], dict[str, Any]]:
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
