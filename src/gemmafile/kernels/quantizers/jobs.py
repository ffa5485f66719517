"""A quantiser's job, as its kernel finds it in memory: the slots of `op`, and the places of a work space.

SOURCE              address of the first weight, of a KIND (`KINDS`)
OUT                 address of the first block that is written
N_BLOCKS            of whole rows of the tensor, ROW_BLOCKS each
IMPORTANCE          address of float32[columns], and ROW_MEANS of float32[rows]: for weighted kernels
BAD                 set to 1 where a weight is infinite or NaN
SCRATCH             address of a work space of SCRATCH_BYTES, 64-byte aligned, the job's own
"""

from __future__ import annotations

from gemmafile.kernels.ops import slots

SOURCE, KIND, OUT, N_BLOCKS, ROW_BLOCKS, IMPORTANCE, ROW_MEANS, SCRATCH, BAD = slots(
    "SOURCE KIND OUT N_BLOCKS ROW_BLOCKS IMPORTANCE ROW_MEANS SCRATCH BAD"
)

KINDS = {"F32": 0, "F16": 1, "BF16": 2}
"""Weights that are read as they lie in the file."""

X, W, LEVELS = 0, 1 << 14, 1 << 15
"""Weights, their importance, and the numbers that stand for them: 256 rows of float32x16 each."""
OUTPUT = 3 << 14
"""Up to 256 rows of 16 bytes."""
TURNED = OUTPUT + (1 << 12)
ROW_MEAN = TURNED + (1 << 10)
OWN = ROW_MEAN + 64
"""From here on a format has rows of its own."""
SCRATCH_BYTES = OWN + 128 * 64
