"""Parts of a split model that do not say how their tensors are aligned: two writers, two meanings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemmafile.files.gguf import open_gguf
from gemmafile.files.gguf_writer import write_gguf

TENSORS = {f"tensor {i}": np.arange(i, i + 33, dtype=np.float32) for i in range(8)}


def write_parts(folder: Path, alignment_of_the_second: int, *, says: bool, key: str) -> Path:
    """A first part aligned to 64 that says so, and a second one."""
    names = list(TENSORS)
    for number, part in enumerate((names[:3], names[3:])):
        fields = {"split.no": number, "split.count": 2, "split.tensors.count": len(TENSORS)}
        fields |= {key: 1} if number else {}
        path = folder / f"big-{number + 1:05d}-of-00002.gguf"
        tensors = [(name, "F32", TENSORS[name].shape, TENSORS[name]) for name in part]
        write_gguf(path, fields, tensors, alignment=alignment_of_the_second if number else 64)
        if number and not says:
            data = path.read_bytes()
            renamed = data.replace(b"general.alignment", b"general.alignmenT")  # a key like any other
            path.write_bytes(renamed)
    return folder / "big-00001-of-00002.gguf"


@pytest.mark.parametrize("alignment, says", [(8, True), (32, True), (64, True), (32, False), (64, False)])
@pytest.mark.parametrize("filler", range(0, 64, 7))
def test_parts_of_either_alignment_are_read(alignment: int, says: bool, filler: int, tmp_path: Path) -> None:
    """`filler`  moves the end of the header, so that both alignments begin the data at the same byte, or do not."""
    model = open_gguf(write_parts(tmp_path, alignment, says=says, key="k" * (1 + filler)))
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(model.data(name).view(np.float32), array, name)
