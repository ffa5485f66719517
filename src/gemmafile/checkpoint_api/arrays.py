"""Arrays of token ids: torch's where torch is there and asked for, else NumPy's that know `.to(device)`.

torch is never imported unless "pt" is asked for, and never needed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmafile.errors import BadSettings


class Device(str):
    """The name of a device where there is no torch: "cpu"."""

    @property
    def type(self) -> str:
        return self.partition(":")[0]


class Ids(np.ndarray):
    """int64 token ids with the few methods of a tensor that code around a model calls. There is one device: `to` stays.

    Everything else is NumPy's.
    """

    def to(self, *place: Any, **options: Any) -> Ids:
        return self

    def cpu(self) -> Ids:
        return self

    def cuda(self, *place: Any) -> Ids:
        return self

    def detach(self) -> Ids:
        return self

    def numpy(self) -> np.ndarray:
        return self.view(np.ndarray)

    @property
    def device(self) -> Any:
        return Device("cpu")


class BatchEncoding(dict[str, Any]):
    """`input_ids` and `attention_mask`, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, *place: Any, **options: Any) -> BatchEncoding:
        """Itself: the model reads ids from memory wherever they are asked to be."""
        return self


class Outputs(dict[str, Any]):
    """What a model returns: by name, as attributes, or by number among those there are. A field of None is not there,
    but for its attribute."""

    def __init__(self, **values: Any):
        super().__init__({name: value for name, value in values.items() if value is not None})
        self._names = frozenset(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(name)
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


def torch_if_loaded() -> Any:
    """The module torch if the program has imported it, else None."""
    return sys.modules.get("torch")


def load_torch() -> Any:
    """torch, or None where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch


def make_array(rows: Sequence[Sequence[int]], kind: str | None) -> Any:
    """Rows of equal length as "pt" (torch's, or NumPy's without torch), "np", or lists for None. Raises BadSettings."""
    if kind is None:
        return [list(row) for row in rows]
    if kind not in ("pt", "np"):
        raise BadSettings(f'return_tensors is {kind!r}, expected "pt", "np" or None')
    if len({len(row) for row in rows}) > 1:
        raise BadSettings("texts of different lengths make no array: padding=True fills them up")
    torch = load_torch() if kind == "pt" else None
    if torch is not None:
        return torch.tensor([list(row) for row in rows], dtype=torch.int64)
    return np.array([list(row) for row in rows], np.int64).reshape(len(rows), -1).view(Ids)


def read_rows(value: Any, name: str) -> tuple[list[list[int]], str | None]:
    """Rows of whole numbers, and what they came as: "pt", "np" or None. Raises BadSettings."""
    kind = None
    torch = torch_if_loaded()
    if torch is not None and isinstance(value, torch.Tensor):
        kind, value = "pt", value.detach().cpu().numpy()
    elif isinstance(value, np.ndarray):
        kind = "np"
    if isinstance(value, Mapping):
        raise BadSettings(f"{name} is a mapping: give it as **inputs")
    try:
        array = np.asarray(value)
    except ValueError:
        raise BadSettings(f"the rows of {name} have different lengths: padding=True fills them up") from None
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iub":
        raise BadSettings(f"{name} is {str(value)[:60]}, expected rows of token ids")
    return array.astype(np.int64).tolist(), kind
