"""The table of tensor formats."""

from __future__ import annotations

import pytest

from gemmafile.errors import BadSettings
from gemmafile.files.formats import FORMATS, REMOVED, format_by_name


def test_every_number_up_to_the_last_is_a_format_or_was_removed():
    assert sorted(FORMATS.keys() | REMOVED.keys()) == list(range(43))
    assert not FORMATS.keys() & REMOVED.keys()


def test_names_are_found_in_either_case():
    for fmt in FORMATS.values():
        assert format_by_name(fmt.name) is format_by_name(fmt.name.lower()) is fmt


def test_an_unknown_name_proposes_the_nearest():
    with pytest.raises(BadSettings, match=r"'q4_km'.*Q4_K"):
        format_by_name("q4_km")


@pytest.mark.parametrize(
    ("name", "weights", "n_bytes", "bits"),
    [
        ("F32", 256, 1024, 32),
        ("BF16", 3, 6, 16),
        ("Q8_0", 64, 68, 8.5),
        ("Q4_K", 512, 288, 4.5),
        ("Q6_K", 256, 210, 6.5625),
    ],
)
def test_row_bytes_and_bits(name: str, weights: int, n_bytes: int, bits: float):
    fmt = format_by_name(name)
    assert fmt.row_bytes(weights) == n_bytes
    assert fmt.bits_per_weight == bits


@pytest.mark.oracle
def test_blocks_are_those_of_the_gguf_package():
    from gguf.constants import GGML_QUANT_SIZES

    theirs = {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}
    ours = {
        fmt.id: (fmt.name, fmt.weights_per_block, fmt.bytes_per_block) for fmt in FORMATS.values() if fmt.id in theirs
    }
    del ours[9], theirs[9]  # Q8_1 has 36 bytes in C (block_q8_1), 40 in the package
    assert ours == theirs
