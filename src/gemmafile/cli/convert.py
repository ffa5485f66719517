"""`gemmafile convert DIR`: a Hugging Face checkpoint as a GGUF file; a LoRA adapter's folder as a GGUF adapter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gemmafile.errors import BadFile, BadSettings
from gemmafile.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile convert`, as those of llama.cpp's convert_hf_to_gguf.py."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with config.json and safetensors")
    parser.add_argument(
        "-o", "--output", "--outfile", metavar="FILE", type=Path, help="default: NAME-SIZE-TYPE.gguf here"
    )
    parser.add_argument(
        "--outtype", metavar="TYPE", default="auto", help="f32, f16, bf16, q8_0, or auto: as the checkpoint (default)"
    )
    parser.add_argument(
        "--base", metavar="DIR", type=Path, help="for an adapter: the model it is for, if it is elsewhere"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes")


def main(args: argparse.Namespace) -> int:
    """Raises BadFile, BadSettings."""
    from gemmafile.convert.to_gguf import choose_format, converted_bytes, write_converted
    from gemmafile.files.huggingface.adapter import is_adapter_folder
    from gemmafile.files.huggingface.checkpoint import Checkpoint
    from gemmafile.files.huggingface.folder import find_folder
    from gemmafile.files.huggingface.provenance import file_name

    if is_adapter_folder(args.folder):
        return convert_adapter(args)
    folder = find_folder(args.folder)
    if folder is None:
        raise BadFile(args.folder, "is no folder of a checkpoint (config.json and safetensors)")
    with Checkpoint(folder) as checkpoint:
        name = choose_format(checkpoint, args.outtype)
        keys = {key: checkpoint.metadata.typed(key) for key in checkpoint.metadata}
        out = output_path(args.output, file_name(keys, name))
        total = converted_bytes(checkpoint, name)
        check_room(out, total)
        if not args.quiet:
            for note in checkpoint.notes:
                print(f"gemmafile: {note}", file=sys.stderr)
        with Progress(f"writing {out.name}", total, bytes=True, rate=True, quiet=args.quiet) as progress:
            write_converted(checkpoint, out, name, progress.advance)
    if not args.quiet:
        print(f"gemmafile: {out}: {len(checkpoint.sources)} tensors, {total / 1e6:,.1f} MB, {name}", file=sys.stderr)
    return 0


def convert_adapter(args: argparse.Namespace) -> int:
    """PEFT's folder to a GGUF adapter. Raises BadFile, BadSettings."""
    from gemmafile.convert.adapter import read_peft, write_adapter
    from gemmafile.files.huggingface.provenance import to_title

    name = args.folder.absolute().name
    peft, architecture = read_peft(args.folder, args.base)
    out = output_path(args.output, f"{name}-lora.gguf")
    write_adapter(peft, architecture, out, to_title(name))
    if not args.quiet:
        print(f"gemmafile: {out}: {len(peft.pairs)} matrices adapted", file=sys.stderr)
    return 0


def output_path(given: Path | None, name: str) -> Path:
    """Where to write: the file given, the folder given and `name` in it, or `name` here. Raises BadSettings."""
    out = given if given is not None else Path(name)
    out = out / name if out.is_dir() else out
    if not out.absolute().parent.is_dir():
        raise BadSettings(f"{out.parent} is no folder")
    return out


def check_room(out: Path, n_bytes: int) -> None:
    """Raises BadFile where the disk has not so many bytes left."""
    import os
    import shutil

    place = Path(os.path.realpath(out)).parent
    while not place.exists() and place != place.parent:  # folders that are still to be made
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise BadFile(out, f"needs {n_bytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are left on that disk")
