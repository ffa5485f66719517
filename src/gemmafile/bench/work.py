"""What a pass has to do, counted from the tape: bytes read, and operations by the kind of numbers they work on.

That is all of the matrices and of attention. The rest (norms, gates, rotations, quantising activations) is left out:
a share of the limit says how near the whole pass is to what these two alone must take.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gemmafile.bench.machine import Limits
from gemmafile.kernels import amx
from gemmafile.kernels.formats_on import format_module
from gemmafile.kernels.products import FEW_TOKENS, PRODUCTS
from gemmafile.model.tape import Attention, MatMul, Tape

CACHE_BYTES = 2
"""Of a cached number: float16."""


@dataclass(frozen=True)
class Pass:
    """Rows computed together: `rows` of each sequence, behind `depth` positions; `outputs` of all have logits."""

    rows: int
    depth: int
    outputs: int
    sequences: int = 1


@dataclass
class Work:
    """Bytes read once, and operations (a multiplication or an addition each) by the limit that holds for them."""

    n_bytes: float = 0.0
    operations: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, operations: float) -> None:
        self.operations[kind] = self.operations.get(kind, 0.0) + operations

    @property
    def n_operations(self) -> float:
        return sum(self.operations.values())

    def read_s(self, limits: Limits) -> float:
        """Seconds that reading takes at least."""
        return self.n_bytes / limits.read / 1e9

    def compute_s(self, limits: Limits) -> float:
        """Seconds that the arithmetic takes at least."""
        peaks = {"int8": limits.int8, "bf16": limits.bf16, "f32": limits.f32, "unit": limits.unit}
        return sum(n / peaks[kind] / 1e9 for kind, n in self.operations.items())


def count_work(tape: Tape, passes: list[Pass]) -> Work:
    """The work of several passes, one after the other."""
    work = Work()
    for p in passes:
        for op in tape.ops:
            if isinstance(op, MatMul):
                _add_products(work, op, p)
            elif isinstance(op, Attention):
                _add_attention(work, op, p)
    return work


def _add_products(work: Work, op: MatMul, p: Pass) -> None:
    rows = p.outputs if op.outs[0].on_outputs else p.rows * p.sequences
    for weight in op.weights if rows else ():
        work.n_bytes += weight.data.nbytes
        work.add(arithmetic_of(weight.format.name, rows), 2 * rows * weight.shape[0] * weight.shape[1])


def _add_attention(work: Work, op: Attention, p: Pass) -> None:
    """Each row is multiplied with the keys and the values it sees, itself included."""
    window = op.window or p.depth + p.rows
    seen = sum(min(p.depth + i + 1, window) for i in range(p.rows))
    read = min(p.depth + p.rows, window + p.rows - 1)
    work.add("f32", 4 * op.n_heads * op.head_dim * seen * p.sequences)
    work.n_bytes += 2 * CACHE_BYTES * op.n_kv_heads * op.head_dim * read * p.sequences


def arithmetic_of(format_name: str, rows: int) -> str:
    """ "int8", "bf16" or "f32": what weights of a format are multiplied as; "unit": int8 on the matrix unit, which the
    engine takes for more than a few rows."""
    if format_module(format_name).ACTIVATIONS:
        has_kernel = PRODUCTS[format_name].matmul_unit is not None
        return "unit" if has_kernel and rows > FEW_TOKENS and amx.is_ready() else "int8"
    return "bf16" if format_name == "BF16" else "f32"


def weight_names(tape: Tape) -> list[str]:
    """The matrices that every token needs, in the order of the pass."""
    return list(dict.fromkeys(w.name for op in tape.ops if isinstance(op, MatMul) for w in op.weights))
