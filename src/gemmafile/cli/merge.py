"""`gemmafile merge MODEL --lora ADAPTER -o FILE`: adapters baked into a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemmafile.errors import BadSettings
from gemmafile.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="a GGUF, a llamafile, a checkpoint's folder")
    parser.add_argument(
        "--lora", metavar="ADAPTER", action="append", default=[], help="a GGUF adapter or PEFT's folder"
    )
    parser.add_argument("--lora-scaled", metavar="ADAPTER:SCALE", action="append", default=[], help="the same, scaled")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True)
    parser.add_argument("--outtype", metavar="TYPE", default="auto", help="of adapted matrices: f32, f16, bf16, q8_0")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    """Raises BadFile, BadSettings."""
    from gemmafile.cli.convert import check_room, output_path
    from gemmafile.convert.adapter import merge_adapters
    from gemmafile.files.open import check_is_new, open_model
    from gemmafile.model.adapters import open_adapter, parse_adapters
    from gemmafile.model.config import read_config

    wanted = parse_adapters(args.lora, args.lora_scaled)
    if not wanted:
        raise BadSettings("which adapter? give --lora ADAPTER or --lora-scaled ADAPTER:SCALE")
    with open_model(args.model) as file:
        out = output_path(args.output, "merged.gguf")
        check_is_new(file, out)
        config = read_config(file)
        adapters = [(open_adapter(Path(path), config), scale) for path, scale in wanted]
        total = sum(tensor.n_bytes for tensor in file.tensors.values())
        check_room(out, total)
        with Progress(f"writing {out.name}", total, bytes=True, rate=True, quiet=args.quiet) as progress:
            merge_adapters(file, adapters, out, args.outtype, progress.advance)
    return 0
