"""A model's file quantised to another file: streaming, on all threads, the new file there only when it is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.errors import BadFile, BadSettings
from gemmafile.files.formats import Format
from gemmafile.files.gguf import ModelFile
from gemmafile.files.gguf_writer import write_gguf
from gemmafile.files.metadata import Metadata, Typed
from gemmafile.files.open import check_is_new
from gemmafile.files.tensors import TensorInfo
from gemmafile.kernels.quantizers import QUANTIZERS
from gemmafile.kernels.quantizers.rows import PLAIN, prepare
from gemmafile.progress import Progress
from gemmafile.quantize.importance import Importance, check_entries
from gemmafile.quantize.mixture import FileType, needs_importance
from gemmafile.quantize.stream import Quantiser

QUANTISATION_VERSION = 2
"""general.quantization_version of the blocks written here."""
REPLACED_KEYS = ("general.quantization_version", "general.file_type", "split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a file will be. `formats` by tensor, in the order they are written"""

    file_type: FileType
    formats: Mapping[str, Format]
    importance: Importance | None = None
    allow_requantize: bool = False
    extra: Mapping[str, Any] | None = None

    def n_bytes(self, file: ModelFile) -> int:
        """Bytes of all tensors together."""
        return sum(bytes_of(file.tensors[name], fmt) for name, fmt in self.formats.items())

    def summary(self) -> str:
        """ "26 F32, 182 Q4_K, 1 Q6_K" """
        counts = Counter(fmt.name for fmt in self.formats.values())
        return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def bytes_of(tensor: TensorInfo, fmt: Format) -> int:
    """Bytes that a tensor takes in a format."""
    return tensor.n_weights // tensor.shape[-1] * fmt.row_bytes(tensor.shape[-1])


def check_plan(file: ModelFile, plan: Plan) -> None:
    """Raises BadSettings where a tensor would be quantised twice unasked, or an importance matrix is missing."""
    for name, fmt in plan.formats.items():
        tensor = file.tensors[name]
        if fmt == tensor.format:
            continue
        if tensor.format.name not in PLAIN and not plan.allow_requantize:
            raise BadSettings(
                f"{name} is {tensor.format.name} already: quantising it to {fmt.name} loses more than quantising the "
                "original would (--allow-requantize does it all the same)"
            )
        has_none = plan.importance is None or name not in plan.importance.entries
        if has_none and needs_importance(name, fmt.name, plan.file_type):
            raise BadSettings(f"{plan.file_type.name} needs an importance matrix (--imatrix), and has none for {name}")
    if plan.importance is not None:
        check_entries(plan.importance, plan.formats)


def quantise_file(
    file: ModelFile,
    path: Path,
    plan: Plan,
    *,
    n_threads: int = 0,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write `file` in the formats of `plan` to `path`.

    say  gets a line a tensor
    Raises BadSettings, BadFile, BackendUnavailable; `path` is then as it was.
    """
    check_plan(file, plan)
    check_is_new(file, path)
    names = {fmt.name for name, fmt in plan.formats.items() if fmt != file.tensors[name].format}
    prepare(names, plan.importance is not None)
    total = sum(file.tensors[name].n_bytes for name in plan.formats)
    with (
        Quantiser(file, n_threads) as quantiser,
        Progress("quantising", total, bytes=True, rate=True, eta=True, quiet=quiet) as progress,
    ):

        def blocks(name: str, fmt: Format) -> Iterator[np.ndarray]:
            tensor = file.tensors[name]
            size = bytes_of(tensor, fmt)
            shape = " x ".join(map(str, tensor.shape))
            say(f"{name:<36} {shape:>16}  {tensor.format.name:>6} -> {fmt.name:<6} {size / 1e6:10.2f} MB")
            progress.note(name)
            done = 0
            for block in quantiser.slabs(tensor, fmt, _columns(plan, tensor, fmt)):
                yield block
                done += block.nbytes
                share = tensor.n_bytes * done // size
                progress.advance(share - tensor.n_bytes * (done - block.nbytes) // size)

        def reader(name: str, fmt: Format) -> Callable[[], Iterator[np.ndarray]]:
            return lambda: blocks(name, fmt)

        tensors = [(name, fmt, file.tensors[name].shape, reader(name, fmt)) for name, fmt in plan.formats.items()]
        write_gguf(path, _metadata(file.metadata, plan), tensors)


def _columns(plan: Plan, tensor: TensorInfo, fmt: Format) -> np.ndarray | None:
    """The importance of a tensor's columns. Raises BadFile."""
    if plan.importance is None or fmt == tensor.format or fmt.name not in QUANTIZERS:
        return None
    if len(tensor.shape) > 2 and tensor.name in plan.importance.entries:
        raise BadFile(plan.importance.path, "is of a matrix with more than two dimensions", field=tensor.name)
    return plan.importance.columns(tensor.name, tensor.shape[-1])


def _metadata(metadata: Metadata, plan: Plan) -> dict[str, Any]:
    fields: dict[str, Any] = {key: metadata.typed(key) for key in metadata if key not in REPLACED_KEYS}
    fields["general.quantization_version"] = Typed(QUANTISATION_VERSION, "uint32")
    fields["general.file_type"] = Typed(plan.file_type.number, "uint32")
    if plan.importance is not None:
        importance = plan.importance
        fields["quantize.imatrix.file"] = importance.path
        if importance.datasets:
            fields["quantize.imatrix.dataset"] = importance.datasets[0]
        fields["quantize.imatrix.entries_count"] = Typed(len(importance.entries), "uint32")
        if importance.n_chunks > 0:
            fields["quantize.imatrix.chunks_count"] = Typed(importance.n_chunks, "uint32")
    return fields | dict(plan.extra or {})
