"""`gemmafile extract FILE DIR`: the plain GGUF back out, byte for byte, with the card and the licences beside it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gemmafile.errors import BadFile, BadSettings, GemmafileError
from gemmafile.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile extract`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a packed file, a llamafile, a ZIP with a GGUF in it")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where it goes; made where it is missing")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    """Raises BadFile for a file without weights, or whose weights are not what was packed."""
    from gemmafile.files.open import find_archive
    from gemmafile.pack.build import find_sources
    from gemmafile.pack.layout import ARGS, CARD, NOTICE, SYSTEM, WEIGHTS_LICENCE

    bundle, _ = find_archive(args.file)
    if bundle is None:
        raise BadFile(args.file, "is no archive that a model could be taken from")
    sources = find_sources(args.file)
    args.folder.mkdir(parents=True, exist_ok=True)
    targets = [args.folder / source.name for source in sources]
    for target in targets:
        if target.exists() and not args.force:
            raise BadSettings(f"{target} is there already: --force writes over it")
    hashes = packed_hashes(args.file)
    total = sum(source.size for source in sources)
    with Progress(f"extracting {args.file.name}", total=total, bytes=True, rate=True, quiet=args.quiet) as progress:
        for source, target in zip(sources, targets, strict=True):
            copy(source, target, hashes.get(source.name), progress)
    for name in (CARD, WEIGHTS_LICENCE, NOTICE, ARGS, SYSTEM):
        raw = bundle.read(name)
        if raw is not None and (args.force or not (args.folder / name).exists()):
            (args.folder / name).write_bytes(raw)
    for target in targets:
        print(target)
    return 0


def packed_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of each GGUF as the manifest has it; {} for a file without one."""
    from gemmafile.pack.verify import is_packed, read_manifest

    if not is_packed(path):
        return {}
    return {entry.name: entry.sha256 for entry in read_manifest(path).manifest.weights}


def copy(source: object, target: Path, digest: str | None, progress: Progress) -> None:
    from gemmafile.pack.build import Source, check_room, new_file, write_at
    from gemmafile.pack.hashing import TreeHash, stream

    assert isinstance(source, Source)
    check_room(target.absolute(), source.size)
    tree = TreeHash()
    with new_file(target) as out, source.path.open("rb") as file:
        out.truncate(source.size)
        done = stream(
            file, source.offset, source.size, tree, lambda block, at: write_at(out, at, block), progress.advance
        )
        found = tree.finish()
        if done != source.size or (digest is not None and found != digest):
            raise BadFile(source.path, f"{source.name} is not what was packed: nothing was extracted (see --verify)")
    try:
        os.chmod(target, 0o644)
    except OSError as error:
        raise GemmafileError(f"{target}: {error.strerror}") from None
    print(f"{target.name}: SHA-256 {found}", file=sys.stderr)
