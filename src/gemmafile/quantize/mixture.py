"""Which format each tensor of a quantised model gets: a file type is a mixture of formats.

The rules are llama.cpp's, so that a file of a type has its well-known size and quality: matrices that quality hangs on
(attn_v, ffn_down, attn_output, the output) get more bits in some layers. Source: llama.cpp, src/llama-quant.cpp,
`llama_tensor_get_type_impl`, release b11549, for models without experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from gemmafile.errors import BadSettings, UnsupportedModel, nearest
from gemmafile.files.formats import Format, format_by_name
from gemmafile.files.gguf import ModelFile
from gemmafile.files.tensors import TensorInfo


@dataclass(frozen=True, slots=True)
class FileType:
    """What is asked for. `number`  in general.file_type · `base`  the format of what no rule names"""

    name: str
    number: int
    base: str

    @property
    def is_mixture(self) -> bool:
        return self.base not in PLAIN


PLAIN = ("F32", "F16", "BF16")
"""Formats of whole numbers of bytes a weight: they fit every shape, and nothing is chosen."""

FILE_TYPES = {
    name: FileType(name, number, base)
    for name, number, base in (
        ("Q2_K", 10, "Q2_K"), ("Q2_K_S", 21, "Q2_K"),
        ("Q3_K_S", 11, "Q3_K"), ("Q3_K_M", 12, "Q3_K"), ("Q3_K_L", 13, "Q3_K"),
        ("IQ4_XS", 30, "IQ4_XS"), ("IQ4_NL", 25, "IQ4_NL"),
        ("Q4_0", 2, "Q4_0"), ("Q4_1", 3, "Q4_1"), ("Q4_K_S", 14, "Q4_K"), ("Q4_K_M", 15, "Q4_K"),
        ("Q5_0", 8, "Q5_0"), ("Q5_1", 9, "Q5_1"), ("Q5_K_S", 16, "Q5_K"), ("Q5_K_M", 17, "Q5_K"),
        ("Q6_K", 18, "Q6_K"), ("Q8_0", 7, "Q8_0"),
        ("F16", 1, "F16"), ("BF16", 32, "BF16"), ("F32", 0, "F32"),
    )
}  # fmt: skip
"""The file types by name, small ones first."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

FORMATS = ("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", *PLAIN)
"""What a single tensor can be given."""

FALLBACKS = {"IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""In place of a format of 256 weights a block, for rows of another length; F16 where 32 do not fit either."""

KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_", "attn_rel_b",
    ".position_embd", "sam.", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
"""Tensors with these in their names stay as they are: small, or sensitive. So do those that are no matrices."""
KEPT_WHOLE = ("position_embd.weight", "token_types.weight")

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"
KINDS = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight", "attn_k.weight", "attn_q.weight",
         "attn_output.weight", "ffn_up", "ffn_gate", "ffn_down")  # fmt: skip
VALUES = KINDS[:3]
"""Matrices that hold attention's values."""

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller wants other than the mixture.

    pure          no mixture: every matrix gets the base format
    leave_output  output.weight stays as it is
    tensors       (regular expression, format): for tensors whose name it is found in; the first that fits counts
    """

    pure: bool = False
    leave_output: bool = False
    output: str | None = None
    embedding: str | None = None
    tensors: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Model:
    """What the rules look at, and how many matrices of a kind have gone by."""

    n_layers: int
    n_sharing: int
    has_many_layers: bool
    n_values: int
    is_tied: bool
    has_importance: bool
    seen: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str) -> int:
        """How many of this kind there were before."""
        self.seen[kind] = self.seen.get(kind, -1) + 1
        return self.seen[kind]


def file_type_by_name(name: str) -> FileType:
    """Raises BadSettings, with the nearest name, if there is none; in either case, or by its number."""
    upper = name.upper()
    for file_type in FILE_TYPES.values():
        if name == str(file_type.number):
            return file_type
    try:
        return FILE_TYPES[ALIASES.get(upper, upper)]
    except KeyError:
        known = nearest(upper, FILE_TYPES)
        raise BadSettings(f"there is no type {name!r}{known}; there are {', '.join(FILE_TYPES)}") from None


def tensor_format(name: str) -> str:
    """The name of a format that a tensor can be quantised to. Raises BadSettings."""
    upper = name.upper()
    if upper not in FORMATS:
        raise BadSettings(f"a tensor cannot become {name!r}{nearest(upper, FORMATS)}; it can be {', '.join(FORMATS)}")
    return upper


def in_order(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The tensors as llama.cpp goes through them, and writes them: those of no layer, then layer by layer, by name."""

    def key(tensor: TensorInfo) -> tuple[int, bytes]:
        match = _LAYER.match(tensor.name)
        return int(match[1]) if match else -1, tensor.name.encode()

    return sorted(tensors, key=key)


def choose_formats(
    file: ModelFile, file_type: FileType, wishes: Wishes = Wishes(), *, has_importance: bool = False
) -> dict[str, Format]:
    """A format for each tensor, in the order of `in_order`.

    Raises UnsupportedModel for a model with experts, BadSettings for a regular expression that is none and for a
    format of the embedding's or the output's that its rows do not fit.
    """
    patterns = _compile(wishes.tensors)
    tensors = in_order(file.tensors.values())
    model = _look_at(file, tensors, has_importance)
    chosen: dict[str, Format] = {}
    for tensor in tensors:
        if is_quantised(tensor, wishes):
            chosen[tensor.name] = format_by_name(_choose(tensor, file_type, wishes, patterns, model))
        else:
            chosen[tensor.name] = tensor.format
    return chosen


def _compile(tensors: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    made = []
    for pattern, name in tensors:
        try:
            made.append((re.compile(pattern.lower()), tensor_format(name)))
        except re.error as error:
            raise BadSettings(f"{pattern!r} is no regular expression: {error}") from None
    return made


def _look_at(file: ModelFile, tensors: list[TensorInfo], has_importance: bool) -> _Model:
    metadata = file.metadata
    architecture = metadata.get_str("general.architecture")
    if metadata.get_int(f"{architecture}.expert_count", 0) > 1:
        raise UnsupportedModel(file.path, "has experts: such models are not quantised here")
    n_layers = metadata.get_int(f"{architecture}.block_count")
    n_heads = metadata.get_int(f"{architecture}.attention.head_count", 1)
    n_kv_heads = metadata.get_int(f"{architecture}.attention.head_count_kv", n_heads)
    return _Model(
        n_layers=n_layers,
        n_sharing=n_heads // max(1, n_kv_heads),
        has_many_layers=architecture == "llama" and n_layers == 80 and n_heads != n_kv_heads,
        n_values=sum(any(kind in tensor.name for kind in VALUES) for tensor in tensors),
        is_tied=OUTPUT not in file.tensors,
        has_importance=has_importance,
    )


def is_quantised(tensor: TensorInfo, wishes: Wishes = Wishes()) -> bool:
    """Is this a matrix that a file type changes?"""
    name = tensor.name
    is_matrix = any(dim > 1 for dim in tensor.shape[:-1])
    return (
        is_matrix
        and name.endswith("weight")
        and not any(part in name for part in KEPT)
        and name not in KEPT_WHOLE
        and not (wishes.leave_output and name == OUTPUT)
    )


def _choose(
    tensor: TensorInfo, file_type: FileType, wishes: Wishes, patterns: list[tuple[re.Pattern[str], str]], model: _Model
) -> str:
    named = next((name for pattern, name in patterns if pattern.search(tensor.name)), None)
    if wishes.embedding and tensor.name in EMBEDDINGS and not (named and tensor.name != EMBEDDINGS[0]):
        return _wished(wishes.embedding, tensor, "--token-embedding-type")
    if wishes.output and tensor.name == OUTPUT:
        return _wished(wishes.output, tensor, "--output-tensor-type")
    if not file_type.is_mixture:
        return file_type.base
    if named is None and not wishes.pure:
        named = _choose_from_mixture(tensor, file_type, wishes, model)
    return _fitting(named or file_type.base, tensor.shape[-1])


def _wished(name: str, tensor: TensorInfo, flag: str) -> str:
    found, n_columns = tensor_format(name), tensor.shape[-1]
    fitting = _fitting(found, n_columns)
    if fitting != found:
        n = format_by_name(found).weights_per_block
        what = f"rows of {n_columns} weights are no whole number of blocks of {n}"
        raise BadSettings(f"{flag} {name}: {tensor.name} has {what}; {fitting} fits")
    return found


def _fitting(name: str, n_columns: int) -> str:
    """The format, or what takes its place for rows of this length."""
    for choice in (name, FALLBACKS.get(name, name)):
        if n_columns % format_by_name(choice).weights_per_block == 0:
            return choice
    return "F16"


def _choose_from_mixture(tensor: TensorInfo, file_type: FileType, wishes: Wishes, model: _Model) -> str:
    if tensor.name == OUTPUT or (model.is_tied and tensor.name in EMBEDDINGS):
        if wishes.output:
            return tensor_format(wishes.output)
        fits = tensor.shape[-1] % format_by_name(file_type.base).weights_per_block == 0
        return "Q6_K" if fits and file_type.base != "Q8_0" else "Q8_0"
    kind = next((kind for kind in KINDS if kind in tensor.name), "")
    rule = RULES.get((file_type.name, "attn_v.weight" if kind in VALUES else kind))
    if kind in VALUES:
        i, n = model.count("values"), model.n_values
    elif kind == "ffn_down":
        i, n = model.count(kind), model.n_layers
    else:
        i, n = 0, 1
    name = (rule(i, n, model) if rule else None) or file_type.base
    if kind in VALUES and model.has_many_layers and name in ("Q3_K", "Q4_K"):
        return "Q5_K"  # eight heads share it: it is small, and much hangs on it
    return name


def _more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


Rule: TypeAlias = Callable[[int, int, _Model], str | None]

RULES: Mapping[tuple[str, str], Rule] = {
    ("Q2_K", "attn_v.weight"): lambda i, n, m: "Q4_K" if m.n_sharing >= 4 else "Q3_K",
    ("Q2_K", "ffn_down"): lambda i, n, m: "Q3_K",
    ("Q2_K", "attn_output.weight"): lambda i, n, m: "Q3_K",
    ("Q2_K_S", "attn_v.weight"): lambda i, n, m: "Q4_K" if m.n_sharing >= 4 else None,
    ("Q2_K_S", "ffn_down"): lambda i, n, m: "Q4_K" if i < n // 8 else None,
    ("Q3_K_M", "attn_v.weight"): lambda i, n, m: "Q5_K" if i < 2 else "Q4_K",
    ("Q3_K_M", "ffn_down"): lambda i, n, m: "Q5_K" if i < n // 16 else "Q4_K",
    ("Q3_K_M", "attn_output.weight"): lambda i, n, m: "Q4_K",
    ("Q3_K_L", "attn_v.weight"): lambda i, n, m: "Q5_K",
    ("Q3_K_L", "ffn_down"): lambda i, n, m: "Q5_K",
    ("Q3_K_L", "attn_output.weight"): lambda i, n, m: "Q5_K",
    ("IQ4_NL", "attn_v.weight"): lambda i, n, m: "Q5_K" if m.n_sharing >= 4 else None,
    ("IQ4_NL", "ffn_down"): lambda i, n, m: "Q5_K" if i < n // 8 and not m.has_importance else None,
    ("IQ4_XS", "attn_v.weight"): lambda i, n, m: "Q5_K" if m.n_sharing >= 4 else None,
    ("IQ4_XS", "ffn_down"): lambda i, n, m: "Q5_K" if i < n // 8 and not m.has_importance else None,
    ("Q4_0", "ffn_down"): lambda i, n, m: "Q4_1" if i < n // 8 and m.has_importance else None,
    ("Q5_0", "ffn_down"): lambda i, n, m: "Q5_1" if i < n // 8 and m.has_importance else None,
    ("Q4_K_S", "attn_v.weight"): lambda i, n, m: "Q5_K" if i < 4 else None,
    ("Q4_K_S", "ffn_down"): lambda i, n, m: "Q5_K" if i < n // 8 else None,
    ("Q4_K_M", "attn_v.weight"): lambda i, n, m: "Q6_K" if _more_bits(i, n) else None,
    ("Q4_K_M", "ffn_down"): lambda i, n, m: "Q6_K" if _more_bits(i, n) else None,
    ("Q5_K_M", "attn_v.weight"): lambda i, n, m: "Q6_K" if _more_bits(i, n) else None,
    ("Q5_K_M", "ffn_down"): lambda i, n, m: "Q6_K" if _more_bits(i, n) else None,
}
"""(file type, kind of matrix) -> the format for number i of the n of its kind; None: the file type's base."""


def needs_importance(tensor: str, name: str, file_type: FileType) -> bool:
    """Does nothing good come of this format without an importance matrix?"""
    return file_type.name == "Q2_K_S" and name == "Q2_K" and tensor not in (*EMBEDDINGS, OUTPUT)
