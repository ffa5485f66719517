"""Every tensor format ggml knows: its number in a GGUF file, its name, and the size of its blocks.

Sizes only; what the bits of a block mean is told in `kernels/`, one file a format.
Source: `enum ggml_type` in ggml.h, block structs in ggml-common.h (llama.cpp b11549).
"""

from __future__ import annotations

from dataclasses import dataclass

from gemmafile.errors import BadSettings, nearest


@dataclass(frozen=True, slots=True)
class Format:
    """How the weights of a tensor are stored: blocks of `weights_per_block` in `bytes_per_block` bytes."""

    id: int
    name: str
    weights_per_block: int
    bytes_per_block: int

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes, its share of the block's scales included."""
        return 8 * self.bytes_per_block / self.weights_per_block

    def row_bytes(self, n_weights: int) -> int:
        """Bytes of a row of `n_weights`, which must be a whole number of blocks."""
        n_blocks, rest = divmod(n_weights, self.weights_per_block)
        assert rest == 0, f"{n_weights} weights are no whole number of {self.name} blocks"
        return n_blocks * self.bytes_per_block


_ALL = (
    Format(0, "F32", 1, 4),
    Format(1, "F16", 1, 2),
    Format(2, "Q4_0", 32, 18),
    Format(3, "Q4_1", 32, 20),
    Format(6, "Q5_0", 32, 22),
    Format(7, "Q5_1", 32, 24),
    Format(8, "Q8_0", 32, 34),
    Format(9, "Q8_1", 32, 36),  # two float16 and 32 int8, as block_q8_1 in C; the gguf package says 40
    Format(10, "Q2_K", 256, 84),
    Format(11, "Q3_K", 256, 110),
    Format(12, "Q4_K", 256, 144),
    Format(13, "Q5_K", 256, 176),
    Format(14, "Q6_K", 256, 210),
    Format(15, "Q8_K", 256, 292),
    Format(16, "IQ2_XXS", 256, 66),
    Format(17, "IQ2_XS", 256, 74),
    Format(18, "IQ3_XXS", 256, 98),
    Format(19, "IQ1_S", 256, 50),
    Format(20, "IQ4_NL", 32, 18),
    Format(21, "IQ3_S", 256, 110),
    Format(22, "IQ2_S", 256, 82),
    Format(23, "IQ4_XS", 256, 136),
    Format(24, "I8", 1, 1),
    Format(25, "I16", 1, 2),
    Format(26, "I32", 1, 4),
    Format(27, "I64", 1, 8),
    Format(28, "F64", 1, 8),
    Format(29, "IQ1_M", 256, 56),
    Format(30, "BF16", 1, 2),
    Format(34, "TQ1_0", 256, 54),
    Format(35, "TQ2_0", 256, 66),
    Format(39, "MXFP4", 32, 17),
    Format(40, "NVFP4", 64, 36),
    Format(41, "Q1_0", 128, 18),
    Format(42, "Q2_0", 64, 18),
)

FORMATS: dict[int, Format] = {fmt.id: fmt for fmt in _ALL}
"""The formats by their number in a file."""

REMOVED: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Numbers that once were formats: old files may carry them, nothing reads them any more."""

_BY_NAME = {fmt.name: fmt for fmt in _ALL}


def format_by_name(name: str) -> Format:
    """The format called `name`, in either case. Raises BadSettings, with the nearest name, if there is none."""
    try:
        return _BY_NAME[name.upper()]
    except KeyError:
        raise BadSettings(f"no tensor format is called {name!r}{nearest(name.upper(), _BY_NAME)}") from None
