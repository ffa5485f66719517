"""Which page of `model/` records which architecture."""

from __future__ import annotations

from gemmafile.model.adapters import Pairs
from gemmafile.model.config import ModelConfig
from gemmafile.model.gemma import record_gemma
from gemmafile.model.llama import record_llama
from gemmafile.model.tape import Tape
from gemmafile.model.weights import ModelWeights

_PAGES = {"gemma": record_gemma, "gemma2": record_gemma, "gemma3": record_gemma, "llama": record_llama}


def record(
    config: ModelConfig, weights: ModelWeights, adapters: Pairs | None = None, *, has_fine_products: bool = True
) -> Tape:
    """The forward pass of a model, recorded, with LoRA adapters if there are any."""
    tape = Tape(adapters=adapters or {}, has_fine_products=has_fine_products)
    _PAGES[config.architecture](tape, config, weights)
    return tape
