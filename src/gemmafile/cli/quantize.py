"""`gemmafile quantize`: a model's file made smaller, in llama.cpp's formats and mixtures."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gemmafile.errors import BadSettings

if TYPE_CHECKING:
    from gemmafile.files.gguf import ModelFile
    from gemmafile.quantize.mixture import FileType, Wishes
    from gemmafile.quantize.write import Plan

USAGE = "gemmafile quantize [flags] IN [OUT] TYPE [THREADS]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile quantize`."""
    from gemmafile.quantize.mixture import FILE_TYPES

    parser.usage = USAGE
    parser.epilog = f"TYPE: {' '.join(FILE_TYPES)}, or COPY. OUT is IN's name with the type where it is left out."
    parser.add_argument("words", metavar="IN [OUT] TYPE [THREADS]", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--imatrix", metavar="FILE", help="an importance matrix (gemmafile imatrix makes one)")
    parser.add_argument(
        "--include-weights",
        metavar="NAME",
        action="append",
        default=[],
        help="use it for matrices named so (repeatable)",
    )
    parser.add_argument(
        "--exclude-weights", metavar="NAME", action="append", default=[], help="not for matrices named so (repeatable)"
    )
    parser.add_argument("--pure", action="store_true", help="no mixture: every matrix gets the type's own format")
    parser.add_argument("--leave-output-tensor", action="store_true", help="leave output.weight as it is")
    parser.add_argument("--output-tensor-type", metavar="FORMAT", help="the format of output.weight")
    parser.add_argument("--token-embedding-type", metavar="FORMAT", help="the format of the token embeddings")
    parser.add_argument(
        "--tensor-type", metavar="REGEX=FORMAT", action="append", default=[],
        help="the format of tensors whose name the expression is found in; the first that fits counts (repeatable)",
    )  # fmt: skip
    parser.add_argument("--tensor-type-file", metavar="FILE", help="a file of such words")
    parser.add_argument(
        "--allow-requantize", action="store_true", help="quantise what is quantised already: it gets worse each time"
    )
    parser.add_argument(
        "--target-size", metavar="SIZE", help="no TYPE: a mixture of formats for a file of at most this (16GB, 900M)"
    )
    parser.add_argument("--target-bpw", metavar="N", type=float, help="the same, for so many bits a weight")
    parser.add_argument(
        "--calibration", metavar="FILE", help="the text on which it is measured how much each matrix matters"
    )
    parser.add_argument("--calibration-tokens", metavar="N", type=int, default=512, help="of it (default: %(default)s)")
    parser.add_argument("--threads", "-t", metavar="N", type=int, default=0, help="threads (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would come out, and write nothing")
    parser.add_argument("--verbose", "-v", action="store_true", help="a line for each tensor")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")


def main(args: argparse.Namespace) -> int:
    """Raises BadSettings, BadFile, UnsupportedModel, BackendUnavailable."""
    from gemmafile.cli.convert import check_room
    from gemmafile.files.atomic import check_writable
    from gemmafile.files.open import open_model
    from gemmafile.quantize.importance import load_importance
    from gemmafile.quantize.mixture import FileType, choose_formats, in_order
    from gemmafile.quantize.write import Plan, quantise_file

    if args.target_size is not None or args.target_bpw is not None:
        return _quantise_to_size(args)
    given, out, file_type, n_threads = _read_words(args)
    with open_model(given) as file:
        importance = None
        if args.imatrix:
            importance = load_importance(args.imatrix).only(args.include_weights, args.exclude_weights)
        elif args.include_weights or args.exclude_weights:
            raise BadSettings(
                "--include-weights and --exclude-weights choose from an importance matrix: give --imatrix"
            )
        if file_type is None:
            number = file.metadata.get_int("general.file_type", 0)
            formats = {tensor.name: tensor.format for tensor in in_order(file.tensors.values())}
            plan = Plan(FileType("COPY", number, "F32"), formats)
        else:
            formats = choose_formats(file, file_type, _wishes(args), has_importance=importance is not None)
            plan = Plan(file_type, formats, importance, args.allow_requantize)
        out = out or _beside(given, plan.file_type.name)
        if args.dry_run:
            for name, fmt in plan.formats.items():
                print(f"{name:<36} {file.tensors[name].format.name:>6} -> {fmt.name}")
        else:
            check_writable(out)
            check_room(out, plan.n_bytes(file))
            say = print if args.verbose and not args.quiet else lambda line: None
            quantise_file(file, out, plan, n_threads=n_threads, quiet=args.quiet, say=say)
        if not args.quiet:
            _say_sizes(out, file, plan)
    return 0


def _say_sizes(out: Path, file: ModelFile, plan: Plan) -> None:
    before = sum(tensor.n_bytes for tensor in file.tensors.values())
    after, n_weights = plan.n_bytes(file), sum(tensor.n_weights for tensor in file.tensors.values())
    print(
        f"{out}: {before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB, {8 * after / n_weights:.2f} bits a weight "
        f"({plan.summary()})"
    )


def _quantise_to_size(args: argparse.Namespace) -> int:
    """--target-size and --target-bpw: measure, choose, write. Raises as `main`."""
    from gemmafile.cli.convert import check_room
    from gemmafile.cli.run import read_text
    from gemmafile.files.atomic import check_writable
    from gemmafile.files.open import check_is_new, open_model
    from gemmafile.kernels.quantizers.rows import prepare
    from gemmafile.model_api import Model
    from gemmafile.progress import Progress
    from gemmafile.quantize.importance import load_importance
    from gemmafile.quantize.sensitivity import CANDIDATES, PROBE, measure_sensitivities
    from gemmafile.quantize.target import check_target, choose_mix
    from gemmafile.quantize.write import Plan, quantise_file
    from gemmafile.settings import ContextSettings

    words = list(args.words)
    if len(words) not in (1, 2):
        raise BadSettings("with --target-size or --target-bpw give IN and OUT, and no TYPE")
    if args.target_size is not None and args.target_bpw is not None:
        raise BadSettings("--target-size and --target-bpw were both given: which one?")
    if not args.calibration:
        raise BadSettings("which text? --calibration FILE, on which it is measured how much each matrix matters")
    if args.calibration_tokens < 32:
        raise BadSettings(f"--calibration-tokens is {args.calibration_tokens}, expected 32 or more")
    if args.target_bpw is not None and not 0 < args.target_bpw <= 32:
        raise BadSettings(f"--target-bpw is {args.target_bpw}, expected bits a weight, such as 4.5")
    importance = load_importance(args.imatrix) if args.imatrix else None
    with open_model(words[0]) as file:  # what cannot be is said before the measuring
        out = Path(words[1]) if len(words) == 2 else _beside(words[0], "mix")
        check_is_new(file, out)
        check_writable(out)
        check_target(file, _tensor_bytes(args, file), allow_requantize=args.allow_requantize)
    prepare([PROBE, *CANDIDATES], importance is not None)
    settings = ContextSettings(context=args.calibration_tokens, threads=args.threads or None)
    with Model(words[0], settings, say=lambda line: None) as model:
        file = model.file
        n_bytes = _tensor_bytes(args, file)
        token_ids = model.tokenize(read_text(args.calibration))[: args.calibration_tokens]
        if len(token_ids) < 32:
            raise BadSettings(f"{args.calibration} has {len(token_ids)} tokens, expected 32 or more")
        with Progress("measuring", eta=True, quiet=args.quiet) as progress:

            def on_matrix(name: str, number: int, total: int) -> None:
                progress.total = total
                progress.note(name)
                progress.advance(number - progress.done)

            found = measure_sensitivities(
                model, [token_ids], settings, importance=importance, n_threads=args.threads, on_matrix=on_matrix
            )
        mix = choose_mix(file, found, n_bytes)
        plan = Plan(
            mix.file_type(),
            mix.formats,
            importance,
            args.allow_requantize,
            mix.metadata(os.fsencode(args.calibration).decode(errors="replace")),
        )
        if not args.quiet:
            print("\n".join(mix.table()))
        if not args.dry_run:
            check_room(out, plan.n_bytes(file))
            quantise_file(file, out, plan, n_threads=args.threads, quiet=args.quiet)
        if not args.quiet:
            _say_sizes(out, file, plan)
            print(f"expected divergence from the exact model: {mix.loss:.5f}")
    return 0


def _tensor_bytes(args: argparse.Namespace, file: ModelFile) -> int:
    """What the tensors may take together."""
    from gemmafile.quantize.target import parse_size

    n_weights = sum(tensor.n_weights for tensor in file.tensors.values())
    if args.target_bpw is not None:
        return int(args.target_bpw * n_weights / 8)
    # The header, the table of the mixture and the padding of tensors come on top.
    header = min(tensor.offset for tensor in file.tensors.values())
    return parse_size(args.target_size) - header - 128 * len(file.tensors) - 4096


def _read_words(args: argparse.Namespace) -> tuple[str, Path | None, FileType | None, int]:
    """The model, the file to be written, its type (None: COPY) and the number of threads."""
    from gemmafile.quantize.mixture import file_type_by_name

    words = list(args.words)
    n_threads = args.threads
    if len(words) in (3, 4) and words[-1].isdigit() and (len(words) == 4 or _is_type(words[-2])):
        n_threads = int(words.pop())
    if len(words) not in (2, 3):
        raise BadSettings(f"expected {USAGE}")
    file_type = None if words[-1].upper() == "COPY" else file_type_by_name(words[-1])
    return words[0], Path(words[1]) if len(words) == 3 else None, file_type, n_threads


def _is_type(word: str) -> bool:
    from gemmafile.quantize.mixture import ALIASES, FILE_TYPES

    return word.upper() in (*FILE_TYPES, *ALIASES, "COPY")


def _beside(model: str, type_name: str) -> Path:
    """model.gguf -> model.Q4_K_M.gguf, in its folder; of a model in ollama's store, here."""
    from gemmafile.files.ollama import PREFIX
    from gemmafile.files.open import split_member, title_of

    file = split_member(Path(model))[0]
    file = Path(os.path.abspath(file)) if file.name in ("", "..") else file
    return (Path() if model.startswith(PREFIX) else file.parent) / f"{title_of(model)}.{type_name}.gguf"


def _wishes(args: argparse.Namespace) -> Wishes:
    from gemmafile.quantize.mixture import Wishes, tensor_format

    return Wishes(
        pure=args.pure,
        leave_output=args.leave_output_tensor,
        output=tensor_format(args.output_tensor_type) if args.output_tensor_type else None,
        embedding=tensor_format(args.token_embedding_type) if args.token_embedding_type else None,
        tensors=tuple(_tensor_types(args)),
    )


def _tensor_types(args: argparse.Namespace) -> list[tuple[str, str]]:
    words = list(args.tensor_type)
    if args.tensor_type_file:
        try:
            words += Path(args.tensor_type_file).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"--tensor-type-file {args.tensor_type_file} cannot be read: {error}") from None
    for word in words:
        if not all(word.partition("=")):
            raise BadSettings(f"--tensor-type is {word!r}, expected REGEX=FORMAT, such as attn_v=Q6_K")
    return [tuple(word.split("=", 1)) for word in words]
