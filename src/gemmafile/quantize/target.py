"""A mixture of formats for a size that was asked for, from measured sensitivities (`sensitivity.py`)."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemmafile.errors import BadSettings
from gemmafile.files.formats import Format
from gemmafile.files.gguf import ModelFile
from gemmafile.files.metadata import Typed
from gemmafile.kernels.quantizers.rows import PLAIN
from gemmafile.quantize.mixture import FILE_TYPES, FileType, in_order
from gemmafile.quantize.sensitivity import PROBE, Choice, Sensitivity, gain, measured, smallest_bytes

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
          "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip


def parse_size(word: str) -> int:
    """Bytes of "16GB", "300M", "1.5GiB". Raises BadSettings."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", word.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise BadSettings(f"--target-size is {word!r}, expected a size such as 16GB, 900M or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """A format for each tensor, chosen to lose least within a size. `n_bytes`  of the tensors · `loss`  expected"""

    sensitivities: Sequence[Sensitivity]
    chosen: Mapping[str, Choice]
    formats: Mapping[str, Format]
    n_bytes: int
    loss: float

    def file_type(self) -> FileType:
        """The type whose own format holds most of the weights: what general.file_type says."""
        weights: dict[str, int] = {}
        for one in self.sensitivities:
            name = self.chosen[one.name].format.name
            weights[name] = weights.get(name, 0) + one.n_weights
        most = max(weights, key=lambda name: weights[name])
        return next(t for t in FILE_TYPES.values() if t.base == most)

    def table(self) -> Iterator[str]:
        """Lines: what each matrix got, and what was measured of it."""
        yield f"{'matrix':<32} {'format':<7} {'MB':>9}   {'expected loss':>13}   {'alone in ' + PROBE:>13}"
        for one in self.sensitivities:
            choice = self.chosen[one.name]
            yield (
                f"{one.name:<32} {choice.format.name:<7} {choice.n_bytes / 1e6:9.2f}   {choice.loss:13.6f}"
                f"   {one.probed:13.6f}"
            )

    def metadata(self, dataset: str) -> dict[str, Any]:
        """The table as keys of the file."""
        names = [one.name for one in self.sensitivities]
        return {
            "gemmafile.mix.dataset": dataset,
            "gemmafile.mix.expected_kld": Typed(self.loss, "float32"),
            "gemmafile.mix.probe": PROBE,
            "gemmafile.mix.tensors": Typed(names, "string"),
            "gemmafile.mix.formats": Typed([self.chosen[name].format.name for name in names], "string"),
            "gemmafile.mix.probed_kld": Typed([one.probed for one in self.sensitivities], "float32"),
        }


def check_target(file: ModelFile, n_bytes: int, *, allow_requantize: bool = False) -> None:
    """What `choose_mix` and the writing would refuse, said before the measuring. Raises BadSettings."""
    matrices = measured(file)
    for tensor in matrices:
        if tensor.format.name not in PLAIN and not allow_requantize:
            raise BadSettings(
                f"{tensor.name} is {tensor.format.name} already: what is measured should be the original"
                " (--allow-requantize does it all the same)"
            )
    names = {tensor.name for tensor in matrices}
    kept = sum(tensor.n_bytes for tensor in file.tensors.values() if tensor.name not in names)
    least = kept + sum(map(smallest_bytes, matrices))
    if least > n_bytes:
        raise BadSettings(f"{n_bytes / 1e6:,.1f} MB are too few: the smallest formats make {least / 1e6:,.1f} MB")


def choose_mix(file: ModelFile, sensitivities: Sequence[Sensitivity], n_bytes: int) -> Mix:
    """The mixture that loses least with tensors of at most `n_bytes` together.

    Every matrix begins with its smallest format; the step that saves most a byte is taken until none fits.
    Raises BadSettings for a size that the smallest formats exceed.
    """
    measured = {one.name for one in sensitivities}
    kept = sum(tensor.n_bytes for tensor in file.tensors.values() if tensor.name not in measured)
    place = {one.name: 0 for one in sensitivities}
    size = kept + sum(one.choices[0].n_bytes for one in sensitivities)
    if size > n_bytes:
        raise BadSettings(f"{n_bytes / 1e6:,.1f} MB are too few: the smallest formats make {size / 1e6:,.1f} MB")
    by_name = {one.name: one for one in sensitivities}
    steps = [(-gain(*one.choices[:2]), one.name) for one in sensitivities if len(one.choices) > 1]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        choices, at = by_name[name].choices, place[name]
        more = choices[at + 1].n_bytes - choices[at].n_bytes
        if size + more > n_bytes:
            continue  # a smaller matrix's step may still fit
        size, place[name] = size + more, at + 1
        if at + 2 < len(choices):
            heapq.heappush(steps, (-gain(choices[at + 1], choices[at + 2]), name))
    chosen = {name: by_name[name].choices[at] for name, at in place.items()}
    formats = {
        tensor.name: chosen[tensor.name].format if tensor.name in chosen else tensor.format
        for tensor in in_order(file.tensors.values())
    }
    return Mix(sensitivities, chosen, formats, size, sum(choice.loss for choice in chosen.values()))
