"""Which kernels multiply which format, by how many tokens there are."""

from __future__ import annotations

from dataclasses import dataclass

FEW_TOKENS, SEVERAL_TOKENS = 4, 32
"""Up to FEW_TOKENS are multiplied one by one straight from the weights' bytes, more go through a panel of weights.
Where there is a matrix unit, up to SEVERAL_TOKENS go through it with the weights as they lie, more with panels."""


@dataclass(frozen=True, slots=True)
class Product:
    """How a format is multiplied: kernels for few and for more tokens, and what packs the activations for them.

    `matmul_unit`, `packing_unit`  for many tokens on a matrix unit, where the format has such kernels
    `batch_unit`, `packing_batch`  for several
    """

    matvec: str
    matmul: str
    packing: str | None
    matmul_unit: str | None = None
    packing_unit: str | None = None
    batch_unit: str | None = None
    packing_batch: str | None = None


PRODUCTS = {
    name: Product(
        f"{name.lower()}.matvec", f"{name.lower()}.matmul", kind, f"{name.lower()}.matmul_amx",
        "int8_32_many" if kind == "int8_32" else kind, f"{name.lower()}.batch_amx", f"{kind}_by_16",
    )
    for kind, names in {
        "int8_256": ("Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K"),
        "int8_32": ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"),
    }.items()
    for name in names
} | {
    "BF16": Product(
        "bf16.matvec", "bf16.matmul", "bf16", "bf16.matmul_amx", "bf16_many", "bf16.batch_amx", "bf16_many",
    ),
    "F16": Product("dots.f16_matvec", "dots.f16_matmul", None),
    "F32": Product("dots.f32_matvec", "dots.f32_matmul", None),
}  # fmt: skip


def size_class(n_rows: int) -> int:
    """0 few, 1 several, 2 many."""
    return (n_rows > FEW_TOKENS) + (n_rows > SEVERAL_TOKENS)
