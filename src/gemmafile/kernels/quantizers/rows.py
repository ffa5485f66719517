"""Rows of weights to rows of blocks, in this thread: the one caller of the quantisers' kernels.

A call holds no Python lock, so that threads may quantise slabs of a tensor side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Collection

import numpy as np

from gemmafile.errors import BackendUnavailable
from gemmafile.files.formats import format_by_name
from gemmafile.kernels import compile
from gemmafile.kernels.activations import round_bf16
from gemmafile.kernels.objects import BadObject
from gemmafile.kernels.ops import OP_BYTES
from gemmafile.kernels.quantizers import NEEDS_ROW_MEANS, QUANTIZERS, quantizer_name
from gemmafile.kernels.quantizers.jobs import (
    BAD,
    IMPORTANCE,
    KIND,
    KINDS,
    N_BLOCKS,
    OUT,
    ROW_BLOCKS,
    ROW_MEANS,
    SCRATCH,
    SCRATCH_BYTES,
    SOURCE,
)  # fmt: skip

PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Formats that are not blocks, and the NumPy type of their bytes."""

FLOATS = {"F16": "quantizers.floats.f16", "BF16": "quantizers.floats.bf16"}
"""Their kernels, which NumPy stands in for where there is no compiler."""

_floats_ready: set[str] = set()

_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_ssize_t)
_own = threading.local()


def prepare(format_names: Collection[str], weighted: bool) -> None:
    """Load or compile what these formats need. Raises BackendUnavailable where that is not possible."""
    names = {quantizer_name(name, kind) for name in format_names if name in QUANTIZERS for kind in {False, weighted}}
    reason = compile.why_not()
    if names and reason is None:
        try:
            compile.kernel_addresses(names)
        except BadObject as error:
            reason = str(error)
    if reason is None:
        _prepare_floats(FLOATS.keys() & set(format_names))
    if names and reason is not None:
        raise BackendUnavailable(
            f"quantising needs compiled kernels: {reason}; `pip install gemmafile` brings Numba along, "
            "a packed file does not"
        )


def _prepare_floats(names: set[str]) -> None:
    with contextlib.suppress(BadObject):
        compile.kernel_addresses(FLOATS[name] for name in names)
        _floats_ready.update(names)


def quantize_rows(
    x: np.ndarray, format_name: str, importance: np.ndarray | None = None
) -> tuple[np.ndarray, bool]:  # fmt: skip
    """Rows as blocks of a format, and whether all weights were finite.

    x           [rows, columns], contiguous: float32, float16, or uint16 holding bfloat16
    importance  float32[columns], or None: the weights are all there is to go by
    Returns uint8[rows, row bytes]. `prepare` was called for the format.
    """
    if format_name in PLAIN:
        return _convert(x, format_name)
    weighted = importance is not None and quantizer_name(format_name, False) != quantizer_name(format_name, True)
    if weighted and format_name in NEEDS_ROW_MEANS:
        x = widen(x)
    fmt = format_by_name(format_name)
    rows, columns = x.shape
    out = np.empty((rows, fmt.row_bytes(columns)), np.uint8)
    scratch = _scratch()
    op = np.zeros(OP_BYTES // 8, np.int64)
    fields = {
        SOURCE: x.ctypes.data, KIND: _kind(x), OUT: out.ctypes.data,
        N_BLOCKS: x.size // fmt.weights_per_block, ROW_BLOCKS: columns // fmt.weights_per_block, SCRATCH: scratch,
    }  # fmt: skip
    if weighted:
        assert importance is not None
        importance = np.ascontiguousarray(importance, np.float32)
        means = np.zeros(rows, np.float32)
        if format_name in NEEDS_ROW_MEANS:
            means[:] = np.add.accumulate(x * x, axis=1)[:, -1] / np.float32(columns)  # in order: rounded as in a loop
        fields |= {IMPORTANCE: importance.ctypes.data, ROW_MEANS: means.ctypes.data}
    for slot, value in fields.items():
        op[slot // 8] = value
    name = quantizer_name(format_name, weighted)
    _Kernel(compile.kernel_addresses([name])[name])(op.ctypes.data, 0, 0)
    return out, not op[BAD // 8]


def _scratch() -> int:
    """The address of this thread's work space."""
    if not hasattr(_own, "space"):
        _own.space = np.empty(SCRATCH_BYTES + 64, np.uint8)
    address = int(_own.space.ctypes.data)
    return address + -address % 64


def widen(x: np.ndarray) -> np.ndarray:
    """float32, float16 or uint16 holding bfloat16 -> float32, exact."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(x, np.float32)


def _convert(x: np.ndarray, format_name: str) -> tuple[np.ndarray, bool]:
    if format_name != "F32" and x.size % 16 == 0 and format_name in _floats_ready:
        return _convert_compiled(x, format_name)
    with np.errstate(over="ignore"):
        wide = widen(x)
        made = {"F32": wide, "F16": wide.astype("<f2")}.get(format_name)
    if made is None:
        made = round_bf16(wide)
        wide = widen(made)
    finite = np.isfinite(made if made.dtype != np.uint16 else wide).all()
    return np.ascontiguousarray(made).view(np.uint8), bool(finite)


def _convert_compiled(x: np.ndarray, format_name: str) -> tuple[np.ndarray, bool]:
    x = np.ascontiguousarray(x)
    out = np.empty((x.shape[0], 2 * x.shape[1]), np.uint8)
    op = np.zeros(OP_BYTES // 8, np.int64)
    fields = {SOURCE: x.ctypes.data, KIND: _kind(x), OUT: out.ctypes.data, N_BLOCKS: x.size // 16}
    for slot, value in fields.items():
        op[slot // 8] = value
    name = FLOATS[format_name]
    _Kernel(compile.kernel_addresses([name])[name])(op.ctypes.data, 0, 0)
    return out, not op[BAD // 8]


def _kind(x: np.ndarray) -> int:
    return KINDS[{"float32": "F32", "float16": "F16", "uint16": "BF16"}[x.dtype.name]]
