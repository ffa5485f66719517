"""`gemmafile split MODEL`: a GGUF in parts, as llama.cpp's gguf-split makes them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gemmafile.errors import BadSettings
from gemmafile.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a GGUF, whole or split")
    parser.add_argument("prefix", metavar="PREFIX", type=Path, nargs="?", help="parts are PREFIX-00001-of-0000N.gguf")
    parser.add_argument("--split-max-tensors", metavar="N", type=int, help="most tensors of a part (default: 128)")
    parser.add_argument("--split-max-size", metavar="N(M|G)", help="most bytes of a part's tensors, such as 2G")
    parser.add_argument("--no-tensor-first-split", action="store_true", help="the first part has the keys alone")
    parser.add_argument("--dry-run", action="store_true", help="say which parts there would be, and write none")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    """Raises BadFile, BadSettings."""
    from gemmafile.cli.convert import check_room
    from gemmafile.convert.parts import parse_size, plan_parts, split_model
    from gemmafile.files.open import open_model, title_of

    size = parse_size("--split-max-size", args.split_max_size) if args.split_max_size else None
    if size is not None and args.split_max_tensors is not None:
        raise BadSettings("--split-max-size and --split-max-tensors were both given: which one?")
    if args.split_max_tensors is not None and args.split_max_tensors < 1:
        raise BadSettings(f"--split-max-tensors is {args.split_max_tensors}, expected 1 or more")
    prefix = args.prefix or Path(title_of(args.model))
    with open_model(args.model) as file:
        parts = plan_parts(
            list(file.tensors.values()),
            max_tensors=args.split_max_tensors or 128,
            max_bytes=size,
            keys_alone=args.no_tensor_first_split,
        )
        total = sum(tensor.n_bytes for tensor in file.tensors.values())
        if args.dry_run:
            for i, part in enumerate(parts):
                print(f"part {i + 1}: {len(part)} tensors, {sum(t.n_bytes for t in part) / 1e6:,.1f} MB")
            return 0
        check_room(prefix, total)
        with Progress(f"splitting {args.model.name}", total, bytes=True, rate=True, quiet=args.quiet) as progress:
            paths = split_model(file, prefix, parts, progress.advance)
    if not args.quiet:
        print(f"gemmafile: {len(paths)} parts: {paths[0]} ...", file=sys.stderr)
    return 0
