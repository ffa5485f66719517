"""One product kernel in the laboratory: is it its NumPy twin bit for bit, and how near the machine's limit does it run?

    python -m tools.kernel_lab FORMAT [--kind matvec|matmul|unit|batch] [--rows N] [--columns N] [--tokens N] ...

The limits (bytes read from the same weights, the peak of the arithmetic) are measured between the runs. Rates are
given by the clock and by processor time, which is right on a shared machine as well, waiting for memory included.
Exit code 1: the kernel is wrong.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

import numpy as np

from gemmafile.bench.machine import Peak, Rate, Reader, take_rate
from gemmafile.bench.work import arithmetic_of
from gemmafile.engine.engine import physical_cores
from gemmafile.kernels import amx
from gemmafile.kernels.formats_on import FORMAT_MODULES, format_module
from gemmafile.kernels.products import FEW_TOKENS, PRODUCTS, SEVERAL_TOKENS
from gemmafile.kernels.single import address, make_product
from tests.kernels.random_blocks import random_rows

TOKENS = {"matvec": 1, "matmul": 510, "unit": 510, "batch": 8}
COLD_BYTES = 256 << 20
"""Weights of a matvec come from memory, as they do when a model makes a token: no cache holds so many."""
DRAWN_ROWS = 4096
"""Rows drawn at random; more are copies of them."""
CHECKED_ROWS, CHECKED_TOKENS = 67, 13


def kernel_of(name: str, kind: str, n_tokens: int) -> tuple[str | None, str | None, str]:
    """(kernel, packing, kind of arithmetic); "batch" is what the engine takes for so many tokens."""
    product = PRODUCTS[name]
    has_unit = product.matmul_unit is not None and amx.is_ready()
    if kind == "batch":
        is_several = FEW_TOKENS < n_tokens <= SEVERAL_TOKENS
        if is_several and has_unit and product.batch_unit is not None:
            return product.batch_unit, product.packing_batch, "unit"
        kind = "matvec" if n_tokens <= FEW_TOKENS else "unit" if has_unit and not is_several else "matmul"
    if kind == "unit":
        return product.matmul_unit if has_unit else None, product.packing_unit, "unit"
    return {"matvec": product.matvec, "matmul": product.matmul}[kind], product.packing, arithmetic_of(name, 1)


def make_weights(name: str, n_rows: int, n_columns: int) -> np.ndarray:
    """uint8[n_rows, row bytes]"""
    drawn = random_rows(name, np.random.default_rng(1), min(n_rows, DRAWN_ROWS), n_columns)
    return np.ascontiguousarray(np.resize(drawn, (n_rows, drawn.shape[1])))


def count_wrong(name: str, x: np.ndarray, rows: np.ndarray, out: np.ndarray) -> int:
    """How many numbers differ from the twin's, of some rows of weights and of tokens."""
    rng = np.random.default_rng(2)
    chosen = np.sort(rng.choice(len(rows), min(len(rows), CHECKED_ROWS), replace=False))
    chosen[-1] = len(rows) - 1
    tokens = np.unique(np.linspace(0, len(x) - 1, CHECKED_TOKENS).astype(int))
    wanted = format_module(name).multiply(x[tokens], rows[chosen])
    return int((out[np.ix_(tokens, chosen)].view(np.uint32) != wanted.view(np.uint32)).sum())


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("format", choices=FORMAT_MODULES, metavar="FORMAT", help=", ".join(FORMAT_MODULES))
    parser.add_argument("--kind", choices=TOKENS, default="matvec")
    parser.add_argument("--rows", type=int, help="of weights (default: 256 MB of them, 2304 for matmul and unit)")
    parser.add_argument("--columns", type=int, default=2304)
    parser.add_argument("--tokens", type=int, help="(default: 1, 510 for matmul and unit, 8 for batch)")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(words)
    module = format_module(args.format)
    row_bytes = args.columns // module.BLOCK * module.BYTES
    n_rows = args.rows or (2304 if args.kind in ("matmul", "unit") else COLD_BYTES // row_bytes)
    n_tokens = args.tokens or TOKENS[args.kind]
    if args.columns % module.BLOCK or min(n_rows, n_tokens, args.columns, args.threads, args.repeats) < 1:
        parser.error(f"all numbers are 1 or more, and columns a multiple of {module.BLOCK} for {args.format}")
    if kernel_of(args.format, args.kind, n_tokens)[0] is None:
        parser.error(f"there is no matrix unit here, or no kernel of {args.format} for it")
    return experiment(args.format, args.kind, n_rows, args.columns, n_tokens, args.threads, args.repeats)


def experiment(name: str, kind: str, n_rows: int, n_columns: int, n_tokens: int, n_threads: int, repeats: int) -> int:
    """Checks, times and prints; returns the exit code."""
    rows = make_weights(name, n_rows, n_columns)
    x = np.random.default_rng(3).standard_normal((n_tokens, n_columns), np.float32)
    kernel, packing, arithmetic = kernel_of(name, kind, n_tokens)
    assert kernel is not None
    print(
        f"{kernel}: {n_rows} x {n_columns} weights ({rows.nbytes / 1e6:.0f} MB), {n_tokens} tokens, {n_threads} threads"
    )
    single, out = make_product(kernel, packing, x, rows, n_threads)
    single.run()
    n_wrong = count_wrong(name, x, rows, out)
    print(f"WRONG: {n_wrong} of the numbers checked differ" if n_wrong else "bit for bit its NumPy twin")
    reader, peak = Reader([(address(rows), rows.nbytes)], n_threads), Peak(arithmetic, n_threads)
    taken: dict[str, list[Rate]] = {"bytes": [], "operations": [], "read": [], "peak": []}
    for _ in range(repeats):
        taken["read"].append(reader.rate())
        taken["peak"].append(peak.rate())
        product = take_rate(single.run, 1, n_threads)
        taken["bytes"].append(Rate(*(rate * rows.nbytes for rate in product)))
        taken["operations"].append(Rate(*(rate * 2 * n_rows * n_columns * n_tokens for rate in product)))
    for team in (single.team, reader, peak):
        team.close()
    show(taken)
    return 1 if n_wrong else 0


def show(taken: dict[str, list[Rate]]) -> None:
    """Medians of the kernel beside the best of the machine, by either time."""
    print(f"{'':20}{'GOP/s':>10}{'at most':>10}{'':7}{'GB/s':>8}{'at most':>10}")
    for title in ("by_clock", "by_processor"):
        rate = {name: [getattr(each, title) for each in rates] for name, rates in taken.items()}
        operations, n_bytes, peak, read = (
            median(rate["operations"]), median(rate["bytes"]), max(rate["peak"]), max(rate["read"])
        )  # fmt: skip
        print(f"{title.replace('_', ' '):20}{operations:>10.1f}{peak:>10.1f}{operations / peak:>6.0%} "
              f"{n_bytes:>8.2f}{read:>10.2f}{n_bytes / read:>6.0%}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
