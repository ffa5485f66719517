"""How a pass is laid out in memory: what a kernel finds behind its three arguments.

    kernel(op, shared, thread)

    op      address of one operation: 32 int64 slots, fixed when the tape is bound
    shared  address of the pass: int64 slots that Python fills before each pass, and the barrier
    thread  number of the calling thread

Every thread of the team walks the same list of operations. A kernel takes chunks of its work with
`atomic_add(op + NEXT, 1)` until none are left; after an operation whose BARRIER slot is set, the threads wait for
each other. Offsets are in bytes. Floats are kept as their bits (`float_bits`).
"""

from __future__ import annotations

import struct

OP_BYTES = 256
KERNEL, BARRIER = 0, 8
ROWS = 16  # byte offset in `shared` of the number of rows this operation works on
NEXT = 192  # next chunk of work, on a cache line of its own


def slots(names: str) -> tuple[int, ...]:
    """Byte offsets of an operation's own fields, in order: `X, OUT = slots("X OUT")`."""
    offsets = tuple(24 + 8 * i for i in range(len(names.split())))
    assert offsets[-1] < NEXT
    return offsets


SHARED_BYTES = 1024
N_ROWS, N_OUTPUTS, N_THREADS, OPS, N_OPS, YIELD = (8 * i for i in range(6))
OUTPUTS, SCRATCH, SCRATCH_BYTES, POSITIONS, ROW_TABLES = (8 * i for i in range(6, 11))
N_ROW_PARTS, N_OUTPUT_PARTS = 88, 96
"""Twice N_ROWS and N_OUTPUTS: for operations on rows in two parts."""
ARRIVED, GENERATION = 512, 576  # the barrier, each on a cache line of its own

SPINS = 300  # turns of the spin loop before a waiting thread lets others run


def float_bits(x: float) -> int:
    """The bits of a float32 as an integer."""
    bits: int = struct.unpack("<i", struct.pack("<f", x))[0]
    return bits
