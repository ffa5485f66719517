"""`gemmafile export MODEL -o DIR`: a GGUF as a Hugging Face checkpoint; with --ollama, as a Modelfile for ollama."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gemmafile.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a GGUF, a llamafile, a checkpoint")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help="a new folder (with --ollama: a file)")
    parser.add_argument("--outtype", metavar="TYPE", default="auto", help="f32, f16, bf16, or auto (bf16 if quantised)")
    parser.add_argument("--ollama", action="store_true", help="write a Modelfile that names the GGUF instead")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    """Raises BadFile, BadSettings."""
    from gemmafile.cli.convert import check_room
    from gemmafile.convert.modelfile import write_modelfile
    from gemmafile.convert.to_checkpoint import exported_bytes, write_checkpoint
    from gemmafile.files.atomic import replace_file
    from gemmafile.files.open import open_model, title_of

    with open_model(args.model) as file:
        if args.ollama:
            text = write_modelfile(file, args.model.absolute())
            if args.output is None:
                sys.stdout.write(text)
            else:
                with replace_file(args.output) as out:
                    out.write(text.encode())
            return 0
        folder = args.output or Path(title_of(args.model) + "-hf")
        total = exported_bytes(file, args.outtype)
        check_room(folder, total)
        with Progress(f"writing {folder.name}", total, bytes=True, rate=True, quiet=args.quiet) as progress:
            write_checkpoint(file, folder, args.outtype, progress.advance)
    return 0
