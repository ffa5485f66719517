"""A tensor's blocks, slab by slab: all threads quantise, the caller gets the slabs in order.

What is held at once is a few slabs of SLAB_WEIGHTS for each thread, whatever the size of the tensor.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from gemmafile.errors import BadFile, BadSettings
from gemmafile.files.formats import Format
from gemmafile.files.gguf import ModelFile
from gemmafile.files.tensors import TensorInfo
from gemmafile.kernels.formats_on import FORMAT_MODULES
from gemmafile.kernels.quantizers.rows import PLAIN, quantize_rows

SLAB_WEIGHTS = 1 << 20
COPIED_BYTES = 1 << 24
MAX_THREADS = 512


def default_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Quantiser:
    """Threads that quantise the tensors of one model."""

    def __init__(self, file: ModelFile, n_threads: int = 0):
        """Raises BadSettings for a number of threads that cannot be."""
        if not 0 <= n_threads <= MAX_THREADS:
            raise BadSettings(f"the number of threads is {n_threads}, expected 1 to {MAX_THREADS}, or 0 for all cores")
        self.file, self.n_threads = file, n_threads or default_threads()
        self._pool = ThreadPoolExecutor(self.n_threads, "quantise")

    def slabs(self, tensor: TensorInfo, target: Format, importance: np.ndarray | None) -> Iterator[np.ndarray]:
        """The tensor's bytes in another format, or, where it has that format already, as they are.

        importance  float32[columns] or None
        Raises BadFile for a tensor that holds infinities or NaN, or a format that is not read.
        """
        if target == tensor.format:
            yield from self._copied(tensor)
            return
        if tensor.format.name not in FORMAT_MODULES:
            raise BadFile(tensor.path, f"has format {tensor.format.name}, which is not read", field=_field(tensor))
        n_columns = tensor.shape[-1]
        n_rows = tensor.n_weights // n_columns
        step = max(1, SLAB_WEIGHTS // n_columns)
        waiting: deque[Future[np.ndarray]] = deque()
        try:
            for first in range(0, n_rows, step):
                last = min(first + step, n_rows)
                waiting.append(self._pool.submit(self._quantise, tensor, target, first, last, importance))
                if len(waiting) > 2 * self.n_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def rows(self, x: np.ndarray, target: Format, importance: np.ndarray | None) -> np.ndarray:
        """Rows float32[n, columns] as blocks uint8[n, row bytes], on all threads."""
        step = max(1, SLAB_WEIGHTS // x.shape[1])
        parts = [x[first : first + step] for first in range(0, len(x), step)]
        return np.concatenate(list(self._pool.map(lambda part: quantize_rows(part, target.name, importance)[0], parts)))

    def _copied(self, tensor: TensorInfo) -> Iterator[np.ndarray]:
        data = self.file.data(tensor.name)
        for start in range(0, data.size, COPIED_BYTES):
            yield data[start : start + COPIED_BYTES]

    def _quantise(
        self, tensor: TensorInfo, target: Format, first: int, last: int, importance: np.ndarray | None
    ) -> np.ndarray:
        rows, is_finite = quantize_rows(read_rows(self.file, tensor, first, last), target.name, importance)
        if not is_finite:
            what = f"holds an infinity or a NaN in rows {first} to {last - 1}, or one too large for {target.name}"
            raise BadFile(tensor.path, what, field=_field(tensor))
        return rows

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Quantiser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(file: ModelFile, tensor: TensorInfo, first: int, last: int) -> np.ndarray:
    """Rows of a tensor as the quantisers read them: float32, float16, or uint16 holding bfloat16."""
    n_columns = tensor.shape[-1]
    row_bytes = tensor.format.row_bytes(n_columns)
    data = file.data(tensor.name)[first * row_bytes : last * row_bytes].reshape(last - first, row_bytes)
    dtype = PLAIN.get(tensor.format.name)
    return data.view(dtype) if dtype else FORMAT_MODULES[tensor.format.name].dequantize(data)


def _field(tensor: TensorInfo) -> str:
    return f"tensor {tensor.name!r}"
