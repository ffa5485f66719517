"""`gemmafile edit FILE`: change what a packed file carries beside its weights, in place and in seconds."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemmafile import __version__
from gemmafile.cli import members, pack
from gemmafile.errors import BadSettings

USAGE = "gemmafile edit FILE [flags] [-- ARGS...]"
split_args = pack.split_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile edit`."""
    parser.usage = USAGE
    parser.add_argument("file", metavar="FILE", type=Path, help="a packed file")
    members.add_member_arguments(parser)
    parser.add_argument("--set-args", metavar="ARGS", help="default arguments, quoted as for a shell (or behind --)")
    parser.add_argument(
        "--remove", metavar="NAME,...", help="take out: args, card, license, notice, system-prompt, signature"
    )
    parser.add_argument(
        "--engine", action="store_true", help="swap the engine, its packages and Python for the installed version's"
    )
    pack.add_program_arguments(parser)
    parser.add_argument("--sign", metavar="KEY", type=Path, help="sign the result with this ed25519 key (PEM)")
    parser.add_argument("--quiet", action="store_true", help="say nothing")


def main(args: argparse.Namespace) -> int:
    """Raises BadSettings, BadFile, GemmafileError; the file is then as it was."""
    from gemmafile.pack.edit import contents_of, open_for_edit, write_edition

    say = pack.make_say(args.quiet)
    if args.set_args is not None:
        args.trailing = _split(args)
    changed, removed = members.given_members(args), _removed(args)
    signer = None
    if args.sign is not None:
        from gemmafile.pack.sign import Signer

        signer = Signer(args.sign)
    if not (changed or removed or args.engine or signer):
        raise BadSettings("what is to be changed? gemmafile edit --help lists it")
    with open_for_edit(args.file) as opened:
        contents = contents_of(opened)
        files = {name: raw for name, raw in contents.files.items() if name not in removed} | changed
        members.check_still_licensed(args.file, contents, files)
        if args.engine:
            contents = _with_engine(contents, files, args, say)
        else:
            contents = replace(contents, files=_in_order(files))
        contents = replace(
            contents,
            card=members.front_matter(files),
            tool=f"gemmafile {__version__}" if args.engine else contents.tool,
        )
        if opened.checked.signature is not None and signer is None:
            say("the file was signed, and is not any more: --sign signs it again")
        edition = write_edition(
            opened, contents, sign=signer.sign if signer else None, public_key=signer.public_pem if signer else None
        )
    say(f"{args.file}: {edition.end / 1e6:,.1f} MB")
    return 0


def _split(args: argparse.Namespace) -> list[str]:
    import shlex

    if args.trailing is not None:
        raise BadSettings("--set-args and arguments behind -- were both given: which ones?")
    try:
        return shlex.split(args.set_args)
    except ValueError as error:
        raise BadSettings(f"--set-args: {error}") from None


def _removed(args: argparse.Namespace) -> set[str]:
    from gemmafile.errors import nearest
    from gemmafile.pack.layout import ARGS, CARD, NOTICE, SIGNATURE, SYSTEM, WEIGHTS_LICENCE

    names = {
        "args": ARGS, "card": CARD, "license": WEIGHTS_LICENCE, "notice": NOTICE, "system-prompt": SYSTEM,
        "signature": SIGNATURE,
    }  # fmt: skip
    removed = set()
    for word in (args.remove or "").split(","):
        if word and word not in names:
            raise BadSettings(f"--remove {word}{nearest(word, names)}: expected {', '.join(names)}")
        if word:
            removed.add(names[word])
    return removed


def _in_order(files: dict[str, bytes]) -> dict[str, bytes]:
    """What people read first, then what runs."""
    return dict(sorted(files.items(), key=lambda item: item[0].startswith(("wheels/", "runtime/"))))


def _with_engine(contents: Any, files: dict[str, bytes], args: argparse.Namespace, say: Any) -> Any:
    """The program of the installed version, for the platforms that the file was packed for."""
    if not args.platform:
        names = [*(r.platform for r in contents.runtimes), *(e.name.rpartition("-")[0] for e in contents.environments)]
        args.platform = ",".join(dict.fromkeys(name for name in names if name)) or None
    if not contents.runtimes and not args.runtime:
        args.no_runtime = True
    program = pack.collect_program(args, say)
    kept = {name: raw for name, raw in files.items() if not name.startswith(("wheels/", "runtime/"))}
    from gemmafile.pack.program import engine_licence

    return replace(
        contents, files=_in_order(kept | dict([engine_licence()]) | program.files),
        environments=program.environments, runtimes=program.runtimes, pythons=program.pythons,
    )  # fmt: skip
