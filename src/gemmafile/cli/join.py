"""`gemmafile join FIRST-PART FILE`: the parts of a split GGUF as one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemmafile.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FIRST-PART", type=Path, help="NAME-00001-of-0000N.gguf")
    parser.add_argument("output", metavar="FILE", type=Path, help="the whole model")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    """Raises BadFile, BadSettings."""
    from gemmafile.cli.convert import check_room, output_path
    from gemmafile.convert.parts import join_model
    from gemmafile.files.open import open_model

    with open_model(args.model) as file:
        out = output_path(args.output, "model.gguf")
        total = sum(tensor.n_bytes for tensor in file.tensors.values())
        check_room(out, total)
        with Progress(f"writing {out.name}", total, bytes=True, rate=True, quiet=args.quiet) as progress:
            join_model(file, out, progress.advance)
    return 0
