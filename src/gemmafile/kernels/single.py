"""One operation run by itself, outside a tape: for tests and for tools/kernel_lab.

The pass around it has T rows, one thread (or a team), and its own scratch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmafile.kernels import packing, streams
from gemmafile.kernels.compile import kernel_addresses
from gemmafile.kernels.ops import (
    BARRIER,
    KERNEL,
    N_OPS,
    N_OUTPUTS,
    N_ROWS,
    N_THREADS,
    OP_BYTES,
    OPS,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    SHARED_BYTES,
    YIELD,
)  # fmt: skip
from gemmafile.kernels.packing import allocated_tokens
from gemmafile.kernels.threads import Team, yield_address

SCRATCH_SIZE = 1 << 18


def aligned(n_bytes: int) -> np.ndarray:
    """uint8[n_bytes] of zeros, at a multiple of 64."""
    raw = np.zeros(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_bytes]


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


class Single:
    """Operations set up by hand; `run` walks them."""

    def __init__(self, n_rows: int, n_threads: int = 1):
        self.n_threads = n_threads
        self.shared = aligned(SHARED_BYTES).view(np.int64)
        self.scratch = aligned(SCRATCH_SIZE * n_threads)
        self.keep: list[Any] = []
        self._ops: list[np.ndarray] = []
        values = {
            N_ROWS: n_rows, N_OUTPUTS: n_rows, N_THREADS: n_threads, YIELD: yield_address(),
            SCRATCH: address(self.scratch), SCRATCH_BYTES: SCRATCH_SIZE,
        }  # fmt: skip
        for at, value in values.items():
            self.shared[at // 8] = value

    def add(self, kernel: str, fields: dict[int, int]) -> None:
        """Append an operation: kernel name and its fields by byte offset."""
        op = np.zeros(OP_BYTES // 8, np.int64)
        op[KERNEL // 8], op[BARRIER // 8], op[ROWS // 8] = kernel_addresses([kernel])[kernel], 1, N_ROWS
        for at, value in fields.items():
            op[at // 8] = value
        self._ops.append(op)

    def bind(self) -> Single:
        ops = aligned(OP_BYTES * len(self._ops)).view(np.int64).reshape(len(self._ops), -1)
        ops[:] = self._ops
        self.ops = ops
        self.shared[OPS // 8], self.shared[N_OPS // 8] = address(ops), len(ops)
        self.team = Team(self.n_threads, kernel_addresses(["threads.walk"])["threads.walk"])
        return self

    def run(self) -> None:
        self.ops[:, 24] = 0
        self.team.run(address(self.shared))


def run_product(
    kernel: str, packing_kind: str | None, x: np.ndarray, rows: np.ndarray, n_threads: int = 1
) -> np.ndarray:
    """x float32[T, K] times rows uint8[N, row bytes] with a kernel such as "q6_k.matvec": float32[T, N]."""
    single, out = make_product(kernel, packing_kind, x, rows, n_threads)
    single.run()
    single.team.close()
    return out


def make_product(
    kernel: str, packing_kind: str | None, x: np.ndarray, rows: np.ndarray, n_threads: int = 1
) -> tuple[Single, np.ndarray]:
    """The operations of one product, bound, and its result float32[T, N], valid after `run`."""
    n_tokens, columns = x.shape
    n = len(rows)
    stride = -(-n // 32) * 32
    single = Single(n_tokens, n_threads)
    inputs = aligned(4 * allocated_tokens(n_tokens) * columns + 64)[: 4 * allocated_tokens(n_tokens) * columns]
    inputs = inputs.view(np.float32).reshape(-1, columns)
    inputs[:n_tokens] = x
    out = aligned(4 * allocated_tokens(n_tokens) * stride).view(np.float32).reshape(-1, stride)
    packed, packed_address = None, address(inputs)
    if packing_kind:
        packed = aligned(packing.packed_bytes(packing_kind, columns, n_tokens))
        packed_address = address(packed)
        fields = {
            packing.X: address(inputs), packing.X_STRIDE: 4 * columns, packing.PACKED: packed_address,
            packing.COLUMNS: columns,
        }  # fmt: skip
        single.add(f"packing.{packing_kind}", fields)
    s = streams
    fields = {
        s.WEIGHTS: address(rows), s.ROW_BYTES: rows.strides[0], s.N: n, s.COLUMNS: columns,
        s.PACKED: packed_address, s.PACKED_STRIDE: 4 * columns,
        s.OUT: address(out), s.OUT_STRIDE: 4 * stride,
    }  # fmt: skip
    single.add(kernel, fields)
    single.keep = [inputs, out, packed, rows]
    return single.bind(), out[:n_tokens, :n]
