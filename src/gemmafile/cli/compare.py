"""`gemmafile compare`: one model in several quantisations: size, quality and speed as a table and a plot."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemmafile.errors import BadFile, BadSettings

DEFAULT_TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile compare`."""
    parser.add_argument("model", metavar="MODEL", help="the exact model, which the others are held against")
    parser.add_argument(
        "--types", metavar="TYPE,...", default=DEFAULT_TYPES, help="types, or GGUF files (default: %(default)s)"
    )
    parser.add_argument("--file", "-f", metavar="FILE", required=True, help="the text that is measured on")
    parser.add_argument("--ctx-size", "-c", metavar="N", type=int, default=512, help="tokens of a chunk (default: 512)")
    parser.add_argument("--chunks", metavar="N", type=int, default=-1, help="chunks at most (default: all)")
    parser.add_argument(
        "--out", "-o", metavar="FILE", type=Path, help="the plot, SVG or PNG (default: MODEL's name, .svg)"
    )
    parser.add_argument("--json", action="store_true", help="the rows as JSON in place of the table")
    parser.add_argument("--imatrix", metavar="FILE", help="an importance matrix for the types")
    parser.add_argument("--allow-requantize", action="store_true", help="MODEL may be quantised itself")
    parser.add_argument("--threads", "-t", metavar="N", type=int, help="threads")
    parser.add_argument("--tmp", metavar="DIR", type=Path, help="where the quantised models lie for a while")
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")


def main(args: argparse.Namespace) -> int:
    """Raises BadSettings, BadFile, BackendUnavailable."""
    import json
    import sys
    import tempfile

    from gemmafile.cli.run import read_text
    from gemmafile.files.atomic import check_writable, removed_if_ended, replace_file
    from gemmafile.files.open import title_of
    from gemmafile.quantize.comparison import compare, table
    from gemmafile.quantize.importance import load_importance
    from gemmafile.quantize.plot import as_png, as_svg, check_png, draw
    from gemmafile.settings import ContextSettings

    names = [name.strip() for name in args.types.split(",") if name.strip()]
    if not names:
        raise BadSettings("--types names none: give some, such as Q4_K_M,Q6_K")
    if args.ctx_size < 4 or args.chunks == 0:
        raise BadSettings("-c is 4 or more, and --chunks 1 or more, or -1 for all")
    text = read_text(args.file)
    importance = load_importance(args.imatrix) if args.imatrix else None
    settings = ContextSettings(context=args.ctx_size, threads=args.threads)
    out = args.out or Path(f"{title_of(args.model)}.svg")
    check_writable(out)
    if out.suffix.lower() not in (".svg", ".png"):
        raise BadSettings(f"the plot is an SVG or a PNG: {out} should end in .svg or .png")
    paint = as_svg
    if out.suffix.lower() == ".png":
        check_png()
        paint = as_png

    def say(line: str) -> None:
        if not args.quiet:
            print(f"gemmafile: {line}", file=sys.stderr, flush=True)

    rows = []
    try:
        folder = tempfile.TemporaryDirectory(dir=args.tmp, prefix="gemmafile-")
    except OSError as error:
        raise BadFile(args.tmp, f"cannot be written to: {error.strerror or error}") from None
    with removed_if_ended(Path(folder.name)), folder:
        for row in compare(
            args.model, names, text, Path(folder.name), settings, n_chunks=args.chunks, importance=importance,
            allow_requantize=args.allow_requantize, say=say,
        ):  # fmt: skip
            rows.append(row)
            say(f"{row.name}: {row.n_bytes / 1e6:,.1f} MB, divergence {row.kld:.6f}")
    with replace_file(out) as file:
        file.write(paint(draw(rows, Path(args.model).name)))
    print(json.dumps([row.as_dict() for row in rows], indent=1) if args.json else "\n".join(table(rows)))
    say(f"{out}: the plot")
    return 0
