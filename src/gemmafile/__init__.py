"""gemmafile: a Gemma model as one executable file, and the inference engine inside it.

    from gemmafile import Model

    with Model.open("model.gguf") as model:
        print(model.chat([{"role": "user", "content": "Why is the sky blue?"}]).text)

Importing the package loads nothing; the first use of `Model` loads NumPy and the engine (`model_api.py`). The names of
Gemma's model card (AutoTokenizer, AutoModelForCausalLM, BitsAndBytesConfig, ...) are `checkpoint_api/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemmafile.checkpoint_api import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BatchEncoding,
        BitsAndBytesConfig,
        GenerationConfig,
        TextIteratorStreamer,
        TextStreamer,
    )
    from gemmafile.model_api import Completion, Model

__version__ = "0.1.0"
__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BatchEncoding",
    "BitsAndBytesConfig",
    "Completion",
    "GenerationConfig",
    "Model",
    "TextIteratorStreamer",
    "TextStreamer",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gemmafile' has no attribute {name!r}")
    if name in ("Completion", "Model"):
        from gemmafile import model_api

        return getattr(model_api, name)
    from gemmafile import checkpoint_api

    return getattr(checkpoint_api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
