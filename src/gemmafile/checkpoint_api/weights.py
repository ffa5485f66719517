"""A model's weights under transformers' names, made when they are asked for; a model and a tokenizer saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gemmafile.checkpoint_api.arrays import torch_if_loaded
from gemmafile.checkpoint_api.in_memory import FLOATS
from gemmafile.convert.to_checkpoint import SHARD_BYTES, TORCH_NAMES, read_pieces, write_checkpoint, write_tokenizer
from gemmafile.errors import BadSettings
from gemmafile.files.atomic import replace_file
from gemmafile.files.gguf import ModelFile
from gemmafile.files.huggingface.checkpoint import Checkpoint
from gemmafile.files.huggingface.tensor_names import hf_name
from gemmafile.files.open import open_model
from gemmafile.model.config import ModelConfig
from gemmafile.model_api import Model

if TYPE_CHECKING:
    from gemmafile.checkpoint_api.tokenizer import CardTokenizer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Weights(Mapping[str, Any]):
    """The weights of an open model, read-only. Each is made when it is read: a copy, in Hugging Face's layout and the
    model's type, as torch's tensor where torch is loaded, else NumPy's array (which has no bfloat16: float32).

    has_twins  a tied output matrix is there under its own name as well
    """

    def __init__(self, file: ModelFile, config: ModelConfig, dtype: str, *, has_twins: bool = True):
        self._file, self._config, self._dtype = file, config, dtype
        names = ((hf_name(name, config.architecture), name) for name in file.tensors)
        self._names = {theirs: ours for theirs, ours in names if theirs is not None}
        if has_twins and config.tied:
            self._names[HEAD] = self._names[EMBEDDING]

    def __getitem__(self, name: str) -> Any:
        info = self._file.tensors[self._names[name]]
        values = np.empty(info.shape, np.float32)
        at = 0
        for piece in read_pieces(self._file, self._config, info):
            values.reshape(-1)[at : at + piece.size] = piece.reshape(-1)
            at += piece.size
        torch = torch_if_loaded()
        if torch is not None:
            return torch.from_numpy(values).to(getattr(torch, TORCH_NAMES[self._dtype]))
        made = values.astype(np.float16) if self._dtype == "F16" else values
        made.flags.writeable = False
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class HoldsWeights:
    """What a CausalLM answers about its weights, and does with them. `_reopen` opens it with another type of float."""

    model: Model
    _dtype: str
    _reopen: Callable[[str], Model] | None

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are; none of them is trained."""
        left_out = ("token_embd.weight",) if exclude_embeddings else ()
        infos = self.model.file.tensors.values()
        return 0 if only_trainable else sum(info.n_weights for info in infos if info.name not in left_out)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all tensors as they are computed with."""
        return sum(info.n_bytes for info in self.model.file.tensors.values())

    def state_dict(self) -> Weights:
        """All weights by name, each made when it is read: copies."""
        return Weights(self.model.file, self.model.config, self._dtype)

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, Any]]:
        """Names and copies of the weights, a tied output matrix once."""
        yield from Weights(self.model.file, self.model.config, self._dtype, has_twins=False).items()

    def parameters(self, *_: Any, **__: Any) -> Iterator[Any]:
        return (values for _, values in self.named_parameters())

    def named_buffers(self, *_: Any, **__: Any) -> Iterator[tuple[str, Any]]:
        return iter(())

    def buffers(self, *_: Any, **__: Any) -> Iterator[Any]:
        return iter(())

    def half(self) -> Self:
        """Its matrices in float16, made from the file's own; keys and values too, as when it is loaded so."""
        return self._cast("F16")

    def bfloat16(self) -> Self:
        return self._cast("BF16")

    def float(self) -> Self:
        return self._cast("F32")

    def _cast(self, wanted: str) -> Self:
        """In place. Raises BadSettings where the weights are quantised, BadFile for a number too large."""
        if wanted == self._dtype:
            return self
        quantised = self._quantised_as()
        if quantised is not None or self._reopen is None:
            what = f"the weights are quantised ({quantised})" if quantised else "the model was not opened by its name"
            raise BadSettings(f"{what}: they do not become {TORCH_NAMES[wanted]}; open the original with that dtype")
        changed = self._reopen(wanted)
        self.model.close()
        self.model, self._dtype = changed, wanted
        return self

    def _quantised_as(self) -> str | None:
        """A format of matrices that is no float's."""
        formats = (info.format.name for info in self.model.file.tensors.values() if len(info.shape) == 2)
        return next((name for name in formats if name not in FLOATS), None)

    def save_pretrained(
        self, save_directory: str | PathLike[str], *_: Any, state_dict: Any = None, push_to_hub: bool = False,
        max_shard_size: int | str = SHARD_BYTES, safe_serialization: bool = True, **ignored: Any,
    ) -> None:  # fmt: skip
        """The model as a checkpoint: safetensors of the model's type (quantised: bfloat16), config.json,
        generation_config.json. Weights that the folder held are replaced, other files stay. Raises BadSettings.
        """
        if not safe_serialization:
            raise BadSettings("safe_serialization=False would write pickles: safetensors are what is written here")
        if state_dict is not None or push_to_hub:
            raise BadSettings("a state_dict of one's own and push_to_hub are not here: save, then upload the folder")
        folder, most = Path(save_directory), _read_size(max_shard_size)
        _check_folder(folder)
        file = self.model.file
        source = getattr(file, "source", file)
        generation = source.folder.json("generation_config.json") if isinstance(source, Checkpoint) else None
        dtype = "auto" if self._quantised_as() else self._dtype
        write_checkpoint(file, folder, dtype, shard_bytes=most, replace=True, tokenizer=False, generation=generation)


def _read_size(size: int | str) -> int:
    """Bytes for "5GB", "500MB", a number. Raises BadSettings."""
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", str(size))
    unit = _UNITS.get(match[2].upper()) if match else None
    if not match or unit is None or not int(match[1]):
        raise BadSettings(f"max_shard_size is {str(size)[:40]!r}, expected a number of bytes or a text such as 5GB")
    return int(match[1]) * unit


def save_tokenizer(tokenizer: CardTokenizer, source: Path | str, folder: Path) -> tuple[str, ...]:
    """The files of the tokenizer that `source` holds, with what was changed since. The paths written."""
    _check_folder(folder)
    with open_model(source) as file:
        if isinstance(file, Checkpoint):
            found = {name: file.folder.read(name) for name in TOKENIZER_FILES}
            folder.mkdir(parents=True, exist_ok=True)
            for name, raw in found.items():
                if raw is not None:
                    _write(folder / name, raw)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_tokenizer(file, folder)
    config, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    table = json.loads(config.read_bytes()) if config.is_file() else {}
    old = dict(table)
    own = tokenizer.tokenizer
    for name, was in (("bos", own.bos_id), ("eos", own.eos_id), ("unk", own.unk_id), ("pad", own.pad_id)):
        if getattr(tokenizer, f"{name}_token_id") != was:
            table[f"{name}_token"] = getattr(tokenizer, f"{name}_token")
    if table.get("padding_side", "left") != tokenizer.padding_side:
        table["padding_side"] = tokenizer.padding_side
    if tokenizer.chat_template != own.vocabulary.chat_template:
        template.unlink(missing_ok=True)
        table["chat_template"] = tokenizer.chat_template
    if table != old:
        _write(config, (json.dumps(table, ensure_ascii=False, indent=2) + "\n").encode())
    return tuple(str(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file())


def _write(path: Path, raw: bytes) -> None:
    with replace_file(path) as out:
        out.write(raw)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadSettings(f"{folder} is a file, expected a folder to save into")


def type_in(place: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """The type among `to`'s arguments: what is neither text, number nor device. None: there is none."""
    found = options.get("dtype")
    others = (p for p in place if p is not None and not isinstance(p, (str, int)) and not hasattr(p, "type"))
    return next((p for p in others), found)
