"""Quantisers: float weights to the blocks of a format. `quantize_rows` in `single.py` runs one; read `lanes.py` next.

    lanes.py           sixteen blocks side by side, one in each lane: read, turned, quantised, written
    fits.py            the searches: which scale (and minimum) loses least
    blocks_of_32.py    Q8_0 Q5_1 Q5_0 Q4_1 Q4_0
    with_minima.py     Q2_K Q4_K Q5_K
    without_minima.py  Q3_K Q6_K
    codebook.py        IQ4_NL IQ4_XS

What is minimised, and over which candidates, is llama.cpp's choice, in its order of float operations (no fma), so
that a file is the same bytes whichever of the two made it, with an importance matrix or without: ggml-quants.c,
`quantize_row_*`, release b11549. The code is another: there a block after the other, here sixteen at once.
"""

from __future__ import annotations

QUANTIZERS = {
    "Q8_0": "blocks_of_32", "Q5_1": "blocks_of_32", "Q5_0": "blocks_of_32", "Q4_1": "blocks_of_32",
    "Q4_0": "blocks_of_32", "Q2_K": "with_minima", "Q4_K": "with_minima", "Q5_K": "with_minima",
    "Q3_K": "without_minima", "Q6_K": "without_minima", "IQ4_NL": "codebook", "IQ4_XS": "codebook",
}  # fmt: skip
"""The module of each format's quantiser."""

IGNORES_IMPORTANCE = frozenset({"Q8_0"})
"""Formats whose rounding is the same with and without an importance matrix."""

NEEDS_ROW_MEANS = frozenset({"Q5_1", "Q5_0", "Q4_1", "Q4_0"})
"""Formats whose weighted fit reads the mean square of the whole row."""


def quantizer_name(format_name: str, weighted: bool) -> str:
    """The kernel that quantises to a format, with an importance for each column or without."""
    kind = "_weighted" if weighted and format_name not in IGNORES_IMPORTANCE else ""
    return f"quantizers.{QUANTIZERS[format_name]}.{format_name.lower()}{kind}"
